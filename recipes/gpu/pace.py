"""Steady steps of a preset with the real loop: samples per second, share of the matrix product's rate, memory, waiting for data."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import models
from data.files import locked
from models.shared.device import resolve_device
from recipes.gpu.schedule import Json, Save
from recipes.gpu.short import few_steps, offline
from recipes.train import checkpoint
from recipes.train.folder import CHECKPOINT
from recipes.train.loop import train
from recipes.train.pages import page
from recipes.train.recipe import AnyRecipe, Log, Stage
from recipes.train.watch import Watch

WARM = 3  # log lines that are not counted


def pace(save: Save, name: str, preset: str, device: str, data: str, seconds: float, batch: int | None, lock: str) -> Json:
    """By stage: samples per second, TFLOP per second, peak memory and share of time spent waiting for data, over `seconds` of all stages
    together after some that do not count. `batch` replaces the preset's. Backbones have random weights. `lock` is a folder: one process at
    a time measures."""
    recipe: AnyRecipe = page(name).PRESETS[preset]
    kind: Any = models.model_of(recipe.model)
    recipe = replace(offline(recipe), data=data, device=device, log=Log(every=2, validate=0), save_minutes=1 << 20)
    stages: Json = {}
    with locked(Path(lock), f"{name}: waiting for the device"), mock.patch.object(kind, "fetch", return_value={}):
        for stage in recipe.schedule:
            stages[stage.name] = _stage(recipe, stage, seconds / len(recipe.schedule), batch)
            save({"stages": stages})
    return {"stages": stages, "on": str(resolve_device(device))}


def _stage(recipe: AnyRecipe, stage: Stage, seconds: float, batch: int | None) -> Json:
    size, one = batch or stage.batch, replace(recipe, stages=(stage,), **_plain(recipe))
    kept = {"log": recipe.log, "workers": recipe.workers, "micro_batch": None if batch else recipe.micro_batch}
    forever = few_steps(one, steps=1 << 20, batch=size, **kept)
    real, began = Watch.step, 0.0

    def timed(self: Watch, *args: Any) -> None:
        nonlocal began
        real(self, *args)
        if self.progress.step == WARM * self.recipe.log.every:
            began = time.monotonic()
        elif began and time.monotonic() - began > seconds and not self.progress.step % self.recipe.log.every:
            os.kill(os.getpid(), signal.SIGTERM)

    Watch.step = timed  # type: ignore[method-assign, assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(forever, Path(folder) / "run", "measured")
            lines = [json.loads(line) for line in (Path(folder) / "run" / "train.jsonl").read_text().splitlines()]
            flops = checkpoint.read_progress(Path(folder) / "run" / CHECKPOINT).flops
    finally:
        Watch.step = real  # type: ignore[method-assign]
    return steady([line for line in lines if "event" not in line], flops) | {"batch": size, "workers": recipe.workers}


def _plain(recipe: AnyRecipe) -> dict[str, Any]:
    """Without the fields that stages replace."""
    return {} if recipe.stages else {"optim": replace(recipe.optim, lr=0.0, warmup=0), "budget": 0, "batch": 0}


def steady(lines: list[Json], flops: float) -> Json:
    """Rates between the first log line that counts and the last. `flops` are those of one sample."""
    counted = lines[WARM - 1 :]
    if len(counted) < 2:
        raise ValueError(f"{len(lines)} log lines; expected more than {WARM}, so that some count")
    first, last = counted[0], counted[-1]
    seconds = last["seconds"] - first["seconds"]
    rate = (last["samples"] - first["samples"]) / seconds
    spans = [(after["seconds"] - before["seconds"], after["data_wait_share"]) for before, after in itertools.pairwise(counted)]
    return {
        "samples_per_s": rate,
        "steps": last["step"] - first["step"],
        "tflops": rate * flops / 1e12,
        "flops_per_sample": flops,
        "memory_mb": max(line["memory_mb"] for line in lines),
        "data_wait_share": sum(span * share for span, share in spans) / seconds,
    }
