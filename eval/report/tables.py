"""The content of the tables: rows, columns and cells. HTML, Markdown and terminal output only lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase

from eval.report import words
from eval.report.columns import COSTS, Column, CostColumn
from eval.report.paired import Proofs, image_use
from eval.report.results import Key
from eval.report.rows import Row, Value, below, control, control_variants, other_adapters

ALIKE = 0.9  # minimum share of another row's samples: the denominator of a ratio (such as all "yes" answers) varies a little by model
SHARED_CONTROLS = ("chance", "oracle")  # the same for all models; all other controls are specific to a model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table cell."""

    text: str
    interval: str = ""
    title: str = ""
    mark: int | None = None  # footnote number
    below: str = ""  # remark, if the value is below chance
    adapter: str = ""  # letter of the adapter that computed the score, if the table contains several adapters
    sort: float | None = None
    fill: float | None = None  # position between chance (0) and the best possible value (1); negative below chance
    best: bool = False  # significantly better than every other row
    kind: str = "value"  # or "absent", "cost"


@dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    detail: str
    entries: list[Entry]

    @property
    def absent(self) -> Entry | None:
        """The common entry of all cells, if the whole line is missing for the same reason."""
        first = self.entries[0] if self.entries else None
        return first if first and first.text and all(entry == first and entry.kind == "absent" for entry in self.entries) else None


@dataclass(frozen=True, kw_only=True)
class Block:
    """The lines of one experiment: the main line, one line per other adapter, and one per run if there are several seeds."""

    paradigm: str
    line: Line
    others: list[Line]
    runs: list[Line]


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    groups: list[tuple[str, list[tuple[str, str]]]]  # [(group, [(column, tooltip)])]
    blocks: list[Block]
    controls: list[Line]
    remarks: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)  # remarks on values below chance

    @property
    def columns(self) -> list[str]:
        return [label for _, columns in self.groups for label, _ in columns]


class Footnotes(dict[str, int]):
    """Footnote texts, numbered in order of first use."""

    def number(self, reason: str) -> int:
        return self.setdefault(reason, len(self) + 1)


@dataclass(frozen=True, eq=False)
class TableMaker:
    """Builds the tables of one data set: one row per model, followed by the control rows."""

    rows: list[Row]
    proofs: Proofs
    footnotes: Footnotes
    _used: dict[tuple[tuple[str, ...], Key, str], Value] = field(default_factory=dict)

    def __call__(self, title: str, columns: Sequence[Column], *, overview: bool = False, controls: bool = True) -> Table:
        """Build one table. The overview spans all tasks, ends with cost columns and has one line per seed. Cells of all other tables are
        coloured by their distance from chance."""
        costs = COSTS if overview else ()
        letters = self._letters(columns)
        groups: dict[str, list[tuple[str, str]]] = {}
        for column in columns:
            groups.setdefault(column.group, []).append((column.label, column.title))
        if costs:
            groups["cost"] = [(cost.label, cost.title) for cost in costs]

        def line(row: Row, label: str, detail: str, variant: str = "model", index: int | None = None) -> Line:
            shown = [self._entry(self._value(row, column, variant), column, letters, heat=not overview) for column in columns]
            if index is not None:
                shown = [self._against_rivals(each, column, index) for each, column in zip(shown, columns, strict=True)]
                shown = [
                    replace(each, below="" if column.minus else below(self.rows, row, column.key))
                    for each, column in zip(shown, columns, strict=True)
                ]
            paid = [cost_entry(row, cost) if variant == "model" else Entry(text="", kind="cost") for cost in costs]
            return Line(label=label, detail=detail, entries=shown + paid)

        blocks = []
        for index, row in enumerate(self.rows):
            others = [numbers_only(line(row, row.label, variant, variant)) for variant in other_adapters(row)]
            singles = [replace(row, results=(result,)) for result in row.results] if overview and len(row.results) > 1 else []
            runs = [plainly(line(single, f"seed {single.results[0].seed}", single.results[0].run.name)) for single in singles]
            there = [other for other in others if any(each.text for each in other.entries)]
            blocks.append(Block(paradigm=row.paradigm, line=line(row, row.label, row.detail, index=index), others=there, runs=runs))
        return Table(
            title=title,
            groups=list(groups.items()),
            blocks=blocks,
            controls=self._controls(columns, len(costs)) if controls else [],
            remarks=[*scored_by(letters), *self._remarks(columns)],
            below=[each.below for block in blocks for each in block.line.entries if each.below],
        )

    def _value(self, row: Row, column: Column, variant: str) -> Value:
        if not column.minus:
            return row.value(column.key, variant)
        if variant != "model":
            return Value()
        place = (tuple(result.run.name for result in row.results), column.key, column.minus)
        if place not in self._used:
            self._used[place] = image_use(row, column.key, column.minus)
        return self._used[place]

    def _letters(self, columns: Sequence[Column]) -> dict[str, str]:
        """Adapter -> its letter, or "" if the table contains only one adapter."""
        variants = [(row, variant) for row in self.rows for variant in ("model", *other_adapters(row))]
        scored = [column.key for column in columns if not column.minus]
        names = {value.adapter for key in scored for row, v in variants if (value := row.value(key, v)).value is not None}
        known = sorted(names - {"", "none"})
        return {name: letter * (len(known) > 1) for name, letter in zip(known, ascii_lowercase, strict=False)}

    def _entry(self, value: Value, column: Column, letters: dict[str, str], *, heat: bool = False) -> Entry:
        if value.value is None:
            reason = value.note or "no reason given"
            return (
                Entry(text=value.status, title=reason, mark=self.footnotes.number(reason), kind="absent")
                if value.status
                else Entry(text="", kind="absent")
            )
        say = words.difference if column.minus else words.quantity
        interval = ""
        if value.low is not None and value.high is not None:
            interval = f"{say(value.low, value.unit)}\N{EN DASH}{say(value.high, value.unit)}"
        return Entry(
            text=say(value.value, value.unit),
            interval=interval,
            title="; ".join(filter(None, [f"n = {value.n}" if value.n else "", value.how, value.adapter])),
            adapter=letters.get(value.adapter, ""),
            sort=value.value,
            fill=self._from_chance(value, column) if heat and not column.minus else None,
        )

    def _from_chance(self, value: Value, column: Column) -> float | None:
        """(value - chance) / (best possible - chance), clipped to [-1, 1]; None if chance or the best possible value is unknown."""
        chance = control(self.rows, column.key, "chance").value
        top = 1.0 if value.unit == "share" and value.better == "higher" else control(self.rows, column.key, "oracle").value
        if value.value is None or value.better == "neither" or chance is None or top is None or abs(top - chance) < 1e-9:
            return None
        if value.low is not None and value.high is not None and value.low <= chance <= value.high:
            return 0.0  # not significantly different from chance
        return max(-1.0, min(1.0, (value.value - chance) / (top - chance)))

    def _against_rivals(self, shown: Entry, column: Column, index: int) -> Entry:
        """The entry of row `index`, marked if it is significantly better than all other rows or based on fewer samples than another."""
        if column.minus:
            return shown
        values, key = [row.value(column.key) for row in self.rows], column.key
        rivals = [other for other, value in enumerate(values) if other != index and value.value is not None]
        pairs = self.proofs.get(key, {})
        best = bool(rivals) and all((pair := pairs.get((index, other))) is not None and pair.proven for other in rivals)
        n, most = values[index].n, max((value.n for value in values if value.n), default=None)
        fewer = shown.kind == "value" and n is not None and most is not None and n < ALIKE * most
        reason = f"{key.task} {key.split}: {n} samples, while another row has {most}"
        return replace(shown, best=best, mark=self.footnotes.number(reason) if fewer else shown.mark)

    def _controls(self, columns: Sequence[Column], costs: int) -> list[Line]:
        lines = []
        for variant in control_variants([result for row in self.rows for result in row.results]):
            detail = "" if variant in SHARED_CONTROLS else "mean and range over models"
            values = [Value() if column.minus else control(self.rows, column.key, variant) for column in columns]
            if any(value.value is not None for value in values):
                shown = [self._entry(value, column, {}) for value, column in zip(values, columns, strict=True)]
                paid = [Entry(text="", kind="cost")] * costs
                lines.append(plainly(Line(label=variant, detail=detail, entries=shown + paid), interval=True))
        return lines

    def _remarks(self, columns: Sequence[Column]) -> list[str]:
        """Notes that all metrics of a task share, stated once per task."""
        notes: dict[tuple[str, str], list[str]] = {}
        for key in (column.key for column in columns if not column.minus):
            found = [value.note for row in self.rows if (value := row.value(key)).value is not None]
            notes.setdefault((key.task, key.split), []).extend(dict.fromkeys(found))
        common = {place: found[0] for place, found in notes.items() if len(found) > 1 and len(set(found)) == 1 and found[0]}
        return [
            f"{', '.join(f'{task} {split}' for (task, split), other in common.items() if other == note)}: {note}."
            for note in dict.fromkeys(common.values())
        ]


def plainly(line: Line, *, interval: bool = False) -> Line:
    """The line without tooltips: the main line of the experiment has them, and hundreds of copies would bloat the page."""
    bare = [replace(each, title="", fill=None, sort=None, interval=each.interval * interval) for each in line.entries]
    return replace(line, entries=bare)


def numbers_only(line: Line) -> Line:
    """The line without its missing entries: not every task runs through other adapters, and the model's main line gives the reasons."""
    return replace(line, entries=[each if each.kind == "value" else Entry(text="", kind=each.kind) for each in line.entries])


def cost_entry(row: Row, cost: CostColumn) -> Entry:
    value = row.cost(cost.field)
    note = cost.title if value is not None else f"{cost.title}: not recorded"
    return Entry(text=cost.show(value), title=note, sort=value if isinstance(value, int | float) else None, kind="cost")


def scored_by(letters: dict[str, str]) -> list[str]:
    """The legend of the adapter letters in a table."""
    legend = ", ".join(f"{letter} = {adapter}" if letter else adapter for adapter, letter in letters.items())
    return [f"Scored by: {legend}."] if legend else []
