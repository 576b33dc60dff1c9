"""Per-sample records as numbers: what paired comparisons are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from eval.report.results import Cell, read_jsonl

CLOSE = 1e-3  # a recomputed value may differ from the one in the table by this share of it


@dataclass(frozen=True, eq=False)
class Answers:
    """The records of one file: each line's sample and its numbers (True and False count as 1 and 0, NaN where it has none)."""

    names: list[str]  # sample keys
    sample: np.ndarray  # [lines], index into names
    fields: dict[str, np.ndarray]  # [lines] each

    def totals(self, field: str, weight: str = "") -> dict[str, tuple[float, float]]:
        """Per sample (sum of `field`, sum of `weight` or number of lines), over the lines that have the field."""
        if field not in self.fields or (weight and weight not in self.fields):
            return {}
        values = self.fields[field]
        weights = np.nan_to_num(self.fields[weight]) if weight else np.ones(len(values))
        has = ~np.isnan(values)
        sums = np.bincount(self.sample[has], values[has], len(self.names))
        counts = np.bincount(self.sample[has], weights[has], len(self.names))
        there = np.bincount(self.sample[has], minlength=len(self.names)) > 0
        return {self.names[i]: (float(sums[i]), float(counts[i])) for i in np.flatnonzero(there)}


def read_answers(path: Path) -> Answers:
    """Read once, unless the file has changed since."""
    if not path.exists():
        return Answers([], np.empty(0, np.int64), {})
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _read(path: Path, _time: int, _size: int) -> Answers:
    index: dict[str, int] = {}
    sample, found = [], list[dict[str, float]]()
    for line in read_jsonl(path):
        if "key" in line:
            sample.append(index.setdefault(str(line["key"]), len(index)))
            found.append({name: float(value) for name, value in line.items() if isinstance(value, int | float)})
    fields = {name: np.array([line.get(name, np.nan) for line in found]) for name in dict.fromkeys(name for line in found for name in line)}
    return Answers(list(index), np.array(sample, np.int64), fields)


def totals_of(cell: Cell | None) -> dict[str, tuple[float, float]]:
    """The cell's (sum, count) per sample, or {} where they do not add up to its value (a statistic of all answers, say)."""
    if cell is None or cell.value is None or cell.records is None or not cell.field:
        return {}
    totals = read_answers(cell.records).totals(cell.field, cell.weight)
    counted = sum(count for _, count in totals.values())
    value = sum(total for total, _ in totals.values()) / counted if counted else float("nan")
    return totals if abs(value - cell.value) <= CLOSE * max(1.0, abs(cell.value)) else {}
