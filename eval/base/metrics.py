"""From answers to numbers: ranks that treat ties fairly, and bootstrap intervals over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

RESAMPLES = 1000
WHOLE_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95% interval, over `n` images."""

    value: float
    low: float
    high: float
    n: int


def estimate(
    totals: Sequence[float] | np.ndarray, counts: Sequence[float] | np.ndarray | None = None, *, resample: bool = True
) -> Estimate:
    """`sum(totals) / sum(counts)` with a percentile bootstrap that resamples images (clusters), not their records.

    Image i contributes `counts[i]` records (default one; any non-negative weight), `totals[i]` of them right.
    Images without records are left out. When every image is entirely right, or entirely wrong, resampling has no spread:
    the interval is then the exact binomial one (Clopper-Pearson). Memory: 4 kB per image.
    Without `resample` the value is exact, and the interval has no width.
    """
    right = np.asarray(totals, np.float64)
    weight = np.ones_like(right) if counts is None else np.asarray(counts, np.float64)
    right, weight = right[weight > 0], weight[weight > 0]
    n = len(right)
    if n == 0:
        raise ValueError("cannot estimate a share from no records")
    value = float(right.sum() / weight.sum())
    if not resample:
        return Estimate(value, value, value, n)
    if not right.any() or np.array_equal(right, weight):
        from scipy.stats import binomtest  # seconds of import that reports do without

        exact = binomtest(n if right.any() else 0, n).proportion_ci()
        return Estimate(value, float(exact.low), float(exact.high), n)
    draws = _draws(n)
    low, high = np.percentile(draws @ right.astype(np.float32) / (draws @ weight.astype(np.float32)), (2.5, 97.5))
    return Estimate(value, min(float(low), value), max(float(high), value), n)  # draws are float32, the value is not


def estimate_whole(
    statistic: Callable[[Sequence[dict[str, Any]]], float], records: Sequence[dict[str, Any]], *, resample: bool = True
) -> Estimate:
    """A statistic of all records, such as corpus BLEU, with a percentile bootstrap over images (records of one "i" stay together).

    Fewer resamples than for a mean, since each computes the statistic again; NaN resamples (a class that was not drawn)
    are left out.
    """
    images: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        images.setdefault(record["i"], []).append(record)
    groups = list(images.values())
    value = float(statistic(records))
    if not resample or len(groups) < 2:
        return Estimate(value, value, value, len(groups))
    rng = np.random.default_rng(0)
    drawn = [[record for i in rng.integers(len(groups), size=len(groups)) for record in groups[i]] for _ in range(WHOLE_RESAMPLES)]
    low, high = np.nanpercentile([statistic(each) for each in drawn], (2.5, 97.5))
    return Estimate(value, float(low), float(high), len(groups))


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The rank of each query's best right candidate: int `[Q, 3]` of (above, tied, right among the tied).

    `scores` is `[Q, C]`, `right` a mask of the same shape with at least one True per row. `above` counts the candidates that
    beat the best right one, `tied` those with its score (itself included). Every recall@k follows from these.
    """
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    return np.stack([(scores > best).sum(axis=1), tied.sum(axis=1), (tied & right).sum(axis=1)], axis=1)


def expected_recall(places: Sequence[Sequence[int]] | np.ndarray, k: int) -> np.ndarray:
    """Probability `[Q]` that a right candidate is among the first k when ties are broken at random.

    `places` comes from `ranks`. The k - above slots left for the tied group are a draw without replacement, so the probability
    of missing every right one is hypergeometric; a model that gives one score to everything is exactly at chance.
    """
    above, tied, right = np.asarray(places, np.int64).reshape(-1, 3).T
    slots = np.clip(k - above, 0, tied)
    missed = np.ones(len(above))
    for drawn in range(k):
        wrong_left, left = np.maximum(tied - right - drawn, 0), np.maximum(tied - drawn, 1)
        missed *= np.where(drawn < slots, wrong_left / left, 1.0)
    return 1 - missed


@lru_cache(maxsize=4)
def _draws(n: int) -> np.ndarray:
    """How often each of n images occurs in each resample, float32 `[RESAMPLES, n]`; the same for every metric, so that
    the intervals of two models over the same images use the same resamples."""
    rng = np.random.default_rng(0)
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)]).astype(np.float32)


def t_interval(values: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of a few values (Student t; wide for two)."""
    from scipy.special import stdtrit  # a slow import that single-seed reports do not need

    count, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return mean - half, mean + half
