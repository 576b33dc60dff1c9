"""Read and plot the results of claims (`make claims-<page>`): `claims/<page>/<claim>.json` in the folder of runs, written by
recipes/claims/examine.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import EvalError
from eval.base import schemas
from eval.report import words
from eval.report.numbers import number
from eval.report.plots import HUES, INK, panel, svg
from eval.report.results import read_json


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    values: list[float]  # one per seed
    mean: float
    low: float | None
    high: float | None
    differs: str  # differences from the first arm, as text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference between the first arm and another one."""

    against: str
    effect: float
    low: float
    high: float
    how: str
    verdict: str

    @property
    def text(self) -> str:
        return f"{signed(self.effect)} ({signed(self.low)} to {signed(self.high)})"


@dataclass(frozen=True, kw_only=True)
class Claim:
    page: str  # page of recipes/ that declares the claim
    name: str
    preset: str
    dataset: str
    sentence: str
    paper: str
    note: str
    metric: str
    better: str
    seeds: int
    arms: list[Arm]
    comparisons: list[Comparison]
    verdict: str  # "reproduced", "not reproduced at this scale" or "reversed"
    cost: str
    commands: list[str]

    @property
    def result(self) -> str:
        """Our results in one sentence."""
        arms = "; ".join(f"{arm.name} {figure(arm.mean)}" for arm in self.arms)
        return f"{self.metric}: {arms}. {self.arms[0].name} ahead of " + ", of ".join(f"{c.against} by {c.text}" for c in self.comparisons)


def read_claims(folder: Path, order: Sequence[str]) -> tuple[list[Claim], list[str]]:
    """All finished claims, sorted by page in the given order, with other pages last; and a sentence about each invalid file."""
    place = {name: number for number, name in enumerate(order)}
    found, faults = [], []
    for path in sorted(folder.glob("*/*.json"), key=lambda path: (place.get(path.parent.name, len(place)), path)):
        try:
            found.append(read_claim(path))
        except EvalError as error:
            faults.append(str(error))
    return found, faults


def read_claim(path: Path) -> Claim:
    return claim_of(read_json(path), path)


def claim_of(raw: dict[str, Any], path: Path) -> Claim:
    """Parse the content of a claim file at `path`. Raises EvalError for invalid content or another schema version."""
    again = f"Test it again: make claims-{raw.get('model', '<page>')}"
    if raw.get("schema") != schemas.CLAIM:
        raise EvalError(f"{path}: schema {raw.get('schema')!r}, expected {schemas.CLAIM}. {again}")
    try:
        about = {name: str(raw[name]) for name in ("preset", "dataset", "sentence", "paper", "note", "metric", "better", "verdict")}
        cost = raw["cost"]
        spent = [
            words.count(int(cost["runs"]), "run"),
            f"{words.si(number(cost['samples_seen']))} samples",
            words.duration(number(cost["train_seconds"])),
        ]
        return Claim(
            page=str(raw["model"]),
            name=str(raw["claim"]),
            seeds=len(raw["seeds"]),
            arms=[
                Arm(
                    name=str(arm["name"]),
                    values=[finite(value) for value in arm["values"]],
                    mean=finite(arm["mean"]),
                    low=number(arm["low"]),
                    high=number(arm["high"]),
                    differs="; ".join(f"{name}: {there} | {here}" for name, (there, here) in arm["differs"].items()),
                )
                for arm in raw["arms"]
            ],
            comparisons=[
                Comparison(
                    against=str(each["against"]),
                    effect=finite(each["effect"]),
                    low=finite(each["low"]),
                    high=finite(each["high"]),
                    how=str(each["how"]),
                    verdict=str(each["verdict"]),
                )
                for each in raw["comparisons"]
            ],
            cost=", ".join(spent),
            commands=[str(command) for command in raw["commands"]],
            **about,
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise EvalError(f"{path}: {what}. {again}") from error


def finite(value: Any) -> float:
    """Raises ValueError unless the value is a finite number."""
    found = number(value)
    if found is None:
        raise ValueError(f"expected a finite number, found {value!r}")
    return found


def arms_figure(claim: Claim) -> str:
    """Plot one line per arm: its seeds, their mean, and the interval if there is one."""
    with panel(3.4, 0.5 + 0.27 * len(claim.arms)) as (drawing, axes):
        for height, arm in enumerate(reversed(claim.arms)):
            colour = HUES[0] if arm is claim.arms[0] else HUES[1]
            if arm.low is not None and arm.high is not None:
                axes.plot([arm.low, arm.high], [height, height], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(arm.values, [height] * len(arm.values), marker="o", color=colour, fillstyle="none", markersize=4, linestyle="")
            axes.plot(arm.mean, height, marker="|", color=INK, markersize=11, linestyle="")
        axes.set(ylim=(-0.6, len(claim.arms) - 0.4))
        axes.margins(x=0.08)
        axes.set_yticks(range(len(claim.arms)), [words.short(arm.name, 24) for arm in reversed(claim.arms)], parse_math=False)
        axes.tick_params(axis="y", length=0)
        return svg(drawing, f"{claim.name}: {claim.metric}")


def figure(value: float) -> str:
    return words.quantity(value, "share" if 0 <= value <= 1 else "score")


def signed(value: float) -> str:
    return words.difference(value, "share" if -1 <= value <= 1 else "score")
