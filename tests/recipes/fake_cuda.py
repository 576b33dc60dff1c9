"""A model's step on fake CUDA tensors (torch's FakeTensorMode): no GPU, no numbers, only shapes and devices.

What reads a number on the host, such as `.item()` or a shape that depends on values, raises, and so does an operation on tensors of
different devices.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data.loader import in_order
from data.shards import find
from models.contract import Batch
from recipes.gpu.short import few_steps, offline
from recipes.plan.stand_ins import to_fake
from recipes.train.distributed import Process
from recipes.train.loop import build
from recipes.train.optimiser import optimiser, step_if_finite
from recipes.train.pages import page
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import enter, set_training
from tests.recipes.kit import narrow


def small(name: str) -> AnyRecipe:
    """A page's `tiny` with narrow layers."""
    recipe = page(name).PRESETS["tiny"]
    return replace(recipe, model=narrow(recipe.model))


def prepared(recipe: AnyRecipe, data: str, folder: Path, *, batch: int) -> tuple[Any, AnyRecipe, list[Batch]]:
    """A model with random weights on the CPU, its shortened recipe, and a batch for each stage. Prerequisites are left out."""
    recipe = few_steps(offline(recipe), steps=1, batch=batch, data=data, device="cpu", vocab_size=400)
    split, progress = find(data, "train"), Progress()
    model: Any = build(recipe, split, folder, Process.find("cpu"), [], progress, begun=False)
    model.remember(in_order(split, batch_size=64, needs=model.needs))
    batches = []
    for number in range(len(recipe.schedule)):
        enter(model, recipe, number, progress)
        samples = next(iter(in_order(split, batch_size=batch, needs=model.needs)))
        batches.append(model.collate(samples, np.random.default_rng(0)))
    return model, recipe, batches


def trace(model: Any, recipe: AnyRecipe, number: int, batch: Batch, *, steps: bool) -> None:
    """The forward pass of a stage and, if it `steps`, the optimiser's step, as in the loop; torch's backward pass needs a real device for
    CUDA tensors. The model is of no use afterwards."""
    stage = enter(model, recipe, number, Progress())
    set_training(model)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    to_fake(model, fakes, "cuda")
    with fakes:
        rows = {name: torch.empty(each.shape, dtype=each.dtype, device="cuda") for name, each in batch.items()}
        losses = model.objective(model.encode(rows))
        assert losses.total.device.type == "cuda"
        torch.stack([term.detach() for term in losses.terms.values()])
        if not steps:
            return
        optimizer = optimiser(model, stage.optim, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        norm = nn.utils.clip_grad_norm_(model.parameters(), stage.optim.clip_norm)
        step_if_finite(optimizer, norm)
