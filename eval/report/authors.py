"""Published weights: the scores that their authors give beside ours, with the causes of a difference.

eval/authors/ has a file for each known model: the names of its weights (`WEIGHTS=`) and figures with source and protocol. A figure with
`confirmed: false` was found in a listing only, and not in a model card, paper or repository of the authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data.fields import check_types
from data.files import read_json

FOLDER = Path(__file__).parent.parent / "authors"
HEADS = ("task", "measure", "data", "authors", "ours", "95 %", "why they differ")
Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A score that is published for some weights, in 0..1."""

    task: str
    metric: str  # ours begins with it: retrieval's have the size of their gallery behind
    data: tuple[str, ...]  # names that the data set may begin with
    value: float
    source: str
    protocol: str
    confirmed: bool = True
    images: int = 0  # that were evaluated; 0 if unknown
    differs: tuple[str, ...] = ()  # of our harness, whatever the data


@dataclass(frozen=True)
class Comparison:
    figure: Figure
    ours: float | None = None  # None: not measured on this data set
    low: float | None = None
    high: float | None = None
    why: str = ""

    def row(self) -> list[str]:
        """The cells of a table under `HEADS`."""
        figure = self.figure
        theirs = _percent(figure.value) + ("" if figure.confirmed else " (unconfirmed)")
        interval = "" if self.low is None or self.high is None else f"{_percent(self.low)}-{_percent(self.high)}"
        return [figure.task, figure.metric, figure.data[0], theirs, _percent(self.ours), interval, self.why]


def comparisons(result: Mapping[str, Any]) -> list[Comparison]:
    """Of an eval.json's content, in the order of the figures; [] for weights of which no figure is known. On another data set than a
    figure's, there is nothing of ours beside it."""
    return [_compared(figure, result) for figure in figures(str(result.get("published", "")))]


def figures(weights: str) -> tuple[Figure, ...]:
    """The figures known for `WEIGHTS=`; a copy of a hub's folder is known by its name, or by that of the hub's cache."""
    return next((found for names, found in _known() if any(_same(weights, name) for name in names)), ())


def _same(weights: str, name: str) -> bool:
    source, _, path = weights.partition(":")
    hub, _, known = name.partition(":")
    if hub != "hf" or source not in ("hf", "open_clip"):
        return weights == name
    path = path.removeprefix("hf-hub:").rstrip("/")
    parts = path.split("/")
    local = path.startswith(("/", ".", "~"))
    cached = f"models--{known.replace('/', '--')}" in parts
    return path == known or path.endswith(f"/{known}") or cached or (local and parts[-1] == known.split("/")[-1])


@cache
def _known() -> list[tuple[tuple[str, ...], tuple[Figure, ...]]]:
    """Raises FileError for a broken file."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        content = read_json(path)
        found.append((tuple(content["weights"]), tuple(_figure(each) for each in content["figures"])))
    return found


def _figure(values: dict[str, Any]) -> Figure:
    check_types(Figure, values)
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Figure(**found)


def _compared(figure: Figure, result: Mapping[str, Any]) -> Comparison:
    dataset = re.sub(r"[^a-z0-9]", "", str(result["dataset"]).lower())
    if not dataset.startswith(figure.data):
        return Comparison(figure, why=f"measured on {figure.data[0]}: TEST=<its shards>")
    cell = _ours(figure, result["cells"])
    if cell is None or cell["value"] is None:
        return Comparison(figure, why=(cell or {}).get("note") or "not run on this data set")
    low, high = cell.get("low"), cell.get("high")
    if low is not None and high is not None and low <= figure.value <= high:
        return Comparison(figure, cell["value"], low, high, "no difference beyond chance")
    causes = []
    count = _images(cell)
    if figure.images and count and count != figure.images:
        causes.append(f"{count:,} images instead of {figure.images:,}")
    if result.get("limit"):
        causes.append(f"only {result['limit']:,} samples (--limit)")
    causes += figure.differs
    if cell.get("adapter") and "embedding" not in str(cell["adapter"]) and figure.task == "retrieval":
        causes.append(f"by {cell['adapter']}")
    return Comparison(figure, cell["value"], low, high, "; ".join(causes) or f"unknown; their protocol: {figure.protocol}")


def _ours(figure: Figure, cells: Cells) -> Mapping[str, Any] | None:
    """The model's cell of this figure: on the first split, of the largest gallery, by embeddings where there are several rows."""
    found = [cell for cell in cells if cell["variant"] == "model" and cell["task"] == figure.task and _is(cell["metric"], figure.metric)]
    found = [cell for cell in found if cell["split"] == found[0]["split"]]
    return max(found, key=lambda cell: (_images(cell), "re-rank" not in str(cell.get("adapter", ""))), default=None)


def _is(metric: str, name: str) -> bool:
    return metric == name or metric.startswith(f"{name} (")


def _images(cell: Mapping[str, Any]) -> int:
    """Those of the gallery that the metric names, else the number of answers; 0 if unknown."""
    gallery = re.search(r"\((\d[\d,]*)", cell["metric"])
    return int(gallery[1].replace(",", "")) if gallery else int(cell.get("n") or 0)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
