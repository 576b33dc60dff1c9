"""The training loop for all models. It uses a model only through the interface in models/contract.py.

An interrupted run resumes when started again. Ctrl-C and SIGTERM save a checkpoint before stopping. Under torchrun, each process gets a
share of every batch.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import models.shared.text
from data.fields import require
from data.keep import keeping
from data.loader import Loader, deal, in_order
from data.sample import Sample
from data.shards import Split, find, splits
from data.texts import texts
from eval.base.heartbeat import heartbeat
from models.contract import Batch, Model
from models.shared.device import hardware
from models.shared.recompute import recompute
from models.shared.text import BPETokenizer, Tokenizer, named_tokenizer
from recipes.train import checkpoint
from recipes.train.distributed import Process, Votes
from recipes.train.folder import CHECKPOINT, exclusive_lock, finished, keep_stage, open_run, save_model, write_cost
from recipes.train.log import Reporter
from recipes.train.optimiser import clip_gradients, optimiser, step_if_finite
from recipes.train.parallel import parallel
from recipes.train.progress import Progress
from recipes.train.quality import Quality
from recipes.train.recipe import AnyRecipe, Stage
from recipes.train.stages import Needed, adapt_stages, adopt, constructed, describe, enter, prerequisites, set_training
from recipes.train.step import backward
from recipes.train.watch import Signals, Watch

PART = 256  # training samples that a model reads at a time before the first step


def train(recipe: AnyRecipe, folder: Path, preset: str = "custom", shared: Path | None = None, *, page: str = "") -> int:
    """Train a recipe in a run folder, from its last checkpoint if there is one. Missing prerequisites are trained first, in folders under
    `shared` (default: the parent of `folder`). `page` (default: the model's name) and `preset` are recorded in recipe.json.

    Returns a process exit status: 0, or 128 + the number of the signal that stopped it.
    """
    process = Process.find(recipe.device)
    status = _train(recipe, folder, page or models.model_of(recipe.model).name, preset, shared or folder.parent, process)
    process.close()
    return status


def _train(recipe: AnyRecipe, folder: Path, page: str, preset: str, shared: Path, process: Process) -> int:
    if recipe.weights and recipe.prerequisites:
        roles = ", ".join(each.role for each in recipe.prerequisites)
        raise ValueError(f"weights {recipe.weights!r} replace the whole model, but this recipe builds on {roles}: omit WEIGHTS=")
    split = training_split(recipe)
    for stage in recipe.schedule:
        within = f"at most the {split.samples} samples of {split.name}/{split.split}"
        require(split.samples is None or stage.batch <= split.samples, f"batch of stage {stage.name!r}", stage.batch, within)
    with heartbeat(lambda: "" if process.rank else f"{folder}: getting ready"), exclusive_lock(folder, process):
        begun = open_run(folder, recipe, page, preset, process)
        if finished(folder):
            if process.rank == 0:
                print(f"{folder} is trained ({recipe.samples:,} samples). For a new run set SEED= or OUT=", file=sys.stderr)
            return 0
        needed = [] if begun else prerequisites(recipe, preset, shared)
        for each in needed:
            if process.rank == 0:
                print(f"{folder} requires {each.folder} as {each.role}: {each.state}", file=sys.stderr)
            if finished(each.folder):
                open_run(each.folder, each.recipe, each.page, each.preset, process)
            elif status := _train(each.recipe, each.folder, each.page, each.preset, shared, process):
                return status
        return _learn(recipe, split, folder, process, needed, begun=begun)


def training_split(recipe: AnyRecipe) -> Split:
    """The shards and samples that a recipe trains on. Raises DataError or FileError."""
    return keeping(find(recipe.data, "train"), recipe.keep).first(recipe.shards)


def _learn(recipe: AnyRecipe, split: Split, folder: Path, process: Process, needed: Sequence[Needed], *, begun: bool) -> int:
    for stage in recipe.schedule:
        if stage.batch % process.world:
            raise ValueError(f"batch {stage.batch} must be a multiple of the number of processes, {process.world}")
    state_path = folder / CHECKPOINT
    left = checkpoint.read_progress(state_path) if state_path.exists() else None
    progress = left or Progress()
    if progress.loader:
        progress.loader = deal(progress.loader, process.world)
    report = Reporter(folder, recipe, step=progress.step, samples=progress.samples, active=process.rank == 0)
    model = build(recipe, split, folder, process, needed, progress, begun=begun)
    if not begun:
        parts = in_order(split, batch_size=PART, needs=model.needs)
        model.remember(report.counting("training samples read", parts, split.samples))
        if process.rank == 0:
            models.describe(model, folder)  # `remember` may have changed its configuration
    report.event("resume" if progress.step else "start", _headline(recipe, model, split, process, progress), step=progress.step)
    if recipe.recompute:
        recompute(model)
    if recipe.compile:
        model.encode = torch.compile(model.encode)  # type: ignore[method-assign]
    autocast = process.autocast(recipe.precision)
    stopped, votes = Signals(), Votes(process)

    passes = None
    first = progress.stage
    for number in range(first, len(recipe.schedule)):
        stage = enter(model, recipe, number, progress)
        if not (passes and recipe.sharded):
            passes = parallel(model, process, shard=recipe.sharded)
        optimizer = optimiser(model, stage.optim, fused=process.device.type == "cuda", precision=recipe.precision)
        if left and number == first:
            checkpoint.load(state_path, model, optimizer)
        loader = _loader(recipe, stage, split, model, passes, process, progress, report)
        report.event("stage", describe(model, recipe, stage, progress), step=progress.step, stage=stage.name)
        validation = _validation_batches(recipe, stage, model, process)
        quality = Quality(recipe if process.world == 1 else replace(recipe, log=replace(recipe.log, measure=0)))
        watch = Watch(recipe, stage, report, progress, process)
        set_training(model)
        endless = iter(loader)
        stop = process.any(stopped.signal is not None)
        while progress.in_stage < stage.budget and not stop:
            with watch.waiting():
                batch = {name: rows.to(process.device, non_blocking=True) for name, rows in next(endless).items()}
            for group in optimizer.param_groups:
                group["lr"] = stage.optim.lr_at(progress.in_stage, stage.budget)
            seed = (recipe.seed * 1_000_003 + progress.step) * process.world + process.rank
            with flop_counter() if not progress.flops else contextlib.nullcontext() as flops:
                losses = backward(model, batch, micro_batch=recipe.micro_batch, autocast=autocast, seed=seed, passes=passes)
                norm = clip_gradients(model.parameters(), stage.optim.clip_norm)
                step_if_finite(optimizer, norm)
            if flops is not None:
                progress.flops = flops.get_total_flops() * process.world / stage.batch
            on_host = norm.device.type == "cpu"  # on a GPU, asking would make the host wait for the step
            if (not on_host or math.isfinite(norm)) and (complaint := model.after_step()):
                report.event("warning", complaint, step=progress.step)
            optimizer.zero_grad()
            progress.step += 1
            progress.samples += stage.batch
            watch.step(losses, norm, optimizer.param_groups[0]["lr"], loader)
            if progress.in_stage // stage.batch % max(1, stage.budget // stage.batch // 10) == 0:
                if validation:
                    _validate(model, validation, autocast, report, progress)
                if quality.tasks:
                    with watch.pausing():
                        _measure(model, quality, report, progress, watch.seconds())
            save, stop = votes.any(watch.due_to_save(), stopped.signal is not None)  # clocks differ, and saving gathers from all ranks
            if save:
                _save(state_path, model, optimizer, progress, loader, watch, report, process)
        _save(state_path, model, optimizer, progress, loader, watch, report, process)
        if progress.in_stage < stage.budget:
            break
        if stage.name in model.asked_after:
            keep_stage(folder, recipe, stage, model, process, progress)

    stopped.release()
    done = progress.complete(recipe)
    save_model(model, folder, process)
    if process.rank == 0:
        write_cost(folder, recipe, model, process, progress)
        end = "done" if done else "stopped by a signal and saved; run the same command to resume"
        report.event("end", f"{folder}: {progress.samples:,} samples in {progress.seconds:,.0f} s, {end}", step=progress.step)
    report.close()
    process.wait()  # so that the files exist on every rank when this returns
    return 0 if done else 128 + (stopped.signal or signal.SIGTERM)  # the signal may have reached another rank


# ------------------------------------------------------------------------------------------------ the model


def build(
    recipe: AnyRecipe, split: Split, folder: Path, process: Process, needed: Sequence[Needed], progress: Progress, *, begun: bool
) -> Model:
    """Build the model with its tokenizer, prerequisites and published backbones, identically on every rank. If training has begun
    (`begun`), build it as described in the run folder."""
    device = "cpu" if recipe.sharded and process.world > 1 else str(process.device)  # from where it is taken to the devices in shares
    if begun:
        return models.load(folder, device, weights=False)
    adopted = {each.role: models.load(each.folder) for each in needed}
    kind = models.model_of(recipe.model)
    torch.manual_seed(recipe.seed)
    if recipe.weights:
        model = models.load(recipe.weights)
        if not isinstance(model, kind):
            raise ValueError(f"{recipe.weights} is {type(model).__name__}, but the recipe trains {kind.__name__}")
        model.leave_out(())  # what the weights lack is trained
        progress.sources |= {name: recipe.weights for name, _ in model.named_children()}
    else:
        tokenizer = _tokenizer(recipe, split, adopted) if kind.reads_text() else None
        config = kind.configured(recipe.model, tokenizer=tokenizer, split=split)
        model = constructed(kind, config, tokenizer)
    adopt(model, needed, adopted, progress)
    progress.sources |= model.fetch()
    if recipe.lora_rank:
        adapt_stages(model, recipe)
    if process.rank == 0:
        models.describe(model, folder)
    process.wait()
    return model.to(device)


def _tokenizer(recipe: AnyRecipe, split: Split, adopted: Mapping[str, Any]) -> Tokenizer:
    if recipe.tokenizer in adopted:
        return adopted[recipe.tokenizer].tokenizer
    if recipe.tokenizer.startswith("train"):
        return BPETokenizer.train(texts(split, limit=200_000, questions=recipe.tokenizer == "train+questions"), recipe.vocab_size)
    return named_tokenizer(recipe.tokenizer)


# ---------------------------------------------------------------------------------------------------- helpers


def _loader(
    recipe: AnyRecipe,
    stage: Stage,
    split: Split,
    model: Model,
    passes: nn.Module,
    process: Process,
    progress: Progress,
    report: Reporter,
) -> Loader:
    def precompute(samples: Sequence[Sample]) -> Sequence[Sample]:
        """Add the cost of precomputing to that of the training, but not again on resuming: a resumed run reports the same cost as an
        uninterrupted one."""
        start = time.monotonic()
        parts = (samples[first : first + PART] for first in range(0, len(samples), PART))
        counted = report.counting("features computed once", parts, len(samples))
        with torch.no_grad(), flop_counter() as flops:
            found = [sample for part in counted for sample in passes(model.precompute, part)]
        if not progress.in_stage:
            progress.spent += flops.get_total_flops() * process.world
            progress.seconds += time.monotonic() - start
        return found

    return Loader(
        split,
        batch_size=stage.batch // process.world,
        collate=model.collate,
        seed=recipe.seed + 1_000_003 * progress.stage,  # a different order in each stage
        rank=process.rank,
        world=process.world,
        workers=recipe.workers,
        needs=model.needs,
        precompute=precompute,
        memory_budget=int(recipe.memory_gb * 2**30),
        state=progress.loader[process.rank] if progress.loader else None,
    )


def _save(
    path: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    loader: Loader,
    watch: Watch,
    report: Reporter,
    process: Process,
) -> None:
    progress.seconds, watch.saved = watch.seconds(), time.monotonic()
    progress.loader = process.gather(loader.state())
    checkpoint.save(path, model, optimizer, progress)
    report.event("save", str(path), step=progress.step)


def _validation_batches(recipe: AnyRecipe, stage: Stage, model: Model, process: Process) -> list[Batch]:
    """The first samples of the val split, in batches of the training batch size, so that losses are comparable. Empty without a val split
    and for models that are not trained by gradient."""
    batches: list[Batch] = []
    learning = any(parameter.requires_grad for parameter in model.parameters())
    if not learning or not recipe.log.validate or process.world > 1 or "val" not in splits(recipe.data):
        return batches
    for samples in in_order(find(recipe.data, "val"), batch_size=stage.batch, needs=model.needs):
        if len(samples) < stage.batch or len(batches) * stage.batch >= recipe.log.validate:
            break
        batches.append(model.collate(model.precompute(samples)))
    return batches


@torch.no_grad()
def _validate(model: Model, batches: list[Batch], autocast: Any, report: Reporter, progress: Progress) -> None:
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for batch in batches:
        with autocast:
            features = model.encode({name: rows.to(device) for name, rows in batch.items()})
        total += model.objective(features).total.item()
    set_training(model)
    loss = total / len(batches)
    report.event("validate", f"validation loss {loss:.4f}", step=progress.step, samples=progress.samples, loss=loss)


def _measure(model: Model, quality: Quality, report: Reporter, progress: Progress, seconds: float) -> None:
    model.eval()
    values = quality.of(model)
    set_training(model)
    said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    cost = {"samples": progress.samples, "seconds": seconds, "flops": progress.total_flops}
    report.event("quality", said or "nothing that this model can do", step=progress.step, **cost, values=values)


def _headline(recipe: AnyRecipe, model: Model, split: Split, process: Process, progress: Progress) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    action = f"resumes at {progress.samples:,} of" if progress.step else "will see"
    size = f"{split.samples:,} samples" if split.samples else "samples not counted yet"
    if split.keep:
        size += f" of {split.keep.of:,}" * bool(split.keep.of) + f", kept by {split.keep.path}"
    return (
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {action} {recipe.samples:,} samples of "
        f"{split.name}/{split.split} ({size}) on {process.world} x {hardware(process.device)}"
    )


def flop_counter(**options: Any) -> FlopCounterMode:
    """A FLOP counter that does not count per module: torch's module tracker fails if a parameter is expanded without gradients, as in
    SigLIP's pooling in the first pass over micro-batches."""
    counter = FlopCounterMode(display=False, **options)
    counter.mod_tracker = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None)  # type: ignore[assignment]
    return counter
