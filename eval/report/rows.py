"""Group evaluated runs into table rows and aggregate their numbers over seeds, with intervals.

A row is one *experiment*: the runs that share model, preset, training data and recipe, and differ only by seed. Runs that differ in
anything else, such as the learning rate, form another row, labelled with the difference. So unlike runs are never averaged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from eval.base.metrics import t_interval
from eval.report import words
from eval.report.results import CONTROL_ORDER, Cell, Key, Result, is_below
from eval.tasks import headlines

# Recipe fields that affect where and how fast a run was executed, but not its result. `data` is a path; the row has the data set's name.
CIRCUMSTANCES = {"seed", "data", "device", "compile", "workers", "memory_gb", "save_minutes", "log", "micro_batch"}
ADD_UP = {"samples_seen", "train_seconds", "train_flops"}  # costs that include those of the prerequisites
PARADIGM_ORDER = ("contrastive", "masking", "generative", "pretrained backbones", "training-free")  # others follow in alphabetical order
UNEXPLAINED = "The reason is not known."
IN_DISTRIBUTION = ("test", "val", "train")  # splits from the training distribution, in order of preference; all others are shifts


@dataclass(frozen=True, kw_only=True)
class Row:
    """One experiment on one data set."""

    page: str
    stage: str = ""  # training stage after which the model was saved; "" for the finished model
    paradigm: str
    preset: str
    trained_on: str
    difference: str = ""  # how its recipe differs from other rows of the same model, preset and data, as text
    varying: dict[str, Any] = field(default_factory=dict)  # the recipe fields that differ
    name: str = ""  # page and stage, and in brackets whatever distinguishes the row from others of that page
    results: tuple[Result, ...]  # one per seed

    @property
    def seeds(self) -> str:
        return words.count(len(self.results), "seed").replace(" ", "\N{NO-BREAK SPACE}")

    @property
    def detail(self) -> str:
        unfinished = not self.stage and any(result.run.cost.get("finished") is False for result in self.results)
        stale = next((result.stale for result in self.results if result.stale), "")
        remarks = [self.difference, "training unfinished" * unfinished, stale]
        return " · ".join(filter(None, [self.preset, self.trained_on, self.seeds, *remarks]))

    def value(self, key: Key, variant: str = "model") -> Value:
        return combine([result.by_key.get((key, variant)) for result in self.results], self.page, self.stage)

    def note(self, task: str) -> str:
        """The model's explanation of its result in a task (`Model.notes`); "" if it gives none."""
        return next((note for result in self.results if (note := result.notes.get(task))), "")

    @property
    def label(self) -> str:
        return f"{self.page} after {self.stage}" if self.stage else self.page

    def cost(self, name: str) -> Any:
        """A field of cost.json: the mean over seeds of a number, or the distinct values of a text. None unless every seed has it.

        Training costs include those of the prerequisite runs.
        """
        values = [cost_of(result, name) for result in self.results]
        if any(value is None for value in values):
            return None
        numbers = [value for value in values if isinstance(value, int | float)]
        return sum(numbers) / len(numbers) if len(numbers) == len(values) else ", ".join(dict.fromkeys(map(str, values)))


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number as shown in a table; `how` describes its interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = "share"
    status: str = ""
    note: str = ""
    adapter: str = ""
    how: str = ""
    better: str = "higher"


def to_rows(results: list[Result]) -> list[Row]:
    """Rows of one data set, sorted by paradigm, page name and stage (the finished model first); seeds in ascending order."""
    families: dict[tuple[str, str, str, str, str], dict[str, list[Result]]] = {}
    for result in sorted(results, key=lambda result: (result.seed, result.run.name)):
        family = families.setdefault((result.paradigm, result.page, result.stage, result.preset, result.trained_on), {})
        same = json.dumps(substance(result), sort_keys=True)
        while any(other.seed == result.seed for other in family.get(same, [])):
            same += " again"  # a second run of a seed is not another seed: it gets a row of its own
        family.setdefault(same, []).append(result)

    rows: list[Row] = []
    for (paradigm, page, stage, preset, trained_on), family in families.items():
        recipes = [substance(group[0]) for group in family.values()]
        fields = dict.fromkeys(name for recipe in recipes for name in recipe)
        differing = [name for name in fields if len({str(recipe.get(name)) for recipe in recipes}) > 1]
        for index, group in enumerate(family.values()):
            varying = {name: recipes[index].get(name) for name in differing}
            repeats = recipes[index] in recipes[:index]
            difference = (
                f"{group[0].run.name}, a repetition" if repeats else ", ".join(f"{name}={value}" for name, value in varying.items())
            )
            about = {"page": page, "stage": stage, "paradigm": paradigm, "preset": preset, "trained_on": trained_on}
            rows.append(Row(**about, results=tuple(group), difference=difference, varying=varying))

    rows = [replace(row, name=distinct_name(row, rows)) for row in rows]
    return sorted(rows, key=lambda row: (*place(row.paradigm), row.page, row.stage, row.preset, row.trained_on))


def place(paradigm: str) -> tuple[int, str]:
    """Sort key of a paradigm."""
    return PARADIGM_ORDER.index(paradigm) if paradigm in PARADIGM_ORDER else len(PARADIGM_ORDER), paradigm


def cost_of(result: Result, name: str) -> Any:
    if name == "inference_flops":
        return result.inference_flops
    return result.run.spent(name) if name in ADD_UP else result.run.cost.get(name)


def distinct_name(row: Row, rows: list[Row]) -> str:
    """The page's name, followed by whatever distinguishes this row from the page's other rows."""
    others = [other for other in rows if other.label == row.label]
    apart = [
        part
        for part, values in ((row.preset, {o.preset for o in others}), (row.trained_on, {o.trained_on for o in others}))
        if len(values) > 1
    ]
    apart += [row.difference] if row.difference else []
    return f"{row.label} ({', '.join(apart)})" if apart else row.label


def substance(result: Result) -> dict[str, Any]:
    """The recipe without `CIRCUMSTANCES`, flattened to the form {"optim.lr": 0.001}."""
    flat: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in CIRCUMSTANCES:
                    walk(inner, f"{path}.{name}" if path else name)
        elif value != []:  # an empty list of stages or prerequisites is the same as a missing one
            flat[path] = value

    walk({name: value for name, value in result.run.recipe.items() if name not in ("page", "stage")}, "")  # missing in older runs
    return flat


def combine(cells: list[Cell | None], page: str, stage: str = "") -> Value:
    """Combine the cells of all seeds: mean and 95 % Student t interval over seeds. A single seed keeps its bootstrap interval."""
    present = [cell for cell in cells if cell is not None]
    valued = [cell for cell in present if cell.value is not None]
    if not valued:
        absent = present[0] if present else None
        return Value(
            status=(absent.status if absent else "") or "not run",
            note=absent.note if absent else missing(page, stage),
        )
    first = valued[0]
    values = [cell.value for cell in valued if cell.value is not None]
    mean = sum(values) / len(values)
    low, high, how = first.low, first.high, "95 % bootstrap over samples, 1 seed"
    if len(values) > 1:
        low, high = t_interval(values)
        if first.unit == "share":
            low, high = max(low, 0.0), min(high, 1.0)
        how = f"95 % over {len(values)} seeds"
    note = first.note if len(valued) == len(cells) else f"{len(valued)} of {len(cells)} seeds have a value. {first.note}".strip()
    return Value(value=mean, low=low, high=high, n=first.n, unit=first.unit, note=note, adapter=first.adapter, how=how, better=first.better)


def missing(page: str, stage: str) -> str:
    return f"not evaluated after stage {stage}: see the row {page}" if stage else f"not in the result file; make eval-{page} runs it"


def keys(results: list[Result]) -> list[Key]:
    """The keys of all results: tasks in the order of the overview, in-distribution splits first, metrics in order of first occurrence."""
    found = dict.fromkeys(cell.key for result in results for cell in result.cells)
    tasks, splits, metrics = (list(dict.fromkeys(key[part] for key in found)) for part in range(3))
    known = list(headlines())
    tasks.sort(key=lambda task: known.index(task) if task in known else len(known))
    splits.sort(key=lambda split: IN_DISTRIBUTION.index(split) if split in IN_DISTRIBUTION else len(IN_DISTRIBUTION))
    return sorted(found, key=lambda key: (tasks.index(key.task), splits.index(key.split), metrics.index(key.metric)))


def other_adapters(row: Row) -> list[str]:
    """Variants in which the trained model is evaluated through another adapter, such as "by embedding similarity"."""
    return list(dict.fromkeys(cell.variant for result in row.results for cell in result.cells if cell.variant.startswith("by ")))


def control_variants(results: list[Result]) -> list[str]:
    """Variants other than the trained model, chance and oracle first."""
    found = dict.fromkeys(cell.variant for result in results for cell in result.cells)
    found = {name: None for name in found if name != "model" and not name.startswith("by ")}
    return sorted(found, key=lambda name: CONTROL_ORDER.index(name) if name in CONTROL_ORDER else len(CONTROL_ORDER))


def control(rows: list[Row], key: Key, variant: str) -> Value:
    """Mean of a control over all runs, with the range if they differ. Chance and oracle depend on the data only and should agree."""
    found = [cell for row in rows for result in row.results if (cell := result.by_key.get((key, variant)))]
    cells = [cell for cell in found if cell.value is not None]
    values = [cell.value for cell in cells if cell.value is not None]
    if not values:
        return Value(status=found[0].status, note=found[0].note) if found else Value()  # not every task has every control
    spread = max(values) - min(values) > 1e-6
    return Value(
        value=sum(values) / len(values),
        low=min(values) if spread else None,
        high=max(values) if spread else None,
        n=cells[0].n,
        unit=cells[0].unit,
        note=cells[0].note,
        how="range over runs" if spread else "",
    )


def below(rows: list[Row], row: Row, key: Key) -> str:
    """A remark on a number below chance: its value, the adapter, other adapters that are not below chance, and the model's explanation.
    "" if the number is not below chance."""
    chance, value = control(rows, key, "chance").value, row.value(key)
    if value.value is None or not is_below(value.low, value.high, chance, value.better):
        return ""
    found = below_chance(row.name, key, value, chance)
    for variant in other_adapters(row):
        other = row.value(key, variant)
        if other.value is not None and not is_below(other.low, other.high, chance, other.better):
            found += f" {variant[:1].upper()}{variant[1:]}: {words.quantity(other.value, other.unit)}."
    return f"{found} {row.note(key.task) or UNEXPLAINED}"


def below_chance(name: str, key: Key, value: Value, chance: float | None) -> str:
    """The sentence that states that a number is below chance, without an explanation."""
    number, low, high, guess = (words.quantity(each, value.unit) for each in (value.value, value.low, value.high, chance))
    made = f", by {value.adapter}" if value.adapter else ""
    where = "" if key.split == "test" else f" ({key.split})"
    return f"{name}, {key.task} {key.metric}{where}: {number} ({low}\N{EN DASH}{high}), chance {guess}{made}."
