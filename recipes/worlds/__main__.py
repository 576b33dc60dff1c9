"""Does the embedded data set rank models and claims as real pictures do? `python -m recipes.worlds --data DATA [PAGE ...]` (= `make worlds
DATA=`).

Trains the same recipes with a share of their budget (an eighth by default, schedules to match) on the embedded data and on DATA, and
evaluates each run on its own data: every page, and the arms of its claims that captions suffice for (claims.py). Pages that build on other
runs are left out unless named: a prerequisite may need labels or questions that DATA lacks. Prints a time estimate first. Resumes where it
stopped, and reuses finished runs.

    .runs/worlds/<page>.<data set>.json    schema, page, preset, seed, share; embedded and other: dataset, samples, run, and the measures
                                           that the model has; claims; date, commit, versions, hardware
    measures                               metric, value, low, high (95 %, bootstrap over samples), n, unit
    claims                                 claim, sentence, first, against (the arms), measure; embedded and other: effect (first - against,
                                           in favour of the claim), low, high (95 %, paired bootstrap over samples), n, unit

RESULTS.md has the rank correlations of each measure, over pages and over claims (recipes/tools/worlds.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from data.fields import require
from data.files import write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base.console import plain_console
from eval.run import evaluate_run
from recipes.claims.__main__ import usual_jobs
from recipes.claims.claim import ClaimError
from recipes.claims.estimate import estimate
from recipes.claims.examine import origin, work
from recipes.claims.experiment import Planned
from recipes.frontier.__main__ import learners, scaled
from recipes.train import pages
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train
from recipes.worlds.claims import Trial, differences, trials
from recipes.worlds.runs import TASKS, Pair, cells, on_both

Json = dict[str, Any]
SCHEMA = 2
SIDES = ("embedded", "other")


@dataclass(frozen=True)
class Plan:
    """What is to be run of a page."""

    pair: Pair
    trials: list[Trial]

    def runs(self) -> Iterator[Planned]:
        yield from self.pair.runs
        for trial in self.trials:
            for pair in trial.pairs:
                yield from pair.runs


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
        plans = {page: plan(page, args) for page in args.pages or independent(args.preset)}
        if args.run:
            sys.exit(answer(args.run, plans, args.runs))
        sys.exit(worlds(plans, args, args.jobs or usual_jobs(args.device)))
    except (ClaimError, DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def independent(preset: str) -> list[str]:
    return [page for page in learners(preset) if not pages.preset(page, preset).prerequisites]


def plan(page: str, args: argparse.Namespace) -> Plan:
    """Raises ValueError if both data sets are the same."""
    pair = on_both(page, scaled(pages.preset(page, args.preset), args.share), args)
    return Plan(pair, trials(page, independent(args.preset), args))


def worlds(plans: dict[str, Plan], args: argparse.Namespace, jobs: int) -> int:
    """Returns a process exit status: 0; 1 if a run failed; or 128 + the number of the signal that stopped it."""
    console = plain_console(soft_wrap=True)
    missing = {run.key: run for each in plans.values() for run in each.runs() if cells(run) is None}
    count = sum(len(each.trials) for each in plans.values())
    console.print(f"{len(plans)} pages: {', '.join(plans)}; {count} of their claims; {args.share:g} of the budget on two data sets")
    console.print(estimate([run for run in missing.values() if not finished(run.folder)], len(missing), jobs, args.runs))
    again = [sys.executable, "-m", "recipes.worlds", *plans, "--preset", args.preset, "--share", str(args.share), "--seed", str(args.seed)]
    again += ["--device", args.device, "--runs", str(args.runs), f"--data={args.data}"]
    status = work({key: [*again, "--run", key] for key in missing}, jobs, args.runs / "worlds" / "logs", console)
    for page, each in plans.items():
        conclude(page, each, args, console)
    return status


def answer(key: str, plans: dict[str, Plan], shared: Path) -> int:
    """Train one run if necessary, and evaluate it on its own data."""
    run = next(run for each in plans.values() for run in each.runs() if run.key == key)
    if not finished(run.folder) and (status := train(run.recipe, run.folder, run.preset, shared=shared, page=run.page)):
        return status
    evaluate_run(run.folder, data=run.recipe.data, tasks=TASKS, device=run.recipe.device)
    return 0


def conclude(page: str, done: Plan, args: argparse.Namespace, console: Console) -> None:
    """Write the file of a page, if both of its runs are there, with the claims whose runs are."""
    found = [cells(run) for run in done.pair.runs]
    if absent := sum(each is None for each in found):
        console.print(f"{page}: {absent} of 2 runs are missing")
        return
    sides = [_side(run) for run in done.pair.runs]
    claims = [difference for trial in done.trials for difference in differences(trial)]
    costs = {run.folder: read_cost(run.folder) for run in done.runs() if cells(run) is not None}
    about = {"schema": SCHEMA, "page": page, "preset": args.preset, "seed": args.seed, "share": args.share}
    about |= {"embedded": sides[0], "other": sides[1], "claims": claims}
    hardware = ", ".join(dict.fromkeys(cost["hardware"] for cost in costs.values()))
    write_json(args.runs / "worlds" / f"{page}.{sides[1]['dataset']}.json", about | {"hardware": hardware} | origin(list(costs.values())))
    for side in sides:
        said = ", ".join(f"{name} {each['value']:.3f}" for name, each in side["values"].items())
        console.print(f"{page} on {side['dataset']}: {said}")
    for each in claims:
        both = " and ".join(f"{each[side]['effect']:+.3f} ({each[side]['low']:+.3f} to {each[side]['high']:+.3f})" for side in SIDES)
        console.print(f"{each['claim']}, {each['first']} against {each['against']}, {each['measure']}: {both}")


def _side(run: Planned) -> Json:
    values = {
        heading: {"metric": cell.key.metric, "value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "unit": cell.unit}
        for heading, cell in (cells(run) or {}).items()
    }
    samples = read_cost(run.folder)["samples_seen"]
    return {"dataset": find(run.recipe.data, "train").name, "samples": samples, "run": str(run.folder), "values": values}


if __name__ == "__main__":
    main()
