"""One page at `tiny` on the device: the same numbers as on a CPU, resumed after a kill, in bf16, compiled, without the host waiting."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import models
import recipes.train.loop as loop
from data.loader import in_order
from data.shards import find
from models.contract import Batch
from models.shared.device import resolve_device
from recipes.gpu.schedule import Json, Save
from recipes.gpu.short import few_steps, pages
from recipes.gpu.syncs import Syncs
from recipes.train import checkpoint
from recipes.train.folder import CHECKPOINT
from recipes.train.pages import names, page
from recipes.train.recipe import AnyRecipe, Log
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from recipes.train.watch import Watch

BATCH, STEPS = 4, 3
SAME = 1e-4  # relative difference of float32 results between devices
ALIKE = 0.05  # of a loss in bf16


class Killed(Exception):
    pass


def check(save: Save, name: str, device: str, data: str, runs: str, backend: str) -> Json:
    """Every check by name: what was measured, or under "failures" what went wrong. `backend` is that of torch.compile. Prerequisites are
    trained as briefly, in the folder `runs` that all pages share."""
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)  # so that a resumed run can equal another bit by bit
    short = {"data": data, "device": device, "precision": "fp32", "vocab_size": 400}
    for each in names():  # in this process only, so that prerequisites are short too
        page(each).PRESETS = {key: few_steps(recipe, steps=STEPS, batch=BATCH, **short) for key, recipe in page(each).PRESETS.items()}
    recipe, folder = page(name).PRESETS["tiny"], Path(runs) / f"{name}-tiny-s0"
    found: Json = {}
    failures: dict[str, str] = {}
    assert name in pages("tiny")

    def attempt(what: str, work: Callable[[], Json]) -> bool:
        try:
            found.update(work())
        except Exception as error:
            traceback.print_exc()
            failures[what] = f"{type(error).__name__}: {error}"[:400]
        save({**found, "failures": dict(failures)})
        return what not in failures

    if attempt("training", lambda: _trained(name, recipe, folder)):
        attempt("resume", lambda: _resumed(name, recipe, folder))
        torch.use_deterministic_algorithms(False)
        attempt("parity", lambda: _parity(name, recipe, folder, device))
        attempt("bf16", lambda: _bf16(recipe, folder, device))
        attempt("synchronisations", lambda: _synchronisations(name, recipe, folder))
        attempt("compile", lambda: _compiled(recipe, folder, device, backend))
    return {**found, "failures": failures}


def _trained(name: str, recipe: AnyRecipe, folder: Path) -> Json:
    _ok(loop.train(recipe, folder, "tiny", page=name) == 0, "training ended early")
    return {"training": "ok"}


def _resumed(name: str, recipe: AnyRecipe, folder: Path) -> Json:
    """The largest difference between the weights of a run that was killed after its second step and of one that was not, relative to the
    largest weight. 0 where the device computes deterministically."""

    def due(self: Watch) -> bool:
        if self.progress.step == 2:
            raise Killed
        return True

    again = folder.parent / "killed" / folder.name
    with _instead(Watch, "due_to_save", due), suppress(Killed):
        loop.train(recipe, again, "tiny", folder.parent, page=name)
    _ok(loop.train(recipe, again, "tiny", folder.parent, page=name) == 0, "the resumed run ended early")
    whole, resumed = (models.load(each).state_dict() for each in (folder, again))
    apart = max((_apart(resumed[key].float(), tensor.float()) for key, tensor in whole.items() if tensor.is_floating_point()), default=0.0)
    _ok(apart <= 1e-3, f"weights of a resumed run differ by {apart:.2g}")
    return {"resume": apart}


def _parity(name: str, recipe: AnyRecipe, folder: Path, device: str) -> Json:
    """Largest relative differences of features, losses and gradients between the device and the CPU."""
    model, batch = _ready(recipe, folder)
    other: Any = copy.deepcopy(model).to(resolve_device(device))
    with _negatives_of_neighbours():
        features = [_features(each, batch) for each in (model, other)]
        losses = [backward(each, _on(batch, each), micro_batch=None, autocast=nullcontext()) for each in (model, other)]
    found: Json = {"features": max((_apart(features[1][key], value) for key, value in features[0].items()), default=0.0)}
    here, there = ({"total": each.total, **each.terms} for each in losses)
    found["losses"] = max(_apart(there[key], value) for key, value in here.items())
    mine, theirs = ({key: p.grad for key, p in each.named_parameters() if p.grad is not None} for each in (model, other))
    _ok(mine.keys() == theirs.keys(), "other parameters have gradients")
    largest = max((float(gradient.abs().max()) for gradient in mine.values()), default=0.0)
    found["gradients"] = max((_apart(theirs[key], gradient, at_least=0.01 * largest) for key, gradient in mine.items()), default=0.0)
    different = {what: f"{value:.2g}" for what, value in found.items() if not value <= SAME}
    _ok(not different, f"differ from the CPU's by more than {SAME:g}: {different}")
    return found


def _bf16(recipe: AnyRecipe, folder: Path, device: str) -> Json:
    """Relative difference of the loss from float32's."""
    apart = 0.0
    model, batch = _ready(recipe, folder)
    model, place = model.to(resolve_device(device)), resolve_device(device)
    with _negatives_of_neighbours():
        full, half = (
            backward(model, _on(batch, model), micro_batch=None, autocast=cast).total.detach()
            for cast in (nullcontext(), torch.autocast(place.type, torch.bfloat16))
        )
    apart = _apart(half, full)
    _ok(apart <= ALIKE, f"the loss differs from float32's by {apart:.2g}")
    _ok(all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None), "gradients are not finite")
    return {"bf16": apart}


def _compiled(recipe: AnyRecipe, folder: Path, device: str, backend: str) -> Json:
    """Relative difference of the compiled model's loss from the eager one's."""
    model, batch = _ready(recipe, folder)
    model = model.to(resolve_device(device))
    with _negatives_of_neighbours():
        eager = backward(model, _on(batch, model), micro_batch=None, autocast=nullcontext()).total.detach()
        model.encode = torch.compile(model.encode, backend=backend)
        compiled = backward(model, _on(batch, model), micro_batch=None, autocast=nullcontext()).total.detach()
    apart = _apart(compiled, eager)
    _ok(apart <= 1e-3, f"the compiled loss differs by {apart:.2g}")
    return {"compile": apart}


def _synchronisations(name: str, recipe: AnyRecipe, folder: Path) -> Json:
    """The lines at which the host waits for the device within a step, from the forward pass to the logging that is not due."""
    found: list[str] = []
    steps = 4
    quiet = few_steps(recipe, steps=steps, batch=BATCH, log=Log(every=1000, validate=0))
    where = folder.parent / "synchronisations" / folder.name
    began = backward
    real = Watch.step
    mode: Syncs | None = None
    step = 0

    def start(model: Any, batch: Batch, **options: Any) -> Any:
        nonlocal mode, step
        if step % steps >= 2:  # the first steps of a stage count FLOPs and allocate
            mode = Syncs(next(iter(batch.values())).device)
            mode.__enter__()
        step += 1
        losses = began(model, batch, **options)
        if mode is not None and not mode.cuda:
            leave()  # on a CPU, optimiser and logging read numbers as they please
        return losses

    def leave() -> None:
        nonlocal mode
        if mode is not None:
            mode.__exit__(None, None, None)
            found.extend(mode.places)
            mode = None

    def stop(self: Watch, *args: Any) -> None:
        due = self.progress.in_stage >= self.stage.budget  # then reading numbers is right
        if not due:
            real(self, *args)
        leave()
        if due:
            real(self, *args)

    with _instead(loop, "backward", start), _instead(Watch, "step", stop):
        loop.train(quiet, where, "tiny", folder.parent, page=name)
    places = sorted(set(found))
    return {"synchronisations": places}


# ---------------------------------------------------------------------------------------------------------- helpers


def _ready(recipe: AnyRecipe, folder: Path) -> tuple[Any, Batch]:
    """The trained model as it is in its last stage, on the CPU, and a batch."""
    model: Any = models.load(folder)
    progress = checkpoint.read_progress(folder / CHECKPOINT)
    enter(model, recipe, len(recipe.schedule) - 1, progress)
    set_training(model)
    samples = next(iter(in_order(find(recipe.data, "train"), batch_size=BATCH, needs=model.needs)))
    return model, model.collate(samples, np.random.default_rng(0))


def _on(batch: Batch, model: Any) -> Batch:
    model.zero_grad()
    device = next(model.parameters()).device
    return {key: rows.to(device) for key, rows in batch.items()}


@torch.no_grad()
def _features(model: Any, batch: Batch) -> Batch:
    torch.manual_seed(0)
    return {key: value for key, value in model.encode(_on(batch, model)).items() if value.is_floating_point()}


def _apart(there: Tensor, here: Tensor, at_least: float = 1e-6) -> float:
    """The largest difference, relative to the largest value."""
    there, here = there.detach().float().cpu(), here.detach().float().cpu()
    if not here.numel():
        return 0.0
    return float((there - here).abs().max() / here.abs().max().clamp(min=at_least))


def _ok(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@contextmanager
def _instead(where: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


@contextmanager
def _negatives_of_neighbours() -> Iterator[None]:
    """Hard negatives are drawn in proportion to similarities: rounding decides. Here each pair's is its neighbour."""

    def neighbours(similarity: Tensor, captions: Tensor, generator: object = None) -> tuple[Tensor, Tensor]:
        other = torch.arange(len(captions), device=captions.device) ^ 1
        return other, other

    modules = [each for each in list(sys.modules.values()) if each.__name__.startswith("models.") and hasattr(each, "hard_negatives")]
    before = [vars(module)["hard_negatives"] for module in modules]
    for module in modules:
        vars(module)["hard_negatives"] = neighbours
    try:
        yield
    finally:
        for module, real in zip(modules, before, strict=True):
            vars(module)["hard_negatives"] = real
