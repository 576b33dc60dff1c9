"""Estimate training time from finished runs of the same kind, or else from a few training steps."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

import models
from data.files import FileError, read_json
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Log, Stage
from recipes.train.stages import prerequisites

STEPS = 5  # timed steps, after one that is not timed


class Run(Protocol):
    @property
    def recipe(self) -> AnyRecipe: ...
    @property
    def preset(self) -> str: ...


def estimate(untrained: Sequence[Run], missing: int, jobs: int, runs: Path) -> str:
    """A sentence with the estimated time to train the runs, `jobs` in parallel. `missing` counts all runs without a measurement, whether
    or not they are trained."""
    if not untrained:
        return f"Nothing to train; {missing} finished runs to evaluate" if missing else "All runs are trained and measured"
    known: dict[str, tuple[float, str]] = {}
    seconds = 0.0
    for run in untrained:
        kind = f"{models.model_of(run.recipe.model).name} {run.preset}"
        if kind not in known:
            known[kind] = _finished_rate(run, runs) or _measured_rate(run, runs)
        seconds += known[kind][0] * run.recipe.samples
    samples = sum(run.recipe.samples for run in untrained)
    grounds = "; ".join(f"{kind}: {1 / rate:,.0f} samples/s {how}" for kind, (rate, how) in known.items() if rate)
    unknown = [kind for kind, (rate, _) in known.items() if not rate]
    about = f"about {seconds / min(jobs, len(untrained)) / 60:,.0f} minutes" if seconds else "time unknown"
    rest = f", not counting {', '.join(unknown)}, whose speed is unknown" if unknown and seconds else ""
    basis = grounds or "no finished run to estimate from"
    return f"{len(untrained)} runs to train ({samples:,} samples in total), {about}, {jobs} in parallel ({basis}){rest}"


def _finished_rate(run: Run, runs: Path) -> tuple[float, str] | None:
    """Seconds per sample of finished runs with the same model and preset, on one thread or on a GPU."""
    found = []
    for path in [*runs.glob("*/recipe.json"), *(runs / "claims" / "runs").glob("*/recipe.json")]:
        try:
            recipe = read_json(path)
            if (recipe["name"], recipe.get("preset")) != (models.model_of(run.recipe.model).name, run.preset) or not finished(path.parent):
                continue
            cost = read_cost(path.parent)
            if cost["threads"] == 1 or "CPU" not in cost["hardware"]:
                found.append(cost["train_seconds"] / cost["samples_seen"])
        except (FileError, KeyError, TypeError, ZeroDivisionError):  # another run's broken file: only a figure less
            continue
    return (statistics.median(found), f"in {len(found)} finished runs") if found else None


def _measured_rate(run: Run, runs: Path) -> tuple[float, str]:
    """Seconds per sample, measured in a few steps of each stage; 0 if a prerequisite is not trained yet."""
    if not all(finished(each.folder) for each in prerequisites(run.recipe, run.preset, runs)):
        return 0.0, ""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the runs themselves
    rates = measured_rates(run.recipe, run.preset, runs, STEPS)
    torch.set_num_threads(threads)
    seconds = sum(stage.budget / rate for stage, rate in zip(run.recipe.schedule, rates, strict=True))
    return seconds / run.recipe.samples, f"in {STEPS} steps"


def measured_rates(recipe: AnyRecipe, preset: str, runs: Path, steps: int) -> list[float]:
    """Samples per second of each stage of a recipe, the median over `steps` steps. `runs` contains its prerequisites."""
    short = _shortened(recipe, steps + 1)  # the first one is not counted
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        train(short, Path(folder) / "run", preset, shared=runs)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "train.jsonl").read_text().splitlines()]

    def rate(stage: Stage) -> float:
        rates = [line["samples_per_s"] for line in lines if line.get("stage") == stage.name and "event" not in line]
        return statistics.median(rates[1:])

    return [rate(stage) for stage in recipe.schedule]


def _shortened(recipe: AnyRecipe, steps: int) -> AnyRecipe:
    def few(stage: Stage) -> Stage:
        return replace(stage, budget=steps * stage.batch, optim=replace(stage.optim, warmup=0))

    same = replace(recipe, log=Log(every=1, validate=0))
    if recipe.stages:
        return replace(same, stages=tuple(few(stage) for stage in recipe.stages))
    return replace(same, budget=steps * recipe.batch, optim=replace(same.optim, warmup=0))
