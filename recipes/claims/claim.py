"""A paper's claim as a controlled experiment. A page declares its `CLAIMS`, `make claims-<page>` tests them.

    Claim(
        name="bias",
        sentence="A bias that starts at -10 learns better than one that starts at 0.",
        paper="table 4: 63.0 against 61.7, ImageNet top-1 in %",
        base=lambda recipe: replace(recipe, budget=64_000),
        arms=(Arm("b = -10"), Arm("b = 0", with_model(bias=0.0))),
        metric=Cell("retrieval", "i2t R@1 (500)"),
    )

The first arm is expected to be the best; it is compared with each of the others, seed by seed. Arms are changes to one recipe, other
pages (across paradigms), or other metrics of the same run (another prompt, another decoding method).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from eval.report.answers import totals_of
from eval.report.results import Key, Run, read_result
from recipes.train.recipe import AnyRecipe

Change = Callable[[AnyRecipe], AnyRecipe]


class ClaimError(ValueError):
    """A claim cannot be tested as declared."""


@dataclass(frozen=True)
class Measurement:
    """The value of a metric for one run. `samples` maps keys to (sum, count), where the value is the ratio of the totals; they are used
    for the bootstrap. It is empty if the metric is not a mean over samples."""

    value: float
    samples: dict[str, tuple[float, float]] = field(default_factory=dict)


class Metric(Protocol):
    @property
    def about(self) -> str:
        """A description for the report. Metrics that can have different values must have different descriptions."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the evaluation harness that must have been run."""

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        """The metric of the finished run in `folder`, evaluated on `dataset`. Raises ClaimError if there is no value."""


@dataclass(frozen=True)
class Cell:
    """A metric of the evaluation harness, identified by its cell in eval.json."""

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
    """The difference between two cells of one run, such as the accuracy lost under a shift."""

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
    """Any other metric of a finished run. `function(folder, recipe)` returns one value per sample, keyed by sample, or a single value."""

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


def with_model(**fields: Any) -> Change:
    """Change fields of the model's configuration."""
    return lambda recipe: replace(recipe, model=replace(recipe.model, **fields))


def with_optim(**fields: Any) -> Change:
    """Change fields of the optimiser, in every stage."""

    def change(recipe: AnyRecipe) -> AnyRecipe:
        if not recipe.stages:
            return replace(recipe, optim=replace(recipe.optim, **fields))
        return replace(recipe, stages=tuple(replace(stage, optim=replace(stage.optim, **fields)) for stage in recipe.stages))

    return change


@dataclass(frozen=True)
class Arm:
    """One side of an experiment."""

    name: str
    change: Change = unchanged
    """change to the claim's base recipe"""
    page: str = ""
    """a page other than the claim's; required if the claim's page has no presets"""
    metric: Metric | None = None
    """metric to use instead of the claim's, for arms that measure the same run in another way"""


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and the experiment that tests it."""

    name: str
    """name of the result file: lower-case letters, digits and hyphens"""
    sentence: str
    """the paper's claim, in our words"""
    paper: str
    """the paper's numbers, with section or table"""
    arms: tuple[Arm, ...]
    metric: Metric
    better: Literal["higher", "lower"] = "higher"
    """whether the claim expects the first arm's metric to be higher or lower than the others'"""
    base: Change = unchanged
    """change shared by all arms, such as a smaller budget"""
    note: str = ""
    """how the experiment differs from the paper's"""
    seeds: tuple[int, ...] = (0, 1, 2)
    same: bool = False
    """the arms are identical on purpose: a control that should not be reproduced"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ClaimError(f"claim {self.name!r}: expected a name with only lower-case letters, digits and hyphens")
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ClaimError(f"claim {self.name}: expected two or more arms with distinct names, found {names}")

    def metric_of(self, arm: Arm) -> Metric:
        return arm.metric or self.metric


def flat(recipe: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A recipe in JSON form, flattened to {"optim.lr": 0.001, "stages.0.batch": 96, ...}."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found
