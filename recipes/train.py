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
import platform
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import models.text
from data.captions import captions
from data.loader import Loader, in_order
from data.shards import DataError, Split, find, splits
from models.layers import Losses
from models.text import BPETokenizer, Tokenizer, named_tokenizer
from recipes import checkpoint
from recipes.log import Reporter
from recipes.recipe import AnyRecipe, Optim, Recipe
from recipes.step import average_gradients, backward

NON_FINITE_STEPS = 10  # in a row, before the run is given up


def train(recipe: AnyRecipe, folder: Path) -> int:
    """Train into a run folder, from where it was left. Returns a process exit status: 0, or 128 + the signal that stopped it."""
    place = Place.find(recipe.device)
    split = find(recipe.data, "train")
    model = build(recipe, split, folder, place)
    optimizer = adamw(model, recipe.optim, fused=place.device.type == "cuda")
    state_path = folder / "checkpoint.safetensors"
    progress: dict[str, Any] = {"step": 0, "samples": 0, "seconds": 0.0, "flops": 0, "loader": None}
    if state_path.exists():
        progress = checkpoint.load(state_path, model, optimizer)
    if progress["samples"] >= recipe.budget:
        print(f"{folder} is trained ({progress['samples']:,} samples). Another: SEED=, OUT=, or remove the folder", file=sys.stderr)
        return 0
    if recipe.batch % place.world:
        raise ValueError(f"batch {recipe.batch} cannot be shared by {place.world} processes; make it a multiple of {place.world}")
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
        model.encode = torch.compile(model.encode)  # type: ignore[method-assign]
    autocast = place.autocast(recipe.precision)
    validation = _validation_batch(recipe, split, model, place)
    watch = _Watch(recipe, report, progress)
    stopped = _Signals()

    def save() -> None:
        progress["seconds"] = watch.seconds()
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
        with FlopCounterMode(display=False) if not progress["flops"] else contextlib.nullcontext() as flops:
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
        if watch.due_to_save():
            save()

    save()
    if place.rank == 0:
        models.save(model, folder)
        _write_cost(folder, recipe, model, place, progress)
        end = f"stopped by signal {stopped.signal} and saved: run again to resume" if stopped.signal else "done"
        report.event("end", f"{folder}: {progress['samples']:,} samples in {progress['seconds']:,.0f} s, {end}", step=progress["step"])
    report.close()
    place.close()
    return 128 + stopped.signal if stopped.signal else 0


# ------------------------------------------------------------------------------------------------ what is trained


def build(recipe: AnyRecipe, split: Split, folder: Path, place: Place) -> Any:
    """The model with its tokenizer, the same on every rank; the run folder's own where it exists already."""
    _claim(folder, recipe, place)
    if (folder / "tokenizer.json").exists():
        tokenizer = models.text.load_tokenizer(folder)
    else:
        tokenizer = _tokenizer(recipe, split)
    name = _name(recipe)
    model_class, _ = models.classes(name)
    torch.manual_seed(recipe.seed)
    config = replace(recipe.model, vocab_size=tokenizer.vocab_size)
    model = model_class(config, tokenizer)
    if place.rank == 0 and not (folder / "model.json").exists():
        models.save(model, folder)
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


def _claim(folder: Path, recipe: AnyRecipe, place: Place) -> None:
    """A run folder belongs to one recipe: refuse to continue it with another."""
    path = folder / "recipe.json"
    wanted = json.loads(json.dumps({"name": _name(recipe), **asdict(recipe)}))
    free = ("device", "compile", "workers", "memory_gb", "save_minutes", "log", "micro_batch")  # do not change the result
    if path.exists():
        found = json.loads(path.read_text())
        differs = [f"{key}: {found.get(key)} there, {value} now" for key, value in wanted.items() if key not in free and found.get(key) != value]
        if differs:
            raise ValueError(f"{folder} was trained with another recipe ({'; '.join(differs)}). Choose another OUT=, or remove it")
    elif place.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1))
    place.wait()


# --------------------------------------------------------------------------------------------- where it is trained


@dataclass(frozen=True)
class Place:
    """This process among its peers, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def find(cls, device: str) -> Place:
        """From torchrun's environment; alone without it. `auto` is CUDA where there is one."""
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if "WORLD_SIZE" not in os.environ:
            return cls(0, 1, torch.device(kind))
        if kind.startswith("cuda"):
            kind = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(kind)
        dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(kind))

    def autocast(self, precision: str) -> Any:
        if precision == "auto":
            precision = "bf16" if multiplies_bf16(self.device) else "fp32"
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one, so that all leave the loop at the same step."""
        if self.world == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return bool(votes)

    def gather(self, value: Any) -> list[Any]:
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capable = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capable.get("avx512_bf16") or capable.get("amx_bf16") or capable.get("bf16"))


class _Signals:
    """Remembers SIGTERM and SIGINT until the step is over; a second one is not caught."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, _: object) -> None:
        self.signal = number
        for known, handler in self.before.items():
            signal.signal(known, handler)


# ------------------------------------------------------------------------------------------------- watching over it


class _Watch:
    """Clocks, averages, and the two guards: losses that stay at chance, and numbers that are no longer numbers."""

    def __init__(self, recipe: AnyRecipe, report: Reporter, progress: dict[str, Any]) -> None:
        self.recipe, self.report, self.progress = recipe, report, progress
        self.started = time.monotonic() - progress["seconds"]
        self.saved = self.logged = time.monotonic()
        self.waited = 0.0
        self.samples_logged = progress["samples"]
        self.non_finite = 0
        self.warned: set[str] = set()
        self.recent: dict[str, float] = {}

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def due_to_save(self) -> bool:
        due = time.monotonic() - self.saved > 60 * self.recipe.save_minutes
        if due:
            self.saved = time.monotonic()
        return due

    @contextlib.contextmanager
    def waiting(self) -> Any:
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def step(self, losses: Losses, norm: float, lr: float, loader: Loader) -> None:
        self._guard_numbers(losses, norm, lr)
        if self.progress["step"] % self.recipe.log.every and self.progress["samples"] < self.recipe.budget:
            return
        values = {"total": losses.total.item()} | {name: term.item() for name, term in losses.terms.items()}
        now = time.monotonic()
        elapsed = max(1e-9, now - self.logged)
        self.report.line(
            {
                "step": self.progress["step"],
                "samples": self.progress["samples"],
                "loss": values["total"],
                "terms": values,
                "chance": losses.chance,
                "lr": lr,
                "grad_norm": norm,
                "samples_per_s": (self.progress["samples"] - self.samples_logged) / elapsed,
                "data_wait_share": self.waited / elapsed,
                "memory_mb": peak_memory_mb(),
                "seconds": self.seconds(),
                "epoch": loader.epoch,
                "drops": dict(loader.drops),
            }
        )
        self.logged, self.waited, self.samples_logged = now, 0.0, self.progress["samples"]
        self._guard_chance(values, losses.chance)

    def _guard_chance(self, values: dict[str, float], chance: dict[str, float]) -> None:
        for name, at_chance in chance.items():
            self.recent[name] = 0.7 * self.recent.get(name, values[name]) + 0.3 * values[name]
            late = self.progress["samples"] > 0.15 * self.recipe.budget and self.progress["step"] >= 100
            if late and name not in self.warned and self.recent[name] > 0.97 * at_chance:
                self.warned.add(name)
                self.report.event(
                    "warning",
                    f"loss '{name}' is still at chance ({self.recent[name]:.3f}, chance {at_chance:.3f}) after {self.progress['samples']:,} samples: "
                    "do captions belong to their images (`make check-data`)? Is the learning rate right?",
                    step=self.progress["step"],
                )

    def _guard_numbers(self, losses: Losses, norm: float, lr: float) -> None:
        if math.isfinite(norm):
            self.non_finite = 0
            return
        self.non_finite += 1
        terms = {name: term.item() for name, term in losses.terms.items()}
        self.report.event("warning", f"step {self.progress['step']}: gradient norm {norm}, losses {terms}; step skipped", step=self.progress["step"])
        if self.non_finite >= NON_FINITE_STEPS:
            raise FloatingPointError(
                f"{NON_FINITE_STEPS} steps in a row without finite gradients, last losses {terms} at learning rate {lr:.2e}. "
                "The last checkpoint is from before; try a lower --optim.lr, or --precision fp32"
            )


def peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _validation_batch(recipe: AnyRecipe, split: Split, model: Any, place: Place) -> list[dict[str, torch.Tensor]]:
    """The first samples of the val split as batches of the training's size, so that losses compare; empty without such a split."""
    size = recipe.batch // place.world
    if recipe.log.validate < recipe.batch or place.world > 1:
        return []
    try:
        if "val" not in splits(recipe.data):
            return []
        batches = []
        for samples in in_order(find(recipe.data, "val"), batch_size=size, needs=("captions",)):
            if len(samples) < size or len(batches) * size >= recipe.log.validate:
                break
            batches.append(model.collate(samples))
        return batches
    except (DataError, FileNotFoundError):
        return []


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
    size = f"{loader.samples:,} samples" if loader.samples else "samples not counted yet"
    action = f"resumes at {progress['samples']:,} of" if progress["step"] else "will see"
    return (
        f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, all trained from scratch, {action} {recipe.budget:,} samples of "
        f"{split.name}/{split.split} ({size}) in batches of {recipe.batch} on {place.world} x {hardware(place.device)}"
    )


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


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
    (folder / "cost.json").write_text(json.dumps(cost, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model. Any field of its recipe is an option: --optim.lr 1e-3", add_help=False)
    parser.add_argument("model", choices=tuple(models.TABLE))
    parser.add_argument("preset", choices=("tiny", "small", "paper"))
    parser.add_argument("--out", type=Path, required=True)
    args, rest = parser.parse_known_args()
    default: AnyRecipe = importlib.import_module(f"recipes.{args.model}").PRESETS[args.preset]
    recipe = tyro.cli(Recipe[type(default.model)], default=default, args=rest, prog=f"recipes.train {args.model} {args.preset}")  # type: ignore[misc]
    try:
        sys.exit(train(recipe, args.out))
    except (DataError, FileNotFoundError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
