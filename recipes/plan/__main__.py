"""Estimate the cost of a training run: `make plan-clip PRESET=paper` prints parameters, FLOPs, memory, disk, and time or GPU-hours.

Nothing is downloaded and nothing is written. FLOPs and memory are those of the loop's own step on tensors without values (trace.py); time
on this machine is measured in a few real steps, unless the preset is the paper's or the device is not here.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from rich.table import Table

import models
from data.fields import require, whole_numbers
from data.memory import fits
from data.shards import DataError, Split
from eval.base.console import plain_console
from models.contract import Model
from models.shared.device import hardware, multiplies_bf16, resolve_device
from recipes.claims.estimate import measured_rates
from recipes.gpu.short import from_hub, offline
from recipes.plan.stand_ins import stand_in
from recipes.plan.trace import Step, trace
from recipes.train.folder import finished
from recipes.train.loop import training_split
from recipes.train.pages import with_options
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Stage
from recipes.train.stages import enter, prerequisites

STEPS = 10
PEAK, SHARE = 989.0, 40.0  # TFLOP/s of an H100 in bf16 without sparsity, by its data sheet; % that good trainings of transformers reach


@dataclass(frozen=True)
class Planned:
    """A stage on a number of devices: modules with their trained and all parameters, and a device's step."""

    stage: Stage
    ranks: int
    modules: dict[str, tuple[int, int]]
    step: Step


@dataclass(frozen=True)
class Plan:
    stages: list[Planned]
    model_bytes: int
    checkpoint_bytes: int
    held_bytes: int
    """of data in memory"""


def plan(recipe: AnyRecipe, preset: str, ranks: Sequence[int], *, on_gpu: bool) -> Plan:
    """Every stage on each number of devices that divides its batch. Raises ValueError if no step can be traced."""
    split, bf16 = training_data(recipe, preset), computes_bf16(recipe, on_gpu=on_gpu)
    held = not at_paper_scale(preset) and (split is None or fits(split, int(recipe.memory_gb * 2**30)))
    stand = stand_in(recipe, preset, split, cached=held, full=at_paper_scale(preset), on_gpu=on_gpu)
    found, progress, most = [], Progress(), 0
    for number, stage in enumerate(recipe.schedule):
        enter(stand.model, recipe, number, progress)
        modules = _modules(stand.model)
        for count in ranks:
            if stage.batch % count == 0:
                batch = stand.batch(stage.batch // count)
                step = trace(stand.model, stage.optim, batch, micro_batch=recipe.micro_batch, bf16=bf16, on_gpu=on_gpu)
                found.append(Planned(stage, count, modules, step))
                most = max(most, step.optimiser)
    weights = sum(tensor.nbytes for tensor in stand.model.state_dict().values())
    return Plan(found, weights, weights + most, split.decoded_bytes or 0 if held and split else 0)


def training_data(recipe: AnyRecipe, preset: str) -> Split | None:
    """None where the data are not here, and for the embedded data at the paper's scale: nobody means these."""
    if at_paper_scale(preset) and Path(recipe.data).name.startswith("scenes"):
        return None
    try:
        return training_split(recipe)
    except FileNotFoundError:
        return None


def at_paper_scale(preset: str) -> bool:
    return "paper" in preset


def planned_for_gpu(preset: str, device: str) -> bool:
    """Whether the plan is for a GPU: as `device` says; left open, where there is one, and for presets that are made for one."""
    if device == "auto":
        return torch.cuda.is_available() or "small" in preset or at_paper_scale(preset)
    return not device.startswith("cpu")


def computes_bf16(recipe: AnyRecipe, *, on_gpu: bool) -> bool:
    if recipe.precision == "auto":
        return on_gpu or multiplies_bf16(torch.device("cpu"))
    return recipe.precision == "bf16"


def _modules(model: Model) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        trained, total = found.get(name.split(".")[0], (0, 0))
        found[name.split(".")[0]] = trained + parameter.numel() * parameter.requires_grad, total + parameter.numel()
    return found


# ------------------------------------------------------------------------------------------------------------- time


def probe(recipe: AnyRecipe, preset: str, runs: Path, *, on_gpu: bool) -> tuple[list[float], str]:
    """Samples per second of each stage, in a few steps on this machine; or none, and why not."""
    if at_paper_scale(preset):
        return [], "not probed at the paper's scale"
    if on_gpu and not torch.cuda.is_available():
        return [], "not probed: there is no CUDA device here"
    if training_data(recipe, preset) is None:
        return [], f"not probed: {recipe.data} does not exist (`make data` generates the embedded data set)"
    missing = [each.folder.name for each in prerequisites(recipe, preset, runs) if not finished(each.folder)]
    absent = [*missing, *from_hub(recipe.model), *([recipe.weights] if recipe.weights else [])]
    if not absent:
        return measured_rates(recipe, preset, runs, STEPS), _where(recipe)
    with mock.patch.object(models.model_of(recipe.model), "fetch", return_value={}):
        rates = measured_rates(offline(recipe), preset, runs, STEPS)
    return rates, f"{_where(recipe)}, with random weights in place of {', '.join(absent)}"


def _where(recipe: AnyRecipe) -> str:
    return f"{STEPS} steps on {hardware(resolve_device(recipe.device))}"


# ------------------------------------------------------------------------------------------------------------ print


def show(plan: Plan, recomputed: Plan, recipe: AnyRecipe, options: argparse.Namespace, *, on_gpu: bool) -> None:
    """A plan, beside that of the same training with `--recompute`."""
    console = plain_console()
    console.width = console.width if console.is_terminal else 160
    bits = "bf16" if computes_bf16(recipe, on_gpu=on_gpu) else "fp32"
    console.print(f"{options.page} {options.preset}: {models.model_of(recipe.model).__name__} on {'a GPU' if on_gpu else 'a CPU'}, {bits}")
    for needed in prerequisites(recipe, options.preset, options.runs):
        console.print(f"requires {needed.folder} as {needed.role}: {needed.state}; not part of this plan")
    for row in (_parameters(plan), _flops(plan), _memory(plan, recomputed)):
        console.print(row)
    console.print("a smaller --micro-batch reduces the memory of activations, too")
    held = f"; the host's memory also holds {_size(plan.held_bytes)} of decoded data" if plan.held_bytes else ""
    console.print(f"sharded: parameters, gradients and optimiser state are divided among the devices, activations are not{held}")
    both = plan.checkpoint_bytes + plan.model_bytes
    console.print(
        f"disk: {_size(both)} in the run folder: checkpoint {_size(plan.checkpoint_bytes)}, model {_size(plan.model_bytes)}; while a "
        f"checkpoint is written, the previous one is kept: up to {_size(both + plan.checkpoint_bytes)}"
    )
    if on_gpu:
        total = sum(_in_all(each) for each in plan.stages if each.ranks == min(one.ranks for one in plan.stages))
        hours = total / (options.peak * 1e12 * options.share / 100) / 3600
        console.print(
            f"GPU-hours: {_short(hours)} at {options.share:g} % of {options.peak:g} TFLOP/s (--share, --peak; 989 is an H100's in bf16)"
        )
    if options.probe:
        rates, where = probe(recipe, options.preset, options.runs, on_gpu=on_gpu)
        seconds = sum(stage.budget / rate for stage, rate in zip(recipe.schedule, rates, strict=False))
        each = ", ".join(f"{rate:,.0f} samples/s" for rate in rates)
        console.print(f"time: {f'{seconds / 60:,.1f} minutes ({each}; {where})' if rates else where}")


def _parameters(plan: Plan) -> Table:
    table = Table("stage", "module", "trained", "frozen", title="parameters")
    for each in _one_of_each_stage(plan):
        for name, (trained, total) in each.modules.items():
            table.add_row(each.stage.name, name, f"{trained:,}", f"{total - trained:,}")
        trained, total = (sum(figures) for figures in zip(*each.modules.values(), strict=True))
        table.add_row(each.stage.name, "total", f"{trained:,}", f"{total - trained:,}", end_section=True)
    return _right(table, 2)


def _flops(plan: Plan) -> Table:
    table = Table("stage", "samples", "batch", "steps", "FLOPs per step", "total FLOPs", title="floating-point operations")
    for each in _one_of_each_stage(plan):
        stage = each.stage
        steps = math.ceil(stage.budget / stage.batch)
        row = (f"{stage.budget:,}", f"{stage.batch:,}", f"{steps:,}", f"{each.step.flops * each.ranks:.3g}", f"{_in_all(each):.3g}")
        table.add_row(stage.name, *row)
    return _right(table, 1)


def _memory(plan: Plan, recomputed: Plan) -> Table:
    heads = ("parameters", "gradients", "optimiser", "activations", "together", "--recompute", "--sharded", "both")
    table = Table("stage", "devices", "samples on each", *heads, title="memory on each device, without what libraries take for themselves")
    for each, other in zip(plan.stages, recomputed.stages, strict=True):
        step, ranks = each.step, each.ranks
        parts = (step.parameters, step.gradients, step.optimiser, step.activations)
        sizes = (*parts, step.peak, other.step.peak, step.sharded(ranks), other.step.sharded(ranks))
        table.add_row(each.stage.name, str(each.ranks), f"{each.stage.batch // each.ranks:,}", *map(_size, sizes))
    return _right(table, 1)


def _one_of_each_stage(plan: Plan) -> list[Planned]:
    return list({each.stage.name: each for each in reversed(plan.stages)}.values())[::-1]


def _in_all(each: Planned) -> float:
    return each.step.flops * each.ranks * each.stage.budget / each.stage.batch


def _right(table: Table, first: int) -> Table:
    for column in table.columns[first:]:
        column.justify = "right"
    return table


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Estimate the cost of a training run. Every field of its recipe is an option, such as --micro-batch 64", add_help=False
    )
    parser.add_argument("page", help="page of recipes/, such as clip or lit")
    parser.add_argument("preset", help="one of the page's PRESETS")
    parser.add_argument("--ranks", default="", help="numbers of devices, such as 1,8,64")
    parser.add_argument("--no-probe", dest="probe", action="store_false", help="without timing steps on this machine")
    parser.add_argument("--peak", type=float, default=PEAK, help="TFLOP/s of a device")
    parser.add_argument("--share", type=float, default=SHARE, help="%% of it that a training reaches")
    parser.add_argument("--runs", type=Path, default=Path(".runs"), help="folder of the prerequisite runs")
    options, rest = parser.parse_known_args()
    try:
        require(0 < options.peak < math.inf, "--peak", options.peak, "a number above 0")
        require(0 < options.share <= 100, "--share", options.share, "a number above 0, at most 100")
        recipe = with_options(options.page, options.preset, rest, "recipes.plan")
        on_gpu = planned_for_gpu(options.preset, recipe.device)
        ranks = whole_numbers(options.ranks, "ranks", least=1) if options.ranks else [1, 8] if on_gpu else [1]
        found, recomputed = (plan(each, options.preset, ranks, on_gpu=on_gpu) for each in (recipe, replace(recipe, recompute=True)))
        show(found, recomputed, recipe, options, on_gpu=on_gpu)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
