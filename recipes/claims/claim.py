"""A paper's claim as a controlled experiment. A page declares its `CLAIMS`, `make claims-<page>` tests them.

    Claim(
        name="bias",
        sentence="A bias that starts at -10 learns better than one that starts at 0.",
        paper="table 4: 63.0 against 61.7, ImageNet top-1 in %",
        base=lambda recipe: replace(recipe, budget=64_000),
        arms=(Arm("b = -10"), Arm("b = 0", lambda recipe: replace(recipe, model=replace(recipe.model, bias=0.0)))),
        metric=Cell("retrieval", "i2t R@1 (500)"),
    )

The first arm should come out best; it is compared with each of the others, seed by seed. Arms are changes of one recipe, other
pages (across paradigms), or other metrics of the same run (another prompt, another decoding).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from eval.report.answers import totals_of
from eval.report.results import Key, Run, read_result
from recipes.train.recipe import AnyRecipe

Change = Callable[[AnyRecipe], AnyRecipe]


class ClaimError(ValueError):
    """A claim that cannot be tested as it is declared."""


@dataclass(frozen=True)
class Measurement:
    """The value of a metric for one run. `samples` (key -> sum and count; the value is the ratio of their totals) allow a bootstrap;
    empty where the metric is not a mean over samples."""

    value: float
    samples: dict[str, tuple[float, float]] = field(default_factory=dict)


class Metric(Protocol):
    @property
    def about(self) -> str:
        """A description for the report. It must differ for metrics that can have different values."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the harness that must have been evaluated."""

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        """The metric of the finished run in `folder`, evaluated on `dataset`. Raises ClaimError without a number."""


@dataclass(frozen=True)
class Cell:
    """A number of the harness: a cell of eval.json."""

    task: str
    metric: str
    split: str = "test"
    variant: str = "model"

    @property
    def about(self) -> str:
        other = "" if self.variant == "model" else f", {self.variant}"
        return f"{self.task} {self.metric}, {self.split}{other}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,)

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        result = read_result(Run(folder.name, folder), folder / "eval" / dataset)
        cell = result.by_key.get((Key(self.task, self.split, self.metric), self.variant))
        if cell is None or cell.value is None:
            known = ", ".join(key.metric for key, variant in result.by_key if (key.task, key.split, variant) == self._place)
            why = f"{cell.status}: {cell.note}" if cell else f"no such cell; {self.task} has: {known or 'none'}"
            raise ClaimError(f"{folder}/eval/{dataset}: {self.about} has no value ({why})")
        return Measurement(cell.value, totals_of(cell))

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.task, self.split, self.variant


@dataclass(frozen=True)
class Minus:
    """The difference of two cells of one run: accuracy lost under a shift, or against a control."""

    cell: Cell
    other: Cell

    @property
    def about(self) -> str:
        return f"{self.cell.about}, minus {self.other.about}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.cell.tasks, *self.other.tasks)

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        one, other = (cell.measure(folder, recipe, dataset) for cell in (self.cell, self.other))
        return Measurement(one.value - other.value)


@dataclass(frozen=True)
class Measured:
    """Any number of a finished run: `function(folder, recipe)` returns a value for every sample, by its key, or one for all."""

    name: str
    function: Callable[[Path, AnyRecipe], dict[str, float] | float]

    @property
    def about(self) -> str:
        return self.name

    @property
    def tasks(self) -> tuple[str, ...]:
        return ()

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        found = self.function(folder, recipe)
        if isinstance(found, dict):
            return Measurement(sum(found.values()) / len(found), {key: (value, 1) for key, value in found.items()})
        return Measurement(found)


def unchanged(recipe: AnyRecipe) -> AnyRecipe:
    return recipe


@dataclass(frozen=True)
class Arm:
    """One side of an experiment."""

    name: str
    change: Change = unchanged
    """of the claim's base recipe"""
    page: str = ""
    """another page than the claim's; needed where the claim's page has no presets"""
    metric: Metric | None = None
    """instead of the claim's: the same run, measured in another way"""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and the experiment that tests it."""

    name: str
    """of its result file: lower-case letters, digits and hyphens"""
    sentence: str
    """the paper's claim, in our words"""
    paper: str
    """its figures, with section or table"""
    arms: tuple[Arm, ...]
    metric: Metric
    better: Literal["higher", "lower"] = "higher"
    """whether the first arm's metric should be higher or lower than the others'"""
    base: Change = unchanged
    """the change that all arms share, such as a smaller budget"""
    note: str = ""
    """how the experiment differs from the paper's"""
    seeds: tuple[int, ...] = (0, 1, 2)
    same: bool = False
    """the arms are identical on purpose: a control, whose verdict should be that nothing was reproduced"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ClaimError(f"claim {self.name!r}: a name has lower-case letters, digits and hyphens only")
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ClaimError(f"claim {self.name}: expected two or more arms with names of their own, found {names}")

    def metric_of(self, arm: Arm) -> Metric:
        return arm.metric or self.metric


def flat(recipe: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"optim.lr": 0.001, "stages.0.batch": 96, ...} of a recipe as json."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found
