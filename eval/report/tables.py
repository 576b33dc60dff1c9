"""Tables as data: which rows, which columns, what each cell says. HTML, Markdown and the terminal only lay them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from eval.report import words
from eval.report.paired import Difference
from eval.report.results import Key
from eval.report.rows import Row, Value, control, control_variants

SHARED_CONTROLS = ("chance", "oracle")  # one row for all models; every other control belongs to a model


@dataclass(frozen=True)
class CostColumn:
    label: str
    title: str
    field: str  # of cost.json, or inference_flops
    show: Callable[[Any], str]


COSTS = (
    CostColumn("samples", "training samples seen", "samples_seen", words.si),
    CostColumn("trained", "trainable parameters", "trainable_parameters", words.si),
    CostColumn("total", "all parameters, frozen ones included", "total_parameters", words.si),
    CostColumn("train FLOP", "floating-point operations of the whole training", "train_flops", words.si),
    CostColumn("train time", "training wall-clock, on the hardware named", "train_seconds", words.duration),
    CostColumn("FLOP/image", "floating-point operations to embed or describe one image", "inference_flops", words.si),
    CostColumn("memory", "peak memory of training", "peak_memory_mb", words.memory),
    CostColumn("hardware", "where it was trained", "hardware", lambda value: words.MISSING if value is None else str(value)),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell as shown."""

    text: str
    interval: str = ""
    title: str = ""
    mark: int | None = None  # number of its footnote
    sort: float | None = None
    fill: float | None = None  # share of the way from chance (0) to the best possible (1); negative below chance
    best: bool = False  # proven better than every other row
    kind: str = "value"  # or "absent", "cost"


@dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    detail: str
    entries: list[Entry]


@dataclass(frozen=True, kw_only=True)
class Block:
    """An experiment: its line, and one line per run where it has several seeds."""

    paradigm: str
    line: Line
    runs: list[Line]


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    groups: list[tuple[str, list[tuple[str, str]]]]  # [(group, [(column, tooltip)])]
    blocks: list[Block]
    controls: list[Line]
    remarks: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [label for _, columns in self.groups for label, _ in columns]


class Footnotes(dict[str, int]):
    """Reasons, numbered as they are first met."""

    def number(self, reason: str) -> int:
        return self.setdefault(reason, len(self) + 1)


def make_table(
    title: str,
    rows: list[Row],
    keys: list[Key],
    proofs: dict[Key, dict[tuple[int, int], Difference]],
    footnotes: Footnotes,
    *,
    overview: bool = False,
) -> Table:
    """Models in rows, `keys` in columns under their split, then control rows.

    The overview spans tasks, ends with cost columns and has one row per kind of control; the table of a task fills its cells
    by their distance from chance and shows the controls of each model.
    """
    costs = COSTS if overview else ()
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        name = f"{key.task} · {key.split}" if overview else key.split
        notes = dict.fromkeys(value.note for row in rows if (value := row.value(key)).value is not None and value.note)
        groups.setdefault(name, []).append((key.metric.replace("_", " "), "; ".join([f"{key.task}, {key.split}: {key.metric}", *notes])))
    if costs:
        groups["cost"] = [(cost.label, cost.title) for cost in costs]

    def line(row: Row, index: int | None, label: str, detail: str) -> Line:
        entries = [entry(row.value(key), key, rows, footnotes, heat=not overview) for key in keys]
        if index is not None:
            entries = [against_rivals(shown, key, index, rows, proofs, footnotes) for shown, key in zip(entries, keys, strict=True)]
        return Line(label=label, detail=detail, entries=entries + [cost_entry(row, cost) for cost in costs])

    blocks = []
    for index, row in enumerate(rows):
        singles = [replace(row, results=(result,)) for result in row.results] if len(row.results) > 1 else []
        seeds = [line(single, None, f"seed {single.results[0].seed}", single.results[0].run.name) for single in singles]
        blocks.append(Block(paradigm=row.paradigm, line=line(row, index, row.model, row.detail), runs=seeds))

    controls = []
    for variant in control_variants([result for row in rows for result in row.results]):
        if variant in SHARED_CONTROLS:
            sources = [("", [control(rows, key, variant) for key in keys])]
        elif overview:
            sources = [("mean and range over models", [control(rows, key, variant) for key in keys])]
        else:
            sources = [(f"{row.name} · {row.seeds}", [row.value(key, variant) for key in keys]) for row in rows]
        for detail, values in sources:
            if any(value.value is not None for value in values):
                shown = [entry(value, key, rows, footnotes) for value, key in zip(values, keys, strict=True)]
                controls.append(Line(label=variant, detail=detail, entries=shown + [Entry(text="", kind="cost") for _ in costs]))
    return Table(title=title, groups=list(groups.items()), blocks=blocks, controls=controls, remarks=remarks(rows, keys))


def entry(value: Value, key: Key, rows: list[Row], footnotes: Footnotes, *, heat: bool = False) -> Entry:
    if value.value is None:
        reason = value.note or "no reason given"
        return Entry(text=value.status, title=reason, mark=footnotes.number(reason), kind="absent")
    interval = ""
    if value.low is not None and value.high is not None:
        interval = f"{words.quantity(value.low, value.unit)}\N{EN DASH}{words.quantity(value.high, value.unit)}"
    return Entry(
        text=words.quantity(value.value, value.unit),
        interval=interval,
        title="; ".join(filter(None, [f"n = {value.n}" if value.n else "", value.how, value.adapter, value.note])),
        sort=value.value,
        fill=from_chance(value, key, rows) if heat else None,
    )


def from_chance(value: Value, key: Key, rows: list[Row]) -> float | None:
    """(value - chance) / (best possible - chance), clipped to [-1, 1]; None where chance or the best possible is unknown."""
    chance = control(rows, key, "chance").value
    top = 1.0 if value.unit == "share" and value.better == "higher" else control(rows, key, "oracle").value
    if value.value is None or value.better == "neither" or chance is None or top is None or abs(top - chance) < 1e-9:
        return None
    if value.low is not None and value.high is not None and value.low <= chance <= value.high:
        return 0.0  # not told apart from chance
    return max(-1.0, min(1.0, (value.value - chance) / (top - chance)))


def against_rivals(
    shown: Entry, key: Key, index: int, rows: list[Row], proofs: dict[Key, dict[tuple[int, int], Difference]], footnotes: Footnotes
) -> Entry:
    """The entry of row `index`, marked when it is proven best, and when it was judged on fewer samples than another."""
    values = [row.value(key) for row in rows]
    rivals = [other for other, value in enumerate(values) if other != index and value.value is not None]
    pairs = proofs.get(key, {})
    best = bool(rivals) and all((pair := pairs.get((index, other))) is not None and pair.proven for other in rivals)
    n, most = values[index].n, max((value.n for value in values if value.n), default=None)
    fewer = shown.kind == "value" and n is not None and most is not None and n < most
    reason = f"{key.task} {key.split}: {n} samples, where another row has {most}"
    return replace(shown, best=best, mark=footnotes.number(reason) if fewer else shown.mark)


def cost_entry(row: Row, cost: CostColumn) -> Entry:
    value = row.cost(cost.field)
    note = cost.title if value is not None else f"{cost.title}: not recorded"
    return Entry(text=cost.show(value), title=note, sort=value if isinstance(value, int | float) else None, kind="cost")


def remarks(rows: list[Row], keys: list[Key]) -> list[str]:
    """What several cells say about themselves, said once: how they were scored, and notes on all metrics of a task."""
    adapters: dict[str, dict[str, None]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        values = [(row.name, value) for row in rows if (value := row.value(key)).value is not None]
        for name, value in values:
            adapters.setdefault(value.adapter, {})[name] = None
        notes.setdefault((key.task, key.split), []).extend(dict.fromkeys(value.note for _, value in values))
    said = [f"Scored by {adapter}: {', '.join(names)}." for adapter, names in adapters.items() if adapter]
    common = {place: found[0] for place, found in notes.items() if len(found) > 1 and len(set(found)) == 1 and found[0]}
    for note in dict.fromkeys(common.values()):
        said.append(f"{', '.join(f'{task} {split}' for (task, split), other in common.items() if other == note)}: {note}.")
    return said
