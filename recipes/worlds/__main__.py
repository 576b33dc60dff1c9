"""Does the embedded data set rank models as real pictures do? `python -m recipes.worlds --data DATA [PAGE ...]` (= `make worlds DATA=`).

Trains the same recipes with a share of their budget (an eighth by default, schedules to match) on the embedded data and on DATA, and
evaluates each run on its own data. Pages that build on other runs are left out unless named: a prerequisite may need labels or questions
that DATA lacks. Prints a time estimate first. Resumes where it stopped, and reuses finished runs.

    .runs/worlds/<page>.<data set>.json    schema, page, preset, seed, share; embedded and other: dataset, samples, run, and the measures
                                           that the model has; date, commit, versions, hardware
    measures                               metric, value, low, high (95 %, bootstrap over samples), n, unit

RESULTS.md has the rank correlation over pages of each measure (recipes/tools/worlds.py).
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data.fields import require
from data.files import read_json, write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base.console import plain_console
from eval.report.results import Run, read_result
from eval.run import evaluate_run
from recipes.claims.__main__ import usual_jobs
from recipes.claims.claim import ClaimError
from recipes.claims.estimate import estimate
from recipes.claims.examine import origin, work
from recipes.claims.experiment import Planned, planned
from recipes.frontier.__main__ import learners, scaled
from recipes.train import pages
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train

Json = dict[str, Any]
SCHEMA = 1
MEASURES = {  # heading -> task and metric, on the main split: these need captions and nothing else
    "retrieval R@10": ("retrieval", re.compile(r"i2t R@10 \((\d+)\)")),  # among so many images: the most, up to 500
    "captions CIDEr-D": ("captioning", re.compile("CIDEr-D")),
}
GALLERY = 500
TASKS = tuple(dict.fromkeys(task for task, _ in MEASURES.values()))


@dataclass(frozen=True)
class Pair:
    """A page's runs: the same recipe on the embedded data and on the other."""

    embedded: Planned
    other: Planned

    @property
    def runs(self) -> tuple[Planned, Planned]:
        return self.embedded, self.other


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare rankings on embedded and on real data", prog="recipes.worlds")
    parser.add_argument(
        "pages", nargs="*", help="pages of recipes/ (default: all that are compared, trained by gradient and build on none)"
    )
    parser.add_argument("--data", required=True, help="imported data set with captions, train and val or test")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--share", type=float, default=1 / 8, help="of every page's budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="number of parallel runs (default: one on a GPU, otherwise up to two)")
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        require(args.jobs is None or args.jobs >= 1, "--jobs", args.jobs, "1 or more parallel runs")
        require(0 < args.share <= 1, "--share", args.share, "more than 0, at most 1")
        pairs = {page: pair(page, args) for page in args.pages or independent(args.preset)}
        if args.run:
            sys.exit(answer(args.run, pairs, args.runs))
        sys.exit(worlds(pairs, args, args.jobs or usual_jobs(args.device)))
    except (ClaimError, DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def independent(preset: str) -> list[str]:
    return [page for page in learners(preset) if not pages.preset(page, preset).prerequisites]


def pair(page: str, args: argparse.Namespace) -> Pair:
    """Raises ValueError if both data sets are the same."""
    standard = pages.preset(page, args.preset)
    names = [find(data, "train").name for data in (standard.data, args.data)]
    if names[0] == names[1]:
        raise ValueError(
            f"--data {args.data} is the data set {names[0]}, which {page} already trains on: name a different data set with DATA="
        )
    recipe = scaled(replace(standard, seed=args.seed, device=args.device), args.share)
    both = (planned(page, replace(recipe, data=data), args.preset, args.runs, standard.data) for data in (standard.data, args.data))
    return Pair(*both)


def worlds(pairs: dict[str, Pair], args: argparse.Namespace, jobs: int) -> int:
    """Returns a process exit status: 0; 1 if a run failed; or 128 + the number of the signal that stopped it."""
    console = plain_console(soft_wrap=True)
    missing = {run.key: run for pair in pairs.values() for run in pair.runs if measured(run) is None}
    console.print(f"{len(pairs)} pages: {', '.join(pairs)}; {args.share:g} of the budget on two data sets")
    console.print(estimate([run for run in missing.values() if not finished(run.folder)], len(missing), jobs, args.runs))
    again = [sys.executable, "-m", "recipes.worlds", *pairs, "--preset", args.preset, "--share", str(args.share), "--seed", str(args.seed)]
    again += ["--device", args.device, "--runs", str(args.runs), f"--data={args.data}"]
    status = work({key: [*again, "--run", key] for key in missing}, jobs, args.runs / "worlds" / "logs", console)
    for page, each in pairs.items():
        conclude(page, each, args, console)
    return status


def answer(key: str, pairs: dict[str, Pair], shared: Path) -> int:
    """Train one run if necessary, and evaluate it on its own data."""
    run = next(run for pair in pairs.values() for run in pair.runs if run.key == key)
    if not finished(run.folder) and (status := train(run.recipe, run.folder, run.preset, shared=shared, page=run.page)):
        return status
    evaluate_run(run.folder, data=run.recipe.data, tasks=TASKS, device=run.recipe.device)
    return 0


def measured(run: Planned) -> dict[str, Json] | None:
    """The measures of a finished run; None if it is not trained, or not evaluated on all tasks and whole splits."""
    folder = run.folder / "eval" / find(run.recipe.data, "train").name
    if not finished(run.folder) or not (folder / "eval.json").exists() or read_json(folder / "eval.json").get("limit") is not None:
        return None
    result = read_result(Run(run.folder.name, run.folder), folder)
    if result.stale or not {key.task for key, _ in result.by_key} >= set(TASKS):
        return None
    found: dict[str, Json] = {}
    for heading, (task, metric) in MEASURES.items():
        sizes: list[tuple[int, Json]] = []
        for (key, variant), cell in result.by_key.items():
            named = metric.fullmatch(key.metric)
            if named and key.task == task and key.split in ("test", "val") and variant == "model" and cell.value is not None:
                about = {"metric": key.metric, "value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "unit": cell.unit}
                sizes.append((int(named[1]) if metric.groups else 0, about))
        if sizes:
            found[heading] = max((each for each in sizes if each[0] <= GALLERY), default=min(sizes, key=_size), key=_size)[1]
    return found


def _size(sized: tuple[int, Json]) -> int:
    return sized[0]


def conclude(page: str, pair: Pair, args: argparse.Namespace, console: Console) -> None:
    """Write the file of a page, if both of its runs are there."""
    values = [measured(run) for run in pair.runs]
    if values[0] is None or values[1] is None:
        console.print(f"{page}: {sum(each is None for each in values)} of 2 runs are missing")
        return
    costs = [read_cost(run.folder) for run in pair.runs]
    names = [find(run.recipe.data, "train").name for run in pair.runs]
    sides: list[Json] = [
        {"dataset": name, "samples": cost["samples_seen"], "run": str(run.folder), "values": found}
        for name, run, cost, found in zip(names, pair.runs, costs, values, strict=True)
    ]
    about = {"schema": SCHEMA, "page": page, "preset": args.preset, "seed": args.seed, "share": args.share}
    hardware = ", ".join(dict.fromkeys(cost["hardware"] for cost in costs))
    record = about | {"embedded": sides[0], "other": sides[1], "hardware": hardware} | origin(costs)
    write_json(args.runs / "worlds" / f"{page}.{names[1]}.json", record)
    for side in sides:
        said = ", ".join(f"{name} {each['value']:.3f}" for name, each in side["values"].items())
        console.print(f"{page} on {side['dataset']}: {said}")


if __name__ == "__main__":
    main()
