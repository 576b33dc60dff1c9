"""Runs of the same recipe on the embedded data and on another data set, and what is measured of each on its own data."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from typing import Any

from data.files import read_json
from data.shards import find
from eval.report.results import Cell, Run, read_result
from recipes.claims.experiment import Planned, planned
from recipes.train import pages
from recipes.train.folder import finished
from recipes.train.recipe import AnyRecipe

Json = dict[str, Any]
MEASURES = {  # heading -> task and metric, on the main split: these need captions and nothing else
    "retrieval R@10": ("retrieval", re.compile(r"i2t R@10 \((\d+)\)")),  # among so many images: the most, up to 500
    "captions CIDEr-D": ("captioning", re.compile("CIDEr-D")),
}
GALLERY = 500
TASKS = tuple(dict.fromkeys(task for task, _ in MEASURES.values()))


@dataclass(frozen=True)
class Pair:
    """The same recipe on the embedded data and on the other."""

    embedded: Planned
    other: Planned

    @property
    def runs(self) -> tuple[Planned, Planned]:
        return self.embedded, self.other


def on_both(page: str, recipe: AnyRecipe, args: argparse.Namespace) -> Pair:
    """Raises ValueError if both data sets are the same."""
    standard = pages.preset(page, args.preset)
    names = [find(data, "train").name for data in (standard.data, args.data)]
    if names[0] == names[1]:
        raise ValueError(
            f"--data {args.data} is the data set {names[0]}, which {page} already trains on: name a different data set with DATA="
        )
    recipe = replace(recipe, seed=args.seed, device=args.device)
    both = (planned(page, replace(recipe, data=data), args.preset, args.runs, standard.data) for data in (standard.data, args.data))
    return Pair(*both)


def cells(run: Planned) -> dict[str, Cell] | None:
    """The measures of a finished run; None if it is not trained, or not evaluated on all tasks and whole splits."""
    folder = run.folder / "eval" / find(run.recipe.data, "train").name
    if not finished(run.folder) or not (folder / "eval.json").exists() or read_json(folder / "eval.json").get("limit") is not None:
        return None
    result = read_result(Run(run.folder.name, run.folder), folder)
    if result.stale or not {key.task for key, _ in result.by_key} >= set(TASKS):
        return None
    found: dict[str, Cell] = {}
    for heading, (task, metric) in MEASURES.items():
        sizes: list[tuple[int, Cell]] = []
        for (key, variant), cell in result.by_key.items():
            named = metric.fullmatch(key.metric)
            if named and key.task == task and key.split in ("test", "val") and variant == "model" and cell.value is not None:
                sizes.append((int(named[1]) if metric.groups else 0, cell))
        if sizes:
            found[heading] = max((each for each in sizes if each[0] <= GALLERY), default=min(sizes, key=_size), key=_size)[1]
    return found


def _size(sized: tuple[int, Cell]) -> int:
    return sized[0]
