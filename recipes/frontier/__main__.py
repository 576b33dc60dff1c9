"""Quality against compute: `python -m recipes.frontier [PAGE ...]` (= `make frontier`).

Trains each page with an eighth, a quarter, a half and the whole of its budget, with schedules to match, and evaluates six measures that
every paradigm is asked about. Prints a time estimate first. Resumes where it stopped; finished runs of
`make train-<page>` and of claims are reused. Prerequisites are whole, and their cost is counted.

    .runs/frontier/<page>.json      schema, page, preset, dataset, seed, points; date, commit, versions, hardware
    points, one for each budget     share, samples, flops and seconds (all told, prerequisites included), run, values
    values, one for each measure    value, low, high (95 %, bootstrap over samples), n, unit; nothing for a task that the model cannot do
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data.fields import require
from data.files import read_json, write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base.console import plain_console
from eval.report.results import Key, Run, read_result
from eval.run import evaluate_run
from recipes.claims.__main__ import usual_jobs
from recipes.claims.claim import ClaimError
from recipes.claims.estimate import estimate
from recipes.claims.examine import origin, work
from recipes.claims.experiment import Planned, planned
from recipes.train import pages
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Stage

Json = dict[str, Any]
SCHEMA = 1
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
MEASURES = {  # heading -> cell of the evaluation, on the main split
    "zero-shot shape": ("zeroshot", "shape"),
    "retrieval R@1 of 500": ("retrieval", "i2t R@1 (500)"),
    "swapped attributes": ("foils", "swap_attribute"),
    "questions": ("vqa", "accuracy"),
    "caption objects F1": ("captioning", "object F1"),
    "captions CIDEr-D": ("captioning", "CIDEr-D"),
}
TASKS = tuple(dict.fromkeys(task for task, _ in MEASURES.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure quality against compute", prog="recipes.frontier")
    parser.add_argument("pages", nargs="*", help="pages of recipes/ (default: all that are compared and trained by gradient)")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--data", default="", help="data set (default: that of the preset)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="number of parallel runs (default: one on a GPU, otherwise up to two)")
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        require(args.jobs is None or args.jobs >= 1, "--jobs", args.jobs, "1 or more parallel runs")
        chosen = args.pages or learners(args.preset)
        planned_runs = {page: budgets(page, args) for page in chosen}
        if args.run:
            sys.exit(answer(args.run, planned_runs, args.runs))
        sys.exit(frontier(planned_runs, args, args.jobs or usual_jobs(args.device)))
    except (ClaimError, DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def learners(preset: str) -> list[str]:
    """The compared pages with this preset whose models are trained by gradient."""

    def learns(page: str) -> bool:
        module = pages.page(page)
        recipe = module.PRESETS.get(preset)
        return getattr(module, "COMPARED", True) and recipe is not None and any(stage.optim.lr for stage in recipe.schedule)

    return [page for page in pages.names() if learns(page)]


def budgets(page: str, args: argparse.Namespace) -> list[Planned]:
    """The runs of a page, the smallest budget first."""
    standard = pages.preset(page, args.preset)
    recipe = replace(standard, data=args.data or standard.data, seed=args.seed, device=args.device)
    if not any(stage.optim.lr for stage in recipe.schedule):
        raise ValueError(f"{page} is not trained by gradient, so there is no curve over its budget")
    return [planned(page, scaled(recipe, share), args.preset, args.runs, standard.data) for share in SHARES]


def scaled(recipe: AnyRecipe, share: float) -> AnyRecipe:
    """The recipe with a share of its budget, in whole batches, and of its warm-up, in every stage."""

    def part(stage: Stage | AnyRecipe) -> Any:
        budget = max(1, round(stage.budget * share / stage.batch)) * stage.batch if share < 1 else stage.budget
        return replace(stage, budget=budget, optim=replace(stage.optim, warmup=min(budget, round(stage.optim.warmup * share))))

    return replace(recipe, stages=tuple(part(stage) for stage in recipe.stages)) if recipe.stages else part(recipe)


def frontier(chosen: dict[str, list[Planned]], args: argparse.Namespace, jobs: int) -> int:
    """Returns a process exit status: 0; 1 if a run failed; or 128 + the number of the signal that stopped it."""
    console = plain_console(soft_wrap=True)
    missing = {run.key: run for runs in chosen.values() for run in runs if measured(run) is None}
    console.print(f"{len(chosen)} pages: {', '.join(chosen)}; {', '.join(f'{share:g}' for share in SHARES)} of the budget")
    console.print(estimate([run for run in missing.values() if not finished(run.folder)], len(missing), jobs, args.runs))
    again = [sys.executable, "-m", "recipes.frontier", *chosen, "--preset", args.preset, "--seed", str(args.seed)]
    again += ["--device", args.device, "--runs", str(args.runs), *([f"--data={args.data}"] if args.data else [])]
    status = work({key: [*again, "--run", key] for key in missing}, jobs, args.runs / "frontier" / "logs", console)
    for page, runs in chosen.items():
        conclude(page, runs, args, console)
    return status


def answer(key: str, chosen: dict[str, list[Planned]], shared: Path) -> int:
    """Train one run if necessary, and evaluate it."""
    run = next(run for runs in chosen.values() for run in runs if run.key == key)
    if not finished(run.folder) and (status := train(run.recipe, run.folder, run.preset, shared=shared, page=run.page)):
        return status
    evaluate_run(run.folder, data=run.recipe.data, tasks=TASKS, device=run.recipe.device)
    return 0


def measured(run: Planned) -> dict[str, Json] | None:
    """The values of a finished run; None if it is not trained, or not evaluated on all tasks and whole splits."""
    name = find(run.recipe.data, "train").name
    if not finished(run.folder):
        return None
    found: dict[str, Json] = {}
    asked: set[str] = set()
    for folder in (run.folder, *sorted((run.folder / "stages").glob("*"))):
        if not (folder / "eval" / name / "eval.json").exists():
            continue
        raw = read_json(folder / "eval" / name / "eval.json")
        if raw.get("limit") is not None:
            continue
        result = read_result(Run(folder.name, folder), folder / "eval" / name)
        if result.stale:  # the run was trained anew since
            continue
        asked |= {key.task for key, _ in result.by_key}
        for heading, (task, metric) in MEASURES.items():
            cell = result.by_key.get((Key(task, "test", metric), "model"))
            if cell is not None and cell.value is not None:
                found[heading] = {"value": cell.value, "low": cell.low, "high": cell.high, "n": cell.n, "unit": cell.unit}
    return found if asked >= set(TASKS) else None


def conclude(page: str, runs: Sequence[Planned], args: argparse.Namespace, console: Console) -> None:
    """Write the file of a page, if all its runs are there."""
    values = [measured(run) for run in runs]
    if any(each is None for each in values):
        console.print(f"{page}: {sum(each is None for each in values)} of {len(runs)} budgets are missing")
        return
    costs = [read_cost(run.folder) for run in runs]
    points = [
        {"share": share, "samples": cost["samples_seen"], "flops": total(cost, "train_flops"), "seconds": total(cost, "train_seconds")}
        | {"run": str(run.folder), "values": found}
        for share, run, cost, found in zip(SHARES, runs, costs, values, strict=True)
    ]
    about = {"schema": SCHEMA, "page": page, "preset": args.preset, "dataset": find(runs[0].recipe.data, "train").name, "seed": args.seed}
    hardware = ", ".join(dict.fromkeys(cost["hardware"] for cost in costs))
    write_json(args.runs / "frontier" / f"{page}.json", about | {"points": points, "hardware": hardware} | origin(costs))
    best = ", ".join(f"{name} {each['value']:.3f}" for name, each in points[-1]["values"].items())
    console.print(f"{page}: {points[-1]['flops'] / 1e12:,.0f} TFLOP: {best}")


def total(cost: Json, name: str) -> float:
    """A cost with those of all prerequisites, which leave out what is 0."""
    return float(cost.get(name) or 0.0) + sum(total(each, name) for each in (cost.get("prerequisites") or {}).values())


if __name__ == "__main__":
    main()
