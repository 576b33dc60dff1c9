"""The claims of a page on the embedded data and on the other: in both the difference of the same two arms, so that the two can be compared.

A claim takes part if captions are all that its arms and its metric need: its metric is retrieval or captioning, and its arms are recipes of
pages that build on no other run. Left out are arms on a number of shards, which is another share of another data set, and arms with several
budgets. Every arm has the budget and the warm-up of the page's run, so that this run is usually one of the arms.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.report.answers import totals_of
from eval.report.results import Cell
from recipes.claims import claim as declared
from recipes.claims.claim import Claim, Measurement
from recipes.claims.verdict import compare
from recipes.frontier.__main__ import scaled
from recipes.train import pages
from recipes.worlds.runs import MEASURES, Pair, cells, on_both

Json = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A claim and the runs of its arms."""

    claim: Claim
    pairs: tuple[Pair, ...]


def trials(page: str, independent: Sequence[str], args: argparse.Namespace) -> list[Trial]:
    """The claims of a page that can be tried on both data sets. `independent`: the pages that build on no other run."""
    return [trial for claim in getattr(pages.page(page), "CLAIMS", ()) if (trial := _trial(page, claim, independent, args))]


def _trial(page: str, claim: Claim, independent: Sequence[str], args: argparse.Namespace) -> Trial | None:
    names = [arm.page or page for arm in claim.arms]
    if not set(names) <= set(independent) or _heading(claim) is None or claim.same or any(arm.metric for arm in claim.arms):
        return None
    shares = [scaled(pages.preset(name, args.preset), args.share) for name in names]
    recipes = [arm.change(claim.base(share)) for arm, share in zip(claim.arms, shares, strict=True)]
    if any(recipe.stages or recipe.shards for recipe in recipes) or len({recipe.budget for recipe in recipes}) > 1:
        return None
    pairs = []
    for name, recipe in zip(names, recipes, strict=True):
        schedule = replace(recipe, budget=shares[0].budget, optim=replace(recipe.optim, warmup=shares[0].optim.warmup))
        pairs.append(on_both(name, schedule, args))
    return Trial(claim, tuple(pairs))


def _heading(claim: Claim) -> str | None:
    """The measure in the place of the claim's metric: that of the same task."""
    task = claim.metric.task if isinstance(claim.metric, declared.Cell) and claim.metric.variant == "model" else ""
    return next((heading for heading, (measured, _) in MEASURES.items() if measured == task), None)


def differences(tried: Trial) -> Iterator[Json]:
    """The first arm against each of the others: the difference in favour of the claim with its 95 % interval, a paired bootstrap over test
    samples, on both data sets. Nothing for arms that lack a run."""
    heading = _heading(tried.claim)
    found = [[(cells(run) or {}).get(heading or "") for run in pair.runs] for pair in tried.pairs]
    names = {"claim": tried.claim.name, "sentence": tried.claim.sentence, "first": tried.claim.arms[0].name, "measure": heading}
    for arm, theirs in zip(tried.claim.arms[1:], found[1:], strict=True):
        sides = [_difference(tried.claim, ours, other) for ours, other in zip(found[0], theirs, strict=True)]
        if all(sides):
            yield names | {"against": arm.name, "embedded": sides[0], "other": sides[1]}


def _difference(claim: Claim, first: Cell | None, other: Cell | None) -> Json | None:
    if first is None or other is None or first.value is None or other.value is None:
        return None
    found = compare([Measurement(first.value, totals_of(first))], [Measurement(other.value, totals_of(other))], claim.better)
    ends = (found.low, found.high) if claim.better == "higher" else (-found.high, -found.low)
    effect = found.effect if claim.better == "higher" else -found.effect
    return {"effect": effect, "low": ends[0], "high": ends[1], "unit": first.unit, "n": first.n}
