"""The training loop: `python -m recipes.train clip tiny --out .runs/clip-tiny-s0 [--optim.lr 1e-3 ...]` (= `make train-clip`).

Run it again to resume. Ctrl-C or SIGTERM saves first. Under torchrun every process takes a share of each batch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
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
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import models.text
from data.loader import Loader, in_order
from data.shards import DataError, Split, find, splits
from data.texts import texts
from models.published import published
from models.text import BPETokenizer, Tokenizer, named_tokenizer
from recipes import checkpoint
from recipes.folder import CHECKPOINT, alone, claim, finished, name_of, write_cost
from recipes.log import Reporter
from recipes.optimiser import optimiser
from recipes.place import Place, hardware
from recipes.progress import Progress
from recipes.recipe import AnyRecipe, Recipe, Stage
from recipes.stages import Needed, adopt, describe, enter, prerequisites, set_training
from recipes.step import average_gradients, backward
from recipes.watch import Signals, Watch


def train(recipe: AnyRecipe, folder: Path, preset: str = "custom", shared: Path | None = None) -> int:
    """Train into a run folder, from where it was left; before that, whatever it builds on, into folders under `shared` (beside
    `folder` unless given). Returns a process exit status: 0, or 128 + the signal that stopped it."""
    place = Place.find(recipe.device)
    status = _train(recipe, folder, preset, shared or folder.parent, place)
    place.close()
    return status


def _train(recipe: AnyRecipe, folder: Path, preset: str, shared: Path, place: Place) -> int:
    split = find(recipe.data, "train").first(recipe.shards)
    with alone(folder, place):
        begun = claim(folder, recipe, preset, place)
        if finished(folder):
            if place.rank == 0:
                print(f"{folder} is trained ({recipe.samples:,} samples). Another: SEED=, OUT=, or remove the folder", file=sys.stderr)
            return 0
        needed = [] if begun else prerequisites(recipe, preset, shared)
        for each in needed:
            if place.rank == 0:
                print(f"{folder} needs {each.folder} as its {each.role}: {each.state}", file=sys.stderr)
            if finished(each.folder):
                claim(each.folder, each.recipe, each.preset, place)
            elif status := _train(each.recipe, each.folder, each.preset, shared, place):
                return status
        return _learn(recipe, split, folder, place, needed, begun=begun)


def _learn(recipe: AnyRecipe, split: Split, folder: Path, place: Place, needed: Sequence[Needed], *, begun: bool) -> int:
    for stage in recipe.schedule:
        if stage.batch % place.world:
            raise ValueError(f"batch {stage.batch} cannot be shared by {place.world} processes; make it a multiple of {place.world}")
    state_path = folder / CHECKPOINT
    left = checkpoint.read_progress(state_path) if state_path.exists() else None
    if left and left.loader and len(left.loader) != place.world:
        raise ValueError(f"{folder} was begun by {len(left.loader)} processes, now there are {place.world}: resume with as many")
    progress = left or Progress()
    model = build(recipe, split, folder, place, needed, progress, begun=begun)
    if not begun and hasattr(model, "remember"):  # documents to retrieve from; they become part of its state
        model.remember(in_order(split, batch_size=256, needs=("captions",)))
        if place.rank == 0:
            models.describe(model, folder)  # what it remembers may be part of its configuration
    report = Reporter(folder, recipe, step=progress.step, samples=progress.samples, active=place.rank == 0)
    report.event("resume" if progress.step else "start", _headline(recipe, model, split, place, progress), step=progress.step)
    fitted = hasattr(model, "fit")  # instead of being trained it takes samples in
    if recipe.compile and not fitted:
        model.encode = torch.compile(model.encode)
    autocast = place.autocast(recipe.precision)
    stopped = Signals()

    first = progress.stage
    for number in range(first, len(recipe.schedule)):
        stage = enter(model, recipe, number, progress)
        optimizer = optimiser(model, stage.optim, fused=place.device.type == "cuda")
        if left and number == first:
            checkpoint.load(state_path, model, optimizer)
        loader = _loader(recipe, stage, split, model, place, progress)
        report.event("stage", describe(model, recipe, stage, progress), step=progress.step, stage=stage.name)
        validation = [] if fitted else _validation_batch(recipe, stage, model, place)
        watch = Watch(recipe, stage, report, progress, place)
        set_training(model)
        batches = iter(loader)
        while progress.in_stage < stage.budget and not place.any(stopped.signal is not None):
            with watch.waiting():
                batch = {name: rows.to(place.device, non_blocking=True) for name, rows in next(batches).items()}
            for group in optimizer.param_groups:
                group["lr"] = stage.optim.lr_at(progress.in_stage, stage.budget)
            seed = (recipe.seed * 1_000_003 + progress.step) * place.world + place.rank
            with _flop_counter() if not progress.flops else contextlib.nullcontext() as flops:
                if fitted:
                    losses = model.fit(batch)  # None: nothing is learned
                else:
                    losses = backward(model, batch, micro_batch=recipe.micro_batch, autocast=autocast, seed=seed)
                average_gradients(model.parameters())
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), stage.optim.clip_norm))
                if math.isfinite(norm):
                    optimizer.step()
            if flops is not None:
                progress.flops = flops.get_total_flops() * place.world / stage.batch
            if math.isfinite(norm) and hasattr(model, "after_step") and (complaint := model.after_step()):
                report.event("warning", complaint, step=progress.step)
            optimizer.zero_grad()
            progress.step += 1
            progress.samples += stage.batch
            watch.step(losses, norm, optimizer.param_groups[0]["lr"], loader)
            if validation and progress.in_stage // stage.batch % max(1, stage.budget // stage.batch // 10) == 0:
                _validate(model, validation, autocast, report, progress)
            if place.any(watch.due_to_save()):  # saving gathers from all ranks, and their clocks differ
                _save(state_path, model, optimizer, progress, loader, watch, report, place)
        _save(state_path, model, optimizer, progress, loader, watch, report, place)
        if progress.in_stage < stage.budget:
            break

    stopped.release()
    done = progress.complete(recipe)
    if place.rank == 0:
        models.save(model, folder)
        write_cost(folder, recipe, model, place, progress)
        end = "done" if done else "stopped by a signal and saved: run again to resume"
        report.event("end", f"{folder}: {progress.samples:,} samples in {progress.seconds:,.0f} s, {end}", step=progress.step)
    report.close()
    place.wait()  # on every rank the files are there when this returns
    return 0 if done else 128 + (stopped.signal or signal.SIGTERM)  # another rank may have got the signal


# ------------------------------------------------------------------------------------------------ what is trained


def build(recipe: AnyRecipe, split: Split, folder: Path, place: Place, needed: Sequence[Needed], progress: Progress, *, begun: bool) -> Any:
    """The model with its tokenizer and all that it takes over, the same on every rank; as the run folder describes it when
    training there has begun."""
    if begun:
        return models.load(folder, str(place.device), weights=False)
    adopted = {each.role: models.load(each.folder) for each in needed}
    model_class, _ = models.classes(name_of(recipe))
    torch.manual_seed(recipe.seed)
    if recipe.weights:
        model = published(recipe.weights)
        if not isinstance(model, model_class):
            raise ValueError(f"{recipe.weights} is a {type(model).__name__}, and the recipe trains a {model_class.__name__}")
        progress.sources |= {name: recipe.weights for name, _ in model.named_children()}
    else:
        tokenizer = _tokenizer(recipe, split, adopted)
        words = {"vocab_size": tokenizer.vocab_size} if hasattr(recipe.model, "vocab_size") else {}  # an image tokenizer has none
        model = model_class(replace(recipe.model, **words), tokenizer)
    adopt(model, needed, adopted, progress)
    if fetch := getattr(model, "fetch", None):  # weights of backbones that its configuration names
        progress.sources |= fetch()
    if place.rank == 0:
        models.describe(model, folder)
    place.wait()
    return model.to(place.device)


def _tokenizer(recipe: AnyRecipe, split: Split, adopted: Mapping[str, Any]) -> Tokenizer:
    if recipe.tokenizer in adopted:
        return adopted[recipe.tokenizer].tokenizer
    if recipe.tokenizer.startswith("train"):
        return BPETokenizer.train(texts(split, limit=200_000, questions=recipe.tokenizer == "train+questions"), recipe.vocab_size)
    return named_tokenizer(recipe.tokenizer)


# ---------------------------------------------------------------------------------------------------- on the side


def _loader(recipe: AnyRecipe, stage: Stage, split: Split, model: Any, place: Place, progress: Progress) -> Loader:
    return Loader(
        split,
        batch_size=stage.batch // place.world,
        collate=model.collate,
        seed=recipe.seed + 1_000_003 * progress.stage,  # another order than in the stage before
        rank=place.rank,
        world=place.world,
        workers=recipe.workers,
        memory_budget=int(recipe.memory_gb * 2**30),
        state=progress.loader[place.rank] if progress.loader else None,
    )


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    loader: Loader,
    watch: Watch,
    report: Reporter,
    place: Place,
) -> None:
    progress.seconds, watch.saved = watch.seconds(), time.monotonic()
    progress.loader = place.gather(loader.state())
    if place.rank == 0:
        checkpoint.save(path, model, optimizer, progress)
        report.event("save", str(path), step=progress.step)


def _validation_batch(recipe: AnyRecipe, stage: Stage, model: Any, place: Place) -> list[dict[str, torch.Tensor]]:
    """The first samples of the val split as batches of the training's size, so that losses compare; empty without such a split."""
    batches: list[dict[str, torch.Tensor]] = []
    if not recipe.log.validate or place.world > 1 or "val" not in splits(recipe.data):
        return batches
    for samples in in_order(find(recipe.data, "val"), batch_size=stage.batch, needs=("captions",)):
        if len(samples) < stage.batch or len(batches) * stage.batch >= recipe.log.validate:
            break
        batches.append(model.collate(samples))
    return batches


@torch.no_grad()
def _validate(model: Any, batches: list[dict[str, torch.Tensor]], autocast: Any, report: Reporter, progress: Progress) -> None:
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


def _headline(recipe: AnyRecipe, model: nn.Module, split: Split, place: Place, progress: Progress) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    action = f"resumes at {progress.samples:,} of" if progress.step else "will see"
    size = f"{split.samples:,} samples" if split.samples else "samples not counted yet"
    return (
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {action} {recipe.samples:,} samples of "
        f"{split.name}/{split.split} ({size}) on {place.world} x {hardware(place.device)}"
    )


def _flop_counter() -> FlopCounterMode:
    """Counts all modules together. Its own tracker of modules fails where a parameter is expanded without gradients, as
    SigLIP's pooling does in the first pass over micro-batches."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None)  # type: ignore[assignment]
    return counter


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model. Any field of its recipe is an option: --optim.lr 1e-3", add_help=False)
    parser.add_argument("model", choices=tuple(models.TABLE))
    parser.add_argument("preset", choices=("tiny", "small", "paper"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, help="where runs are found or put that this one builds on; beside --out unless given")
    args, rest = parser.parse_known_args()
    default: AnyRecipe = importlib.import_module(f"recipes.{args.model}").PRESETS[args.preset]
    kind: Any = Recipe[type(default.model)]  # type: ignore[misc]  # so that tyro shows the fields of this model's configuration
    recipe = tyro.cli(kind, default=default, args=rest, prog=f"recipes.train {args.model} {args.preset}")
    try:
        sys.exit(train(recipe, args.out, args.preset, args.shared))
    except (DataError, OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
