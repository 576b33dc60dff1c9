"""The training loop: `python -m recipes.train clip tiny --out .runs/clip-tiny-s0 [--optim.lr 1e-3 ...]` (= `make train-clip`).

Run it again to resume. Ctrl-C or SIGTERM saves first. Under torchrun every process takes a share of each batch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import models.text
from data.captions import captions
from data.loader import Loader, in_order
from data.shards import DataError, Split, find, splits
from models.published import published
from models.text import BPETokenizer, Tokenizer, named_tokenizer
from recipes import checkpoint
from recipes.log import Reporter
from recipes.place import Place, hardware, peak_memory_mb
from recipes.recipe import AnyRecipe, Optim, Recipe
from recipes.step import average_gradients, backward
from recipes.watch import Watch

CHECKPOINT = "checkpoint.safetensors"


def train(recipe: AnyRecipe, folder: Path, preset: str = "custom") -> int:
    """Train into a run folder, from where it was left. Returns a process exit status: 0, or 128 + the signal that stopped it."""
    place = Place.find(recipe.device)
    split = find(recipe.data, "train")
    begun = _claim(folder, recipe, preset, place)
    if _finished(folder):
        print(f"{folder} is trained ({recipe.budget:,} samples). Another: SEED=, OUT=, or remove the folder", file=sys.stderr)
        place.close()
        return 0
    model = build(recipe, split, folder, place, begun=begun)
    optimizer = adamw(model, recipe.optim, fused=place.device.type == "cuda")
    state_path = folder / CHECKPOINT
    progress: dict[str, Any] = {"step": 0, "samples": 0, "seconds": 0.0, "flops": 0, "loader": None}
    if state_path.exists():
        progress = checkpoint.load(state_path, model, optimizer)
    if recipe.batch % place.world:
        raise ValueError(f"batch {recipe.batch} cannot be shared by {place.world} processes; make it a multiple of {place.world}")
    if progress["loader"] and len(progress["loader"]) != place.world:
        raise ValueError(f"{folder} was begun by {len(progress['loader'])} processes, now there are {place.world}: resume with as many")
    loader = Loader(
        split,
        batch_size=recipe.batch // place.world,
        collate=model.collate,
        seed=recipe.seed,
        rank=place.rank,
        world=place.world,
        workers=recipe.workers,
        memory_budget=int(recipe.memory_gb * 2**30),
        state=progress["loader"] and progress["loader"][place.rank],
    )
    report = Reporter(folder, recipe, step=progress["step"], samples=progress["samples"], active=place.rank == 0)
    report.event("resume" if progress["step"] else "start", _headline(recipe, model, split, loader, place, progress), step=progress["step"])
    if recipe.compile:
        model.encode = torch.compile(model.encode)
    autocast = place.autocast(recipe.precision)
    validation = _validation_batch(recipe, model, place)
    watch = Watch(recipe, report, progress, place)
    stopped = _Signals()

    def save() -> None:
        progress["seconds"], watch.saved = watch.seconds(), time.monotonic()
        progress["loader"] = place.gather(loader.state())
        if place.rank == 0:
            checkpoint.save(state_path, model, optimizer, progress)
            report.event("save", str(state_path), step=progress["step"])

    model.train()
    batches = iter(loader)
    while progress["samples"] < recipe.budget and not place.any(stopped.signal is not None):
        with watch.waiting():
            batch = {name: rows.to(place.device, non_blocking=True) for name, rows in next(batches).items()}
        for group in optimizer.param_groups:
            group["lr"] = recipe.optim.lr_at(progress["samples"], recipe.budget)
        seed = (recipe.seed * 1_000_003 + progress["step"]) * place.world + place.rank
        with _flop_counter() if not progress["flops"] else contextlib.nullcontext() as flops:
            losses = backward(model, batch, micro_batch=recipe.micro_batch, autocast=autocast, seed=seed)
        if flops is not None:
            progress["flops"] = flops.get_total_flops() * place.world / recipe.batch  # per sample
        average_gradients(model.parameters())
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm))
        if math.isfinite(norm):
            optimizer.step()
            if hasattr(model, "after_step"):
                model.after_step()
        optimizer.zero_grad()
        progress["step"] += 1
        progress["samples"] += recipe.batch
        watch.step(losses, norm, optimizer.param_groups[0]["lr"], loader)
        if validation and progress["step"] % max(1, recipe.budget // recipe.batch // 10) == 0:
            _validate(model, validation, autocast, report, progress)
        if place.any(watch.due_to_save()):  # saving gathers from all ranks, and their clocks differ
            save()

    save()
    finished = progress["samples"] >= recipe.budget
    if place.rank == 0:
        models.save(model, folder)
        _write_cost(folder, recipe, model, place, progress)
        end = "done" if finished else "stopped by a signal and saved: run again to resume"
        report.event("end", f"{folder}: {progress['samples']:,} samples in {progress['seconds']:,.0f} s, {end}", step=progress["step"])
    report.close()
    place.wait()  # on every rank the files are there when this returns
    place.close()
    return 0 if finished else 128 + (stopped.signal or signal.SIGTERM)  # another rank may have got the signal


# ------------------------------------------------------------------------------------------------ what is trained


def build(recipe: AnyRecipe, split: Split, folder: Path, place: Place, *, begun: bool) -> Any:
    """The model with its tokenizer, the same on every rank; the tokenizer of the run folder when training there has begun."""
    model_class, _ = models.classes(_name(recipe))
    torch.manual_seed(recipe.seed)
    if recipe.weights:
        model = published(recipe.weights)
        if not isinstance(model, model_class):
            raise ValueError(f"{recipe.weights} is a {type(model).__name__}, and the recipe trains a {model_class.__name__}")
    else:
        tokenizer = models.text.load_tokenizer(folder) if begun else _tokenizer(recipe, split)
        model = model_class(replace(recipe.model, vocab_size=tokenizer.vocab_size), tokenizer)
    if place.rank == 0 and not begun:
        models.describe(model, folder)
    place.wait()
    return model.to(place.device)


def _tokenizer(recipe: AnyRecipe, split: Split) -> Tokenizer:
    if recipe.tokenizer == "train":
        return BPETokenizer.train(captions(split, limit=200_000), recipe.vocab_size)
    return named_tokenizer(recipe.tokenizer)


def adamw(model: nn.Module, optim: Optim, *, fused: bool = True) -> torch.optim.AdamW:
    """Two groups: matrices decay; gains, biases and scalars do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)


def _name(recipe: AnyRecipe) -> str:
    return next(name for name, (_, _, config) in models.TABLE.items() if config == type(recipe.model).__name__)


def _claim(folder: Path, recipe: AnyRecipe, preset: str, place: Place) -> bool:
    """A run folder belongs to one recipe: refuse to continue it with another. Returns whether there is anything to continue."""
    path = folder / "recipe.json"
    wanted = json.loads(json.dumps({"name": _name(recipe), "preset": preset, **asdict(recipe)}))
    free = ("preset", "device", "compile", "workers", "memory_gb", "save_minutes", "log", "micro_batch")  # rounding and order
    begun = any((folder / left).exists() for left in (CHECKPOINT, "model.safetensors"))
    if begun:
        found = json.loads(path.read_text())
        differs = [key for key, value in wanted.items() if key not in free and found.get(key) != value]
        if differs:
            changes = "; ".join(f"{key}: {found.get(key)} there, {wanted[key]} now" for key in differs)
            raise ValueError(f"{folder} was trained with another recipe ({changes}). Choose another OUT=, or remove it")
    elif place.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1))
    place.wait()
    return begun


# ---------------------------------------------------------------------------------------------------- on the side


class _Signals:
    """Remembers SIGTERM and SIGINT until the step is over; a second one is not caught."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, _: object) -> None:
        self.signal = number
        for known, handler in self.before.items():
            signal.signal(known, handler)


def _validation_batch(recipe: AnyRecipe, model: Any, place: Place) -> list[dict[str, torch.Tensor]]:
    """The first samples of the val split as batches of the training's size, so that losses compare; empty without such a split."""
    batches: list[dict[str, torch.Tensor]] = []
    if not recipe.log.validate or place.world > 1 or "val" not in splits(recipe.data):
        return batches
    for samples in in_order(find(recipe.data, "val"), batch_size=recipe.batch, needs=("captions",)):
        if len(samples) < recipe.batch or len(batches) * recipe.batch >= recipe.log.validate:
            break
        batches.append(model.collate(samples))
    return batches


@torch.no_grad()
def _validate(model: Any, batches: list[dict[str, torch.Tensor]], autocast: Any, report: Reporter, progress: dict[str, Any]) -> None:
    model.eval()
    device = next(model.parameters()).device
    total = 0.0
    for batch in batches:
        with autocast:
            features = model.encode({name: rows.to(device) for name, rows in batch.items()})
        total += model.objective(features).total.item()
    model.train()
    loss = total / len(batches)
    report.event("validate", f"validation loss {loss:.4f}", step=progress["step"], samples=progress["samples"], loss=loss)


def _headline(recipe: AnyRecipe, model: nn.Module, split: Split, loader: Loader, place: Place, progress: dict[str, Any]) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    origin = f"starting from {recipe.weights}" if recipe.weights else "from scratch"
    size = f"{loader.samples:,} samples" if loader.samples else "samples not counted yet"
    action = f"resumes at {progress['samples']:,} of" if progress["step"] else "will see"
    return (
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, all trained {origin}, {action} {recipe.budget:,} samples of "
        f"{split.name}/{split.split} ({size}) in batches of {recipe.batch} on {place.world} x {hardware(place.device)}"
    )


def _flop_counter() -> FlopCounterMode:
    """Counts all modules together. Its own tracker of modules fails where a parameter is expanded without gradients, as
    SigLIP's pooling does in the first pass over micro-batches."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None)  # type: ignore[assignment]
    return counter


def _finished(folder: Path) -> bool:
    path = folder / "cost.json"
    return path.exists() and json.loads(path.read_text())["finished"]


def _write_cost(folder: Path, recipe: AnyRecipe, model: nn.Module, place: Place, progress: dict[str, Any]) -> None:
    cost = {
        "samples_seen": progress["samples"],
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": progress["seconds"],
        "train_flops": progress["flops"] * progress["samples"],
        "peak_memory_mb": peak_memory_mb(),
        "hardware": f"{place.world} x {hardware(place.device)}",
        "threads": torch.get_num_threads(),
        "finished": progress["samples"] >= recipe.budget,
    }
    part = folder / "cost.json.part"
    part.write_text(json.dumps(cost, indent=1))
    os.replace(part, folder / "cost.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model. Any field of its recipe is an option: --optim.lr 1e-3", add_help=False)
    parser.add_argument("model", choices=tuple(models.TABLE))
    parser.add_argument("preset", choices=("tiny", "small", "paper"))
    parser.add_argument("--out", type=Path, required=True)
    args, rest = parser.parse_known_args()
    default: AnyRecipe = importlib.import_module(f"recipes.{args.model}").PRESETS[args.preset]
    kind: Any = Recipe[type(default.model)]  # type: ignore[misc]  # so that tyro shows the fields of this model's configuration
    recipe = tyro.cli(kind, default=default, args=rest, prog=f"recipes.train {args.model} {args.preset}")
    try:
        sys.exit(train(recipe, args.out, args.preset))
    except (DataError, OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
