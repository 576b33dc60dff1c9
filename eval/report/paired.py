"""Paired bootstrap over the samples that two sides have in common: is model A better than B, and does a model use its images?

Both sides are resampled with the same draws, so that the difficulty of a sample cancels out. If a row has several seeds, the seeds are
resampled as well, and the interval includes seed-to-seed variance, as far as a few seeds can show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eval.base.metrics import t_interval
from eval.report.answers import Totals, shared, sums_of
from eval.report.results import Key, Result
from eval.report.rows import Row, Value

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """How much better A is than B, with a 95 % interval. Positive means better, also for metrics where lower is better."""

    value: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        return self.low > 0


Proofs = dict[Key, dict[tuple[int, int], Difference]]


def differences(rows: list[Row], keys: list[Key]) -> Proofs:
    """For each metric, the difference A - B for every ordered pair of row indices with records."""
    found: Proofs = {}
    for key in keys:
        samples = {index: runs for index, row in enumerate(rows) if (runs := row_samples(row, key))}
        names = shared([run for runs in samples.values() for run in runs])
        if len(samples) < 2 or len(names) < 2:
            continue
        replicates = resample(samples, names)
        sign = -1 if rows[next(iter(samples))].value(key).better == "lower" else 1
        found[key] = {}
        for a, (mean_a, draws_a) in replicates.items():
            for b, (mean_b, draws_b) in replicates.items():
                if a < b:
                    value, (low, high) = sign * (mean_a - mean_b), interval(sign * (draws_a - draws_b))
                    found[key][a, b] = Difference(value, low, high)
                    found[key][b, a] = Difference(-value, -high, -low)
    return found


def row_samples(row: Row, key: Key) -> list[Totals]:
    """The per-sample totals of each seed; empty unless every seed has usable records."""
    cells = [result.by_key.get((key, "model")) for result in row.results]
    runs = [found for cell in cells if cell and cell.better != "neither" and (found := sums_of(cell))]
    return runs if len(runs) == len(cells) else []


def image_use(row: Row, key: Key, control: str) -> Value:
    """How much better the model does with its own images than with those of a control (such as `shuffled images`), on common samples.

    The value is the mean over seeds with a Student t interval; for a single seed the interval is a paired bootstrap.
    """
    found = [_use(result, key, control, resampled=len(row.results) == 1) for result in row.results]
    values = [each.value for each in found if each.value is not None]
    if len(values) < len(found) or len(found) == 1:
        return next((each for each in found if each.value is None), found[0])
    low, high = t_interval(values)
    how = f"own images minus {control}, 95 % over {len(values)} seeds"
    return Value(value=sum(values) / len(values), low=low, high=high, n=found[0].n, unit=found[0].unit, how=how)


def _use(result: Result, key: Key, control: str, *, resampled: bool) -> Value:
    own, other = result.by_key.get((key, "model")), result.by_key.get((key, control))
    if own is None or other is None or own.value is None or other.value is None:
        missing = next((cell for cell in (own, other) if cell and cell.value is None), None)
        return Value(status=missing.status if missing else "not run", note=missing.note if missing else f"no control with {control}")
    sign = -1 if own.better == "lower" else 1
    how = f"own images minus {control}"
    samples = [found for cell in (own, other) if (found := sums_of(cell))]
    names = shared(samples) if len(samples) == 2 else []
    if len(names) < 2:
        note = "not a mean over samples: no paired interval, and the control may have fewer samples"
        return Value(value=sign * (own.value - other.value), n=other.n, unit=own.unit, how=how, note=note)
    if not resampled:
        means = [total / max(count, 1e-9) for total, count in (each.among(names).sum(axis=0) for each in samples)]
        return Value(value=sign * float(means[0] - means[1]), n=len(names), unit=own.unit, how=how)
    (mean, draws_own), (mean_other, draws_other) = resample({0: samples[:1], 1: samples[1:]}, names).values()
    low, high = interval(sign * (draws_own - draws_other))
    how += f", 95 % paired bootstrap over {len(names)} samples, 1 seed"
    return Value(value=sign * (mean - mean_other), low=low, high=high, n=len(names), unit=own.unit, how=how)


def resample(samples: dict[int, list[Totals]], names: list[str]) -> dict[int, tuple[float, np.ndarray]]:
    """For each row its mean over seeds and samples, and bootstrap replicates [RESAMPLES] of it; all rows share the draws of samples."""
    runs = [run for row_runs in samples.values() for run in row_runs]
    totals = np.stack([run.among(names) for run in runs], axis=1).astype(np.float32)  # [N, runs, 2]: sum, count
    drawn = (draws(len(names)) @ totals.reshape(len(names), -1)).reshape(RESAMPLES, len(runs), 2)
    means, shares = totals.sum(0), drawn[:, :, 0] / np.maximum(drawn[:, :, 1], 1e-9)  # [runs, 2], [R, runs]
    found, start, rng = {}, 0, np.random.default_rng(1)
    for row, row_runs in samples.items():
        mine = slice(start, start := start + len(row_runs))
        seeds = rng.integers(len(row_runs), size=(RESAMPLES, len(row_runs)))  # [R, seeds]
        mean = float((means[mine, 0] / np.maximum(means[mine, 1], 1e-9)).mean())
        found[row] = mean, np.take_along_axis(shares[:, mine], seeds, axis=1).mean(axis=1)
    return found


def interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


@lru_cache(maxsize=8)
def draws(count: int) -> np.ndarray:
    """Number of times that each of `count` samples is drawn in each replicate, float32 [RESAMPLES, count]."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float32)
