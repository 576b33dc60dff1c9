"""Time to quality, a race that anyone can enter: `python -m recipes.race [PAGE ...]` (= `make race`).

Trains each page as `make train-<page>` does, measures three qualities on 256 validation samples ten times per stage, and prints seconds and
TFLOP at the first measurement that reaches the mark, prerequisites included. Measuring takes no time of the race. Prints a time
estimate first, and resumes where it stopped. To enter, change a page (or add one), race, and commit the result file:
`make results ARGS=collect`.

    .runs/race/runs/<run>/      the runs
    .runs/race/<page>.json      schema, page, preset, dataset, seed; marks; date, commit, versions, hardware
    marks, one for each quality mark, best; reached, samples, seconds, flops (null if it was not reached)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from data.files import write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base.console import plain_console
from eval.report.results import read_jsonl
from recipes.claims.estimate import estimate
from recipes.claims.examine import origin
from recipes.claims.experiment import Planned
from recipes.frontier.__main__ import learners, total
from recipes.train import pages
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train
from recipes.train.stages import run_name

Json = dict[str, Any]
SCHEMA = 1
SAMPLES = 256
MARKS = {"zero-shot shape": 0.90, "caption objects F1": 0.80, "swapped attributes": 0.80}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time to quality", prog="recipes.race")
    parser.add_argument("pages", nargs="*", help="pages of recipes/ (default: all that are compared and trained by gradient)")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--data", default="", help="data set (default: that of the preset)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    args = parser.parse_args()
    try:
        sys.exit(race(args))
    except (DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def race(args: argparse.Namespace) -> int:
    """One page after the other, on all threads. Returns a process exit status: 0, or 128 + the number of the signal that stopped it."""
    console = plain_console(soft_wrap=True)
    entries = [entry(page, args) for page in args.pages or learners(args.preset)]
    console.print(estimate([each for each in entries if not finished(each.folder)], len(entries), 1, args.runs))
    results = []
    for each in entries:
        if not finished(each.folder) and (status := train(each.recipe, each.folder, each.preset, shared=args.runs, page=each.page)):
            return status
        results.append(conclude(each))
        write_json(args.runs / "race" / f"{each.page}.json", results[-1])
    console.print(table(results))
    return 0


def entry(page: str, args: argparse.Namespace) -> Planned:
    standard = pages.preset(page, args.preset)
    recipe = replace(standard, data=args.data or standard.data, seed=args.seed, device=args.device)
    recipe = replace(recipe, log=replace(recipe.log, measure=SAMPLES))
    name = run_name(page, args.preset, recipe, standard.data)
    return Planned(name, page, recipe, args.preset, args.runs / "race" / "runs" / name)


def conclude(run: Planned) -> Json:
    """The result of a finished run, from its log."""
    measured = [event for event in read_jsonl(run.folder / "train.jsonl") if event.get("event") == "quality"]
    if broken := [event for event in measured if not _is_measurement(event)]:
        raise EvalError(
            f"{run.folder / 'train.jsonl'}: {broken[0]!r:.100} is not a valid measurement. Remove the run folder, and race again"
        )
    cost = read_cost(run.folder)
    before = {name: total(cost, name) - cost[name] for name in ("train_seconds", "train_flops")}  # what the prerequisites took
    about = {"schema": SCHEMA, "page": run.page, "preset": run.preset, "seed": run.recipe.seed, "hardware": cost["hardware"]}
    about |= {"dataset": find(run.recipe.data, "train").name, "threads": cost["threads"], "samples": SAMPLES}
    return about | {"marks": {name: reached(measured, name, mark, before) for name, mark in MARKS.items()}} | origin([cost])


def _is_measurement(event: Json) -> bool:
    values = event.get("values")
    numbers = [event.get(name) for name in ("samples", "seconds", "flops")]
    numbers += values.values() if isinstance(values, dict) else [None]
    return all(isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < 1e300 for each in numbers)


def reached(measured: list[Json], name: str, mark: float, before: Json) -> Json:
    """When a quality first reached its mark."""
    values = [event["values"][name] for event in measured if name in event["values"]]
    found: Json = {"mark": mark, "best": max(values, default=None), "reached": None, "samples": None, "seconds": None, "flops": None}
    first = next((event for event in measured if event["values"].get(name, 0.0) >= mark), None)
    if first is None:
        return found
    cost = {"seconds": first["seconds"] + before["train_seconds"], "flops": first["flops"] + before["train_flops"]}
    return found | {"reached": first["values"][name], "samples": first["samples"]} | cost


def table(results: list[Json]) -> Table:
    shown = Table("page", *(f"{name} {mark:.2f}" for name, mark in MARKS.items()), title="time to quality")
    for result in results:
        shown.add_row(result["page"], *(said(result["marks"][name]) for name in MARKS))
    return shown


def said(mark: Json) -> str:
    if mark["reached"] is not None:
        return f"{mark['seconds']:,.0f} s, {mark['flops'] / 1e12:,.3g} TFLOP"
    return "cannot" if mark["best"] is None else f"best {mark['best']:.3f}"


if __name__ == "__main__":
    main()
