"""Read per-sample records as numeric arrays, for paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eval import EvalError
from eval.report.results import Cell, read_jsonl

CLOSE = 1e-3  # relative tolerance between a recomputed value and the one in the table


@dataclass(frozen=True, eq=False)
class Totals:
    """A metric as one sum and one count per sample; the value is the ratio of their totals."""

    names: list[str]  # sample keys
    sums: np.ndarray  # [samples, 2]

    @property
    def value(self) -> float:
        total, count = self.sums.sum(axis=0)
        return float(total / count) if count else float("nan")

    def among(self, names: list[str]) -> np.ndarray:
        """`[names, 2]`: the rows of these samples, in this order."""
        if names == self.names:
            return self.sums
        place = {name: row for row, name in enumerate(self.names)}
        return self.sums[[place[name] for name in names]]


@dataclass(frozen=True, eq=False)
class Answers:
    """The records of one file: the sample and the numeric fields of each line (booleans as 0 and 1, NaN if missing)."""

    names: list[str]  # sample keys
    sample: np.ndarray  # [lines], index into names
    fields: dict[str, np.ndarray]  # [lines] each

    def totals(self, field: str, weight: str = "") -> Totals | None:
        """Per sample, the sum of `field` and the sum of `weight` (or the number of lines), over lines that have the field."""
        if field not in self.fields or (weight and weight not in self.fields):
            return None
        values = self.fields[field]
        weights = np.nan_to_num(self.fields[weight]) if weight else np.ones(len(values))
        has = ~np.isnan(values)
        sums = np.bincount(self.sample[has], values[has], len(self.names))
        counts = np.bincount(self.sample[has], weights[has], len(self.names))
        there = np.bincount(self.sample[has], minlength=len(self.names)) > 0
        if there.all():
            return Totals(self.names, np.stack([sums, counts], axis=1))
        return Totals([self.names[i] for i in np.flatnonzero(there)], np.stack([sums, counts], axis=1)[there])


def read_answers(path: Path) -> Answers:
    """Read a file, cached until it changes."""
    if not path.exists():
        return Answers([], np.empty(0, np.int64), {})
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _read(path: Path, _time: int, _size: int) -> Answers:
    index: dict[str, int] = {}
    sample: list[int] = []
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_records(path):
        if "key" in line:
            sample.append(index.setdefault(str(line["key"]), len(index)))
            for name, value in line.items():
                if isinstance(value, int | float) and abs(value) < 1e300:
                    places, values = found.setdefault(name, ([], []))
                    places.append(len(sample) - 1)
                    values.append(value)
    fields = {}
    for name, (places, values) in found.items():
        fields[name] = np.full(len(sample), np.nan)
        fields[name][places] = values
    return Answers(list(index), np.array(sample, np.int64), fields)


def read_records(path: Path) -> list[dict[str, Any]]:
    """None of a file that cannot be read: nothing is proven by it."""
    try:
        return read_jsonl(path)
    except EvalError:
        return []


def totals_of(cell: Cell | None) -> dict[str, tuple[float, float]]:
    """The cell's (sum, count) per sample; {} if they do not add up to its value, for example for a correlation."""
    found = sums_of(cell)
    return {name: (float(total), float(count)) for name, (total, count) in zip(found.names, found.sums, strict=True)} if found else {}


def sums_of(cell: Cell | None) -> Totals | None:
    """The cell's totals per sample; None if the records do not add up to its value."""
    if cell is None or cell.value is None or cell.records is None or not cell.field:
        return None
    found = read_answers(cell.records).totals(cell.field, cell.weight)
    return found if found and abs(found.value - cell.value) <= CLOSE * max(1.0, abs(cell.value)) else None


def shared(totals: Sequence[Totals]) -> list[str]:
    """The samples that all of `totals` have in common, in the order of the first."""
    names = totals[0].names if totals else []
    for other in totals[1:]:
        if other.names != names:
            known = set(other.names)
            names = [name for name in names if name in known]
    return names
