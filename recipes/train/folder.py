"""A run folder: its recipe, whether the training is finished, and its cost."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

import models
from data.files import write_json
from eval.base.provenance import provenance
from models.contract import Model
from models.shared.device import hardware
from recipes.train.distributed import Process, peak_memory_mb
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Optim, Recipe, Stage

CHECKPOINT = "checkpoint.safetensors"
# Fields that may change when a run is resumed: they affect place, speed and rounding, not the training itself.
FREE = ("page", "preset", "device", "compile", "workers", "memory_gb", "save_minutes", "log", "micro_batch")


@contextmanager
def exclusive_lock(folder: Path, process: Process) -> Iterator[None]:
    """One training at a time in a folder: another one waits, and then finds the finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        if process.rank == 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{folder} is being trained by another process: waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        process.wait()
        yield


def open_run(folder: Path, recipe: AnyRecipe, page: str, preset: str, process: Process) -> bool:
    """Make a run folder this recipe's. Returns whether there is anything to continue; raises ValueError where that was another recipe."""
    path = folder / "recipe.json"
    wanted = as_json(recipe, page, preset)
    begun = any((folder / left).exists() for left in (CHECKPOINT, "model.safetensors"))
    if begun:
        if differs := differences(json.loads(path.read_text()), wanted):
            apart = [leaf for name, (there, now) in differs.items() for leaf in _leaves(name, there, now)]
            changes = "; ".join(f"{name}: {there} there, {now} now" for name, there, now in apart)
            raise ValueError(f"{folder} was trained with another recipe ({changes}). Choose another OUT=, or remove it")
    elif process.rank == 0:
        write_json(path, wanted)
    process.wait()
    return begun


def as_json(recipe: AnyRecipe, page: str, preset: str) -> dict[str, Any]:
    """What recipe.json says: the page and the preset, the model's name, and every field of the recipe that says something (no stages
    where there are none, nothing that stages replace)."""
    unsaid = {"optim", "budget", "batch"} if recipe.stages else {"stages"}
    unsaid |= set() if recipe.prerequisites else {"prerequisites"}
    named = {"page": page, "preset": preset, "name": models.model_of(recipe.model).name, **asdict(recipe)}
    return json.loads(json.dumps({name: value for name, value in named.items() if name not in unsaid}))


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> both values, where two recipes as json train differently."""
    one, other = _complete(one), _complete(other)
    names = [name for name in dict.fromkeys([*one, *other]) if name not in FREE]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _leaves(name: str, there: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two values differ, by their full names: ("model.embed_dim", 160, 128)."""
    if isinstance(there, dict) and isinstance(now, dict):
        for inner in dict.fromkeys([*there, *now]):
            yield from _leaves(f"{name}.{inner}", there.get(inner), now.get(inner))
    elif there != now:
        yield name, there, now


def _complete(recipe: dict[str, Any]) -> dict[str, Any]:
    """With the fields that did not exist yet when it was written: they are at their defaults there."""
    default = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}
    try:
        model = asdict(models.from_dict(models.model_class(recipe["name"]).Config, recipe["model"]))
    except TypeError:  # a field that does not exist any more: it will differ
        model = recipe["model"]
    recipe = json.loads(json.dumps(default | recipe | {"model": model}, default=asdict))
    for described in [recipe, *recipe.get("stages", ())]:
        if "optim" in described:
            described["optim"] = asdict(Optim(lr=0.0)) | described["optim"]
    return json.loads(json.dumps(recipe))


def finished(folder: Path) -> bool:
    path = folder / "cost.json"
    return path.exists() and json.loads(path.read_text())["finished"]


def keep_stage(folder: Path, recipe: AnyRecipe, stage: Stage, model: Model, process: Process, progress: Progress) -> None:
    """The model as it is at the end of a stage, as a run folder of its own in `folder`/stages: for the tasks that the paper asks then."""
    kept = folder / "stages" / stage.name
    models.save(model, kept)
    write_cost(kept, recipe, model, process, progress)
    about = json.loads((folder / "recipe.json").read_text())
    write_json(kept / "recipe.json", {**about, "stage": stage.name})


def write_cost(folder: Path, recipe: AnyRecipe, model: Model, process: Process, progress: Progress) -> None:
    """`cost.json`: what all stages cost together, what the runs cost that this one builds on, and which code and libraries trained it."""
    cost = {
        **provenance(),
        "samples_seen": progress.samples,
        "trainable_parameters": sum(parameter.numel() for name, parameter in model.named_parameters() if name in progress.trained),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": progress.seconds,
        "train_flops": progress.total_flops,
        "peak_memory_mb": peak_memory_mb(),
        "hardware": f"{process.world} x {hardware(process.device)}",
        "threads": torch.get_num_threads(),
        "prerequisites": progress.prerequisites,
        "finished": progress.complete(recipe),
    }
    write_json(folder / "cost.json", cost)
