"""Plan the runs of claims: the recipe of each arm and seed, the differences between arms, and measurements that already exist."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.files import read_json
from data.shards import find, splits
from recipes.claims.claim import Arm, Claim, ClaimError, Metric, flat
from recipes.train import pages
from recipes.train.folder import FREE, as_json, differences, finished
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import run_name

Json = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run that claims require: `recipe`, trained in `folder`. `key` identifies it independently of the folder."""

    key: str
    page: str
    recipe: AnyRecipe
    preset: str
    folder: Path


@dataclass(frozen=True)
class Question:
    """One arm of one claim with one seed: the metric of a run, and the file with the measurement."""

    claim: Claim
    arm: Arm
    run: Planned
    path: Path

    @property
    def metric(self) -> Metric:
        return self.claim.metric_of(self.arm)

    @property
    def identity(self) -> Json:
        """Everything that the measurement depends on."""
        data, recipe = self.run.recipe.data, as_json(self.run.recipe, self.run.page, self.run.preset)
        return {"recipe": recipe, "metric": self.metric.about, "data": {split: find(data, split).hash for split in splits(data)}}

    @property
    def answer(self) -> Json | None:
        """The measurement; None if it does not exist or was made for another recipe, metric or data set."""
        if not self.path.exists():
            return None
        found = _read(self.path)
        try:
            then, now = found["identity"], self.identity
            same_data = then["data"].items() <= now["data"].items()  # splits that were added since do not matter
            same = same_data and then["metric"] == now["metric"] and not differences(then["recipe"], now["recipe"])
        except (AttributeError, KeyError, TypeError):  # no measurement: it is made again
            return None
        return found if same else None


def plan(
    page: str, *, preset: str, seeds: Sequence[int] | None = None, only: str = "", data: str = "", device: str = "auto", runs: Path
) -> list[Question]:
    """All questions of the claims of `recipes/<page>.py`, or of the claim named `only`. `seeds` overrides those of the claims.

    Raises ClaimError for an unknown claim, page or preset.
    """
    claims: Sequence[Claim] = getattr(pages.page(page), "CLAIMS", ())
    chosen = [claim for claim in claims if only in ("", claim.name)]
    if not chosen:
        known = ", ".join(claim.name for claim in claims) or "none"
        raise ClaimError(f"recipes/{page}.py declares no claim {only!r}" + f"; it has: {known}")
    questions = []
    for claim in chosen:
        for number, arm in enumerate(claim.arms):
            for seed in seeds or claim.seeds:
                run = _planned(arm.page or page, claim, arm, seed, preset=preset, data=data, device=device, runs=runs)
                path = runs / "claims" / page / "measured" / f"{claim.name}.{number}.s{seed}.json"
                questions.append(Question(claim, arm, run, path))
    return questions


def _planned(page: str, claim: Claim, arm: Arm, seed: int, *, preset: str, data: str, device: str, runs: Path) -> Planned:
    try:
        standard = pages.preset(page, preset)
    except ValueError as error:
        raise ClaimError(f"claim {claim.name}, arm {arm.name}: {error}") from error
    recipe = replace(arm.change(claim.base(replace(standard, data=data or standard.data))), seed=seed, device=device)
    return planned(page, recipe, preset, runs, standard.data)


def planned(page: str, recipe: AnyRecipe, preset: str, runs: Path, standard_data: str) -> Planned:
    """Where a run of this recipe is, or will be: a finished one of `make train-<page>` or of another experiment is used again. The digest
    in the name of a new folder is of everything but the seed and what changes no result."""
    described = as_json(recipe, page, preset)
    substance = {field: value for field, value in described.items() if field not in (*FREE, "seed")}
    digest = hashlib.sha256(json.dumps(substance, sort_keys=True).encode()).hexdigest()[:8]
    key = f"{page}-{preset}-{digest}-s{recipe.seed}"
    usual, own = runs / run_name(page, preset, recipe, standard_data), runs / "claims" / "runs"
    places = [usual] * finished(usual) + sorted(own.glob(f"{page}-{preset}-*-s{recipe.seed}"))
    same = [place for place in places if (place / "recipe.json").exists() and not differences(_read(place / "recipe.json"), described)]
    return Planned(key, page, recipe, preset, [*same, own / key][0])


def _read(path: Path) -> Json:
    return read_json(path)


def apart(claim: Claim, questions: Sequence[Question]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Arm -> field -> (value in the first arm, value in this arm), for all arms but the first. Raises ClaimError if arms are identical
    but should differ, or vice versa."""
    runs = {question.arm: question.run for question in questions if question.claim == claim}
    described = {arm: flat(as_json(run.recipe, run.page, run.preset)) for arm, run in runs.items()}
    first = claim.arms[0]
    found = {}
    for arm in claim.arms[1:]:
        pairs = {
            name: (described[first].get(name), described[arm].get(name)) for name in dict.fromkeys([*described[first], *described[arm]])
        }
        if runs[first].page != runs[arm].page:
            pairs = {"page": (runs[first].page, runs[arm].page)}
        pairs["metric"] = claim.metric_of(first).about, claim.metric_of(arm).about
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if bool(differing) == claim.same:
            expected = "no difference, as declared by `same`" if claim.same else "one difference"
            what = f"in {', '.join(differing)}" if differing else "in nothing"
            raise ClaimError(f"claim {claim.name}: arms {first.name!r} and {arm.name!r} differ {what}; expected {expected}")
        found[arm.name] = differing
    return found
