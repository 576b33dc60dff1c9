"""Run folders: recipe, lock, training status and cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

import models
from data.files import FileError, locked, read_json, read_text, write_json
from eval.base.provenance import provenance
from eval.report.numbers import amount
from models.contract import Model
from models.shared.device import hardware
from recipes.train.distributed import Process, peak_memory_mb
from recipes.train.parallel import whole_state
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Optim, Recipe, Stage

ELSEWHERE = "Remove the run folder, or choose another OUT="
PAID = ("samples_seen", "train_seconds", "train_flops")
CHECKPOINT = "checkpoint.safetensors"
# Fields that may change when a run is resumed: they affect location, speed and rounding errors, not the training itself.
FREE = ("page", "preset", "device", "compile", "recompute", "sharded", "workers", "memory_gb", "save_minutes", "log", "micro_batch")


@contextmanager
def exclusive_lock(folder: Path, process: Process) -> Iterator[None]:
    """Allow one training process per folder. Another process waits, and then finds the run finished."""
    held = locked(folder, f"{folder} is being trained by another process: waiting for it") if process.rank == 0 else nullcontext()
    with held:
        process.wait()
        yield


def open_run(folder: Path, recipe: AnyRecipe, page: str, preset: str, process: Process) -> bool:
    """Write the recipe to the run folder. Returns True if there is a run to resume; raises ValueError if its recipe differs."""
    path = folder / "recipe.json"
    wanted = as_json(recipe, page, preset)
    begun = any((folder / left).exists() for left in (CHECKPOINT, "model.safetensors"))
    if begun:
        if differs := differences(read_json(path, ELSEWHERE), wanted):
            apart = [leaf for name, (there, now) in differs.items() for leaf in _leaves(name, there, now)]
            changes = "; ".join(f"{name}: {there} there, {now} now" for name, there, now in apart)
            raise ValueError(f"{folder} was trained with another recipe ({changes}). Choose another OUT=, or remove it")
    elif process.rank == 0:
        write_json(path, wanted)
    process.wait()
    return begun


def as_json(recipe: AnyRecipe, page: str, preset: str) -> dict[str, Any]:
    """The content of recipe.json: page, preset, model name, and the fields of the recipe. Empty stages and prerequisites are left out,
    and so are fields that stages replace. A list of samples is known by its content, too."""
    unsaid = {"optim", "budget", "batch"} if recipe.stages else {"stages"}
    unsaid |= set() if recipe.prerequisites else {"prerequisites"}
    named = {"page": page, "preset": preset, "name": models.model_of(recipe.model).name, **asdict(recipe)}
    if recipe.keep:
        named["keep_sha256"] = hashlib.sha256(read_text(Path(recipe.keep)).encode()).hexdigest() if Path(recipe.keep).exists() else None
    return json.loads(json.dumps({name: value for name, value in named.items() if name not in unsaid}))


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> both values, for fields in which two recipes (in JSON form) differ and that affect the training."""
    one, other = _complete(one), _complete(other)
    names = [name for name in dict.fromkeys([*one, *other]) if name not in FREE]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _leaves(name: str, there: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The nested fields in which two values differ, by full name: ("model.embed_dim", 160, 128)."""
    if isinstance(there, dict) and isinstance(now, dict):
        for inner in dict.fromkeys([*there, *now]):
            yield from _leaves(f"{name}.{inner}", there.get(inner), now.get(inner))
    elif there != now:
        yield name, there, now


def _complete(recipe: dict[str, Any]) -> dict[str, Any]:
    """Add fields that did not exist when the recipe was written, with their default values."""
    default = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}
    try:
        model = asdict(models.from_dict(models.model_class(recipe["name"]).Config, recipe["model"]))
    except (KeyError, TypeError, ValueError, AttributeError):  # a field or value that no longer exists: the recipes will differ
        model = recipe.get("model") or {}
    recipe = json.loads(json.dumps(default | recipe | {"model": model}, default=asdict))
    stages = recipe.get("stages")
    for described in [recipe, *(stages if isinstance(stages, list) else ())]:
        if isinstance(described, dict) and isinstance(described.get("optim"), dict):
            described["optim"] = asdict(Optim(lr=0.0)) | described["optim"]
    return json.loads(json.dumps(recipe))


def finished(folder: Path) -> bool:
    """Raises FileError for a broken cost.json."""
    path = folder / "cost.json"
    return path.exists() and read_cost(folder)["finished"]


def read_cost(folder: Path) -> dict[str, Any]:
    """What `write_cost` wrote. Raises FileError."""
    path, cure = folder / "cost.json", "Remove it, and train again: the run goes on from its checkpoint"
    cost = read_json(path, cure)
    if not isinstance(cost.get("finished"), bool):
        raise FileError(f"{path}: finished is {cost.get('finished')!r}, expected true or false. {cure}")
    if cost["finished"]:
        try:
            absent = [name for name in PAID if amount(cost, name) is None]
            absent += [name for name, kind in (("hardware", str), ("threads", int)) if not isinstance(cost.get(name), kind)]
        except ValueError as error:
            raise FileError(f"{path}: {error}. {cure}") from error
        if absent:
            raise FileError(f"{path}: {absent[0]} is {cost.get(absent[0])!r:.80}, which is not a valid number. {cure}")
    return cost


def keep_stage(folder: Path, recipe: AnyRecipe, stage: Stage, model: Model, process: Process, progress: Progress) -> None:
    """Save the model at the end of a stage as a run folder in `folder`/stages, for tasks that the paper evaluates after that stage."""
    kept = folder / "stages" / stage.name
    save_model(model, kept, process)
    if process.rank:
        return
    write_cost(kept, recipe, model, process, progress)
    about = read_json(folder / "recipe.json", ELSEWHERE)
    write_json(kept / "recipe.json", {**about, "stage": stage.name})


def save_model(model: Model, folder: Path, process: Process) -> None:
    """Write the files of the whole model, on rank 0. All ranks must call it, because a model may be sharded."""
    state = whole_state(model, keep=process.rank == 0)
    if process.rank == 0:
        models.save(model, folder, state)


def write_cost(folder: Path, recipe: AnyRecipe, model: Model, process: Process, progress: Progress) -> None:
    """Write `cost.json`: the total cost of all stages, the costs of prerequisite runs, and the versions of code and libraries."""
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
