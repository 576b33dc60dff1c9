"""Compare the arms of an experiment: the difference over seeds, its interval, and one of three verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.base.metrics import t_interval
from recipes.claims.claim import ClaimError, Measurement

RESAMPLES = 2000
REPRODUCED, NOT_REPRODUCED, REVERSED = "reproduced", "not reproduced at this scale", "reversed"


@dataclass(frozen=True)
class Comparison:
    """Comparison of two arms; `effect` is the mean over seeds of first - other."""

    effect: float
    low: float
    high: float
    differences: tuple[float, ...]
    how: str
    verdict: str


def compare(first: Sequence[Measurement], other: Sequence[Measurement], better: Literal["higher", "lower"]) -> Comparison:
    """Compare two arms, paired by seed. Runs with the same seed see the same data in the same order, so that shared variance cancels out.

    With two or more seeds the interval is Student's t of the paired differences. With one seed it is a bootstrap over the test
    samples of both arms, which does not include seed-to-seed variance.
    """
    differences = tuple(a.value - b.value for a, b in zip(first, other, strict=True))
    effect = sum(differences) / len(differences)
    if len(differences) > 1:
        low, high = t_interval(list(differences))
        how = f"95 % paired Student t over {len(differences)} seeds"
        how += "; two seeds give a wide interval, use at least three" if len(differences) == 2 else ""
    else:
        low, high = _bootstrap(first[0], other[0])
        how = "one seed: 95 % paired bootstrap over test samples, which does not include seed-to-seed variance"
    sign = 1 if better == "higher" else -1
    near, far = sorted((sign * low, sign * high))
    verdict = REPRODUCED if near > 0 else REVERSED if far < 0 else NOT_REPRODUCED
    return Comparison(effect, low, high, differences, how, verdict)


def overall(verdicts: Sequence[str]) -> str:
    """The verdict of one arm against several others: reproduced if it beats them all, reversed if any of them beats it."""
    if REVERSED in verdicts:
        return REVERSED
    return REPRODUCED if set(verdicts) == {REPRODUCED} else NOT_REPRODUCED


def _bootstrap(first: Measurement, other: Measurement) -> tuple[float, float]:
    """Resample both arms with the same draws, so that the difficulty of a sample cancels out."""
    shared = sorted(set(first.samples) & set(other.samples))
    if len(shared) < 2:
        raise ClaimError("no interval: one seed, and the metric is not a mean over samples. Use more seeds: SEEDS=0,1,2")
    totals = np.array([[arm.samples[key] for arm in (first, other)] for key in shared])  # [samples, arms, 2]: sum, count
    draws = np.random.default_rng(0).multinomial(len(shared), np.full(len(shared), 1 / len(shared)), size=RESAMPLES)
    sums = np.einsum("rs,sac->rac", draws, totals)
    means = sums[..., 0] / np.maximum(sums[..., 1], 1e-9)  # [R, arms]
    low, high = np.quantile(means[:, 0] - means[:, 1], (0.025, 0.975))
    return float(low), float(high)
