"""Is A better than B? A paired bootstrap over the samples both were judged on.

Both rows are resampled with the same draws, so that what makes a sample hard for everyone cancels. Where a row has several
seeds they are resampled too: the interval then covers training luck as far as so few seeds can show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.results import Cell, Key, read_jsonl
from eval.report.rows import Row

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """How much better A is than B (positive is better, also for metrics where less is more), with a 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        return self.low > 0


def differences(rows: list[Row], keys: list[Key]) -> dict[Key, dict[tuple[int, int], Difference]]:
    """Per metric, for every ordered pair of row numbers that have records for it, the difference A - B."""
    found: dict[Key, dict[tuple[int, int], Difference]] = {}
    read: dict[Path, list[dict[str, Any]]] = {}
    for key in keys:
        samples = {index: runs for index, row in enumerate(rows) if (runs := row_samples(row, key, read))}
        shared = set.intersection(*(set(run) for runs in samples.values() for run in runs)) if samples else set()
        if len(samples) < 2 or len(shared) < 2:
            continue
        replicates = resample(samples, sorted(shared))
        sign = -1 if rows[next(iter(samples))].value(key).better == "lower" else 1
        found[key] = {}
        for a, (mean_a, draws_a) in replicates.items():
            for b, (mean_b, draws_b) in replicates.items():
                if a != b:
                    low, high = np.quantile(sign * (draws_a - draws_b), (0.025, 0.975))
                    found[key][a, b] = Difference(sign * (mean_a - mean_b), float(low), float(high))
    return found


def row_samples(row: Row, key: Key, read: dict[Path, list[dict[str, Any]]]) -> list[dict[str, tuple[float, int]]]:
    """Per seed {sample key: (sum, count)}; empty unless every seed has usable records."""
    runs = []
    for result in row.results:
        cell = result.by_key.get((key, "model"))
        run = cell_samples(cell, read) if cell and cell.better != "neither" else {}
        if not run:
            return []
        runs.append(run)
    return runs


def cell_samples(cell: Cell, read: dict[Path, list[dict[str, Any]]]) -> dict[str, tuple[float, int]]:
    """The cell's records grouped by sample, or {} where their mean is not the cell's value (a corpus-level metric, say)."""
    if cell.value is None or cell.records is None:
        return {}
    if cell.records not in read:
        read[cell.records] = [line for line in read_jsonl(cell.records) if "header" not in line]
    grouped: dict[str, tuple[float, int]] = {}
    for line in read[cell.records]:
        value = line.get(cell.field)
        if isinstance(value, int | float) and "key" in line:  # True and False count as 1 and 0
            total, count = grouped.get(str(line["key"]), (0.0, 0))
            grouped[str(line["key"])] = (total + float(value), count + 1)
    counted = sum(count for _, count in grouped.values())
    mean = sum(total for total, _ in grouped.values()) / counted if counted else float("nan")
    return grouped if abs(mean - cell.value) < 1e-3 else {}


def resample(samples: dict[int, list[dict[str, tuple[float, int]]]], names: list[str]) -> dict[int, tuple[float, np.ndarray]]:
    """Per row its mean over seeds and samples, and bootstrap replicates of it [RESAMPLES] from draws of samples that all rows share."""
    runs = [run for row_runs in samples.values() for run in row_runs]
    totals = np.array([[run[name] for run in runs] for name in names], dtype=np.float32)  # [N, runs, 2]: sum, count
    drawn = (draws(len(names)) @ totals.reshape(len(names), -1)).reshape(RESAMPLES, len(runs), 2)
    means, shares = totals.sum(0), drawn[:, :, 0] / np.maximum(drawn[:, :, 1], 1e-9)  # [runs, 2], [R, runs]
    found, start, rng = {}, 0, np.random.default_rng(1)
    for row, row_runs in samples.items():
        mine = slice(start, start := start + len(row_runs))
        seeds = rng.integers(len(row_runs), size=(RESAMPLES, len(row_runs)))  # [R, seeds]
        mean = float((means[mine, 0] / means[mine, 1]).mean())
        found[row] = mean, np.take_along_axis(shares[:, mine], seeds, axis=1).mean(axis=1)
    return found


@lru_cache(maxsize=8)
def draws(count: int) -> np.ndarray:
    """How often each of `count` samples is drawn in each replicate, float32 [RESAMPLES, count]."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float32)
