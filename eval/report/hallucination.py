"""Plot hallucination as ROC curves (true against false "yes" rate), from the records of the task `pope`.

A record has the true answer (`truth`, 1 or 0), the model's answer (`said`, 1 or 0, missing if it could not be parsed) and, for models
that score answers, the score of "yes" minus the score of "no" (`margin`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.answers import read_records
from eval.report.figures import look
from eval.report.plots import INK, label, panel, svg
from eval.report.results import Key
from eval.report.rows import Row

TASK = "pope"
CORNERS = 120  # points per curve: more are invisible at this size and bloat the page


def panels(rows: Sequence[Row], keys: Sequence[Key]) -> list[tuple[str, str]]:
    """(kind of question, figure) for each kind on the task's first split; [] without records."""
    split = next((key.split for key in keys if key.task == TASK), None)
    found: dict[str, list[tuple[Row, list[dict[str, Any]]]]] = {}
    for row in rows:
        for kind, records in _by_kind(row, split).items():
            found.setdefault(kind, []).append((row, records))
    return [(kind, _figure(kind, asked, rows)) for kind, asked in found.items()]


def rates(records: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """(yes rate on absent objects, yes rate on present objects). An answer that could not be parsed does not count as yes. None unless
    there are questions about both."""
    yes = {truth: [record.get("said") == 1 for record in records if record["truth"] == truth] for truth in (0, 1)}
    return (float(np.mean(yes[0])), float(np.mean(yes[1]))) if yes[0] and yes[1] else None


def curve(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """The same two rates at every threshold on the margin, from "never yes" to "always yes", as an array `[points, 2]`. Questions with
    equal margins share a point. Empty without margins, or without questions about both present and absent objects."""
    margins = [record.get("margin") for record in records]
    truth = np.array([record["truth"] for record in records], dtype=float)
    if any(margin is None for margin in margins) or not 0 < truth.sum() < len(truth):
        return np.empty((0, 2))
    order = np.argsort(-np.array(margins, dtype=float), kind="stable")
    sure, there = np.array(margins, dtype=float)[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)  # where a group of equal margins ends
    right, wrong = np.cumsum(there)[last] / there.sum(), np.cumsum(1 - there)[last] / (1 - there).sum()
    points = np.stack([np.append(0, wrong), np.append(0, right)], axis=1)
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), CORNERS)).round().astype(int))
    return points[kept]


def _by_kind(row: Row, split: str | None) -> dict[str, list[dict[str, Any]]]:
    """The records of the row's first seed, by kind of question."""
    files = dict.fromkeys(
        cell.records
        for cell in row.results[0].cells
        if cell.key.task == TASK and cell.key.split == split and cell.variant == "model" and cell.records
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for path in files:
        for record in read_records(path):
            if record.get("truth") in (0, 1) and isinstance(record.get("margin"), int | float | None):
                found.setdefault(str(record.get("kind") or _part(path)), []).append(record)
    return found


def _part(path: Path) -> str:
    """The kind of question from a file name: pope-random.test.model.jsonl has questions of kind random."""
    return path.name.split(".")[0].removeprefix(TASK).removeprefix("-") or TASK


def _figure(kind: str, asked: Sequence[tuple[Row, list[dict[str, Any]]]], rows: Sequence[Row]) -> str:
    with panel(3.1, 2.3) as (figure, axes):
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
        named = []
        for row, records in asked:
            colour, marker = look(row, rows)
            points, said = curve(records), rates(records)
            if len(points):
                axes.plot(*points.T, color=colour, linewidth=1.1, alpha=0.8)
            if said:
                axes.plot(*said, marker=marker, color=colour, markersize=5, linestyle="")
                named.append((*said, row.name, colour))
        axes.set(xlim=(-0.01, 1.01), ylim=(0, 1.03), xlabel="yes to absent objects", ylabel="yes to present objects")
        label(axes, named)
        return svg(figure, f"Hallucination, {kind}: true yes rate over false yes rate")
