"""Define the columns of the report's tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import words
from eval.report.headline import headline
from eval.report.results import Key
from eval.report.rows import Row
from eval.tasks import headlines

LOOKING_AWAY = ("shuffled images", "blank images")  # controls without the correct image
ATTRIBUTES = ("shape", "colour", "size", "fill", "relation", "count", "exist", "match")
PARTS = {"text", "image"}  # scores that are summarised by a group score


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number per row. With `minus`, the improvement over that control."""

    group: str
    label: str
    title: str
    key: Key
    minus: str = ""


@dataclass(frozen=True)
class CostColumn:
    label: str
    title: str
    field: str  # field of cost.json, or inference_flops
    show: Callable[[Any], str]


COSTS = (
    CostColumn("samples", "training samples seen, prerequisites included", "samples_seen", words.si),
    CostColumn("trained", "trainable parameters", "trainable_parameters", words.si),
    CostColumn("total", "all parameters, frozen ones included", "total_parameters", words.si),
    CostColumn("train FLOP", "floating-point operations of the whole training, prerequisites included", "train_flops", words.si),
    CostColumn("train time", "training wall-clock, prerequisites included, on the hardware named", "train_seconds", words.duration),
    CostColumn("FLOP / image", "floating-point operations to embed or describe one image", "inference_flops", words.si),
    CostColumn("memory", "peak memory of training", "peak_memory_mb", words.memory),
    CostColumn("hardware", "where it was trained", "hardware", lambda value: words.MISSING if value is None else str(value)),
)


def overview_columns(keys: Sequence[Key], rows: Sequence[Row]) -> list[Column]:
    """The headline metrics. The split is named if it differs from the first one, which most tasks use."""
    home = keys[0].split if keys else ""
    return [_column(key, key.task if key.split == home else f"{key.task} · {key.split}", rows) for key in headline(list(keys))]


def task_columns(task: str, keys: Sequence[Key], rows: Sequence[Row]) -> list[Column]:
    """All metrics of a task grouped by split, followed by the image use of its headline metrics."""
    of_task = [key for key in keys if key.task == task]
    shown = [_column(key, key.split, rows) for key in of_task]
    for key in headline(of_task) or of_task[:1]:
        shown += _use(key, rows, f"image use · {key.split}", key.metric)
    return shown


def use_columns(keys: Sequence[Key], rows: Sequence[Row]) -> list[Column]:
    """The image use of each task's first headline metric."""
    known = [*headline(list(keys)), *keys]
    firsts = [next(key for key in known if key.task == task) for task in dict.fromkeys(key.task for key in keys)]
    return [column for key in firsts for column in _use(key, rows, f"{key.task} {spoken(key.metric)}", "")]


def attribute_columns(keys: Sequence[Key], rows: Sequence[Row]) -> list[Column]:
    """For each attribute of the embedded data, each task's first metric that concerns only this attribute, on the task's first split.
    Foils have two columns, one for replaced and one for swapped attributes."""
    found: dict[tuple[str, str, str], Column] = {}
    for attribute in ATTRIBUTES:
        for key in keys:
            said = re.findall(r"[a-z0-9]+", key.metric.lower())
            first_split = next(other.split for other in keys if other.task == key.task)
            alone = [name for name in ATTRIBUTES if name in said] == [attribute]
            if alone and key.split == first_split and headlines().get(key.task) != () and not PARTS & set(said):
                way = next((word for word in ("replace", "swap") if word in said), "")
                found.setdefault((attribute, key.task, way), _column(key, attribute, rows, f"{key.task} {way}".strip()))
    return list(found.values())


def spoken(metric: str) -> str:
    """The metric's name with spaces, so that narrow columns can break it."""
    return metric.replace("_", " ").replace("+", " + ")


def _column(key: Key, group: str, rows: Sequence[Row], label: str = "") -> Column:
    notes = dict.fromkeys(value.note for row in rows if (value := row.value(key)).value is not None and value.note)
    title = "; ".join([f"{key.task}, {key.split}: {key.metric}", *notes])
    return Column(group=group, label=label or spoken(key.metric), title=title, key=key)


def _use(key: Key, rows: Sequence[Row], group: str, metric: str) -> list[Column]:
    """Image use columns, one per control without the correct image; empty if no such control was run."""
    asked = [control for control in LOOKING_AWAY if any(row.value(key, control).value is not None for row in rows)]
    return [
        Column(
            group=group,
            label=f"{spoken(metric)} {words.MINUS}\N{NO-BREAK SPACE}{control.split()[0]}".strip(),
            title=f"{key.task}, {key.split}: {key.metric}, improvement with own images over {control}",
            key=key,
            minus=control,
        )
        for control in asked
    ]
