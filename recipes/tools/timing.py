"""Estimate the training time of `make train-<page>` on this machine from a few steps of each stage: `make time-coca`.

Prerequisites are timed as well. They must be trained already, because a stage without them would do different work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from data.files import read_json, write_json
from data.shards import DataError
from eval.base.console import plain_console
from eval.base.provenance import provenance
from models.shared.device import hardware, resolve_device
from recipes.claims.estimate import measured_rates
from recipes.train.folder import finished
from recipes.train.pages import preset
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import prerequisites, run_name

STEPS = 20


def trainings(name: str, recipe: AnyRecipe, preset: str, runs: Path) -> Iterator[tuple[Path, str, AnyRecipe]]:
    """Folder, preset and recipe of a run, preceded by those of all its prerequisites, each once."""
    seen = set()
    for needed in prerequisites(recipe, preset, runs):
        for folder, its_preset, its_recipe in trainings(needed.page, needed.recipe, needed.preset, runs):
            if folder not in seen:
                seen.add(folder)
                yield folder, its_preset, its_recipe
    yield runs / run_name(name, preset, recipe, recipe.data), preset, recipe


def timed(name: str, recipe: AnyRecipe, preset: str, runs: Path, steps: int = STEPS) -> list[tuple[str, str, int, float]]:
    """Run, stage, samples, and samples per second of every training stage. Raises ValueError if a prerequisite is not trained yet."""
    found = []
    chain = list(trainings(name, recipe, preset, runs))
    if missing := [folder for folder, *_ in chain[:-1] if not finished(folder)]:
        raise ValueError(f"{', '.join(map(str, missing))}: not trained yet, but required by {name}; `make train-{name}` trains both")
    for folder, its_preset, its_recipe in chain:
        rates = measured_rates(its_recipe, its_preset, runs, steps)
        for stage, rate in zip(its_recipe.schedule, rates, strict=True):
            found.append((folder.name, stage.name, stage.budget, rate))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate the training time on this machine", prog="recipes.tools.timing")
    parser.add_argument("page", help="page of recipes/, such as clip or lit")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--data", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    parser.add_argument("--out", type=Path, help="file that collects the times of all runs (default: timing.json in the folder of runs)")
    args = parser.parse_args()
    try:
        recipe = preset(args.page, args.preset)
        recipe = replace(recipe, data=args.data or recipe.data, device=args.device, seed=args.seed)
        rows = timed(args.page, recipe, args.preset, args.runs)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    minutes = [samples / rate / 60 for *_, samples, rate in rows]
    table = Table(
        "run", "stage", "samples", "samples / s", "minutes", title=f"{STEPS} steps of each stage, {torch.get_num_threads()} threads"
    )
    for (run, stage, samples, rate), each in zip(rows, minutes, strict=True):
        table.add_row(run, stage, f"{samples:,}", f"{rate:,.0f}", f"{each:.1f}")
    own = sum(each for (run, *_), each in zip(rows, minutes, strict=True) if run == rows[-1][0])
    table.add_row("total", "", "", "", f"{sum(minutes):.1f}, {own:.1f} of them without prerequisites")
    plain_console().print(table)
    path = args.out or args.runs / "timing.json"
    known = read_json(path) if path.exists() else {}
    entry = {"minutes": own, "together": sum(minutes), "steps": STEPS, "hardware": hardware(resolve_device(args.device))}
    write_json(path, known | {rows[-1][0]: entry | provenance()})


if __name__ == "__main__":
    main()
