"""Compute the gradients of one optimisation step, exactly for any micro-batch size and number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.contract import Batch, Losses, Model


def backward(model: Model, batch: Batch, *, micro_batch: int | None, autocast: Any, seed: int = 0) -> Losses:
    """Accumulate the gradients of the batch's loss in the parameters.

    A contrastive loss compares all pairs of a batch, so averaging the losses of micro-batches would give a different loss.
    Instead, as in GradCache (arXiv 2101.06983): encode all micro-batches without a graph, compute the loss of the whole
    batch and its gradient with respect to the features, then encode each micro-batch again with a graph and backpropagate
    those gradients through it. `seed` ensures that both passes use the same dropout masks.
    """
    size = len(next(iter(batch.values())))
    if micro_batch is None or micro_batch >= size:
        torch.manual_seed(seed)
        with autocast:
            features = model.encode(batch)
        losses = model.objective(features)
        if losses.total.requires_grad:  # False for training-free models
            losses.total.backward()
        return losses

    parts = [{name: rows[start : start + micro_batch] for name, rows in batch.items()} for start in range(0, size, micro_batch)]
    with torch.no_grad():
        cached = [_encode(model, part, autocast, seed + index) for index, part in enumerate(parts)]
    leaves = {name: torch.cat([features[name] for features in cached]) for name in cached[0]}
    leaves = {name: leaf.requires_grad_(leaf.is_floating_point()) for name, leaf in leaves.items()}  # labels have no gradient
    losses = model.objective(leaves)
    if not losses.total.requires_grad:
        return losses
    losses.total.backward()
    for index, part in enumerate(parts):
        features = _encode(model, part, autocast, seed + index)
        rows = slice(index * micro_batch, (index + 1) * micro_batch)
        pushed = [name for name, feature in features.items() if feature.requires_grad and leaves[name].grad is not None]
        gradients = [leaves[name].grad[rows] for name in pushed]  # type: ignore[index]
        torch.autograd.backward([features[name] for name in pushed], gradients)
    return losses


def _encode(model: Model, part: Batch, autocast: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    with autocast:
        return model.encode(part)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over ranks, in a single all-reduce.

    DistributedDataParallel does not fit: it considers a gradient final after the first backward pass, but `backward` has
    one pass for the parameters of the objective and several for those of the towers.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
