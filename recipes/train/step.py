"""Compute the gradients of one optimisation step, exactly for any micro-batch size and number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.contract import Batch, Losses, Model
from recipes.train.parallel import Passes, average_kept, no_reduction


def backward(
    model: Model, batch: Batch, *, micro_batch: int | None, autocast: Any, seed: int = 0, passes: nn.Module | None = None
) -> Losses:
    """Accumulate the gradients of the batch's loss in the parameters.

    A contrastive loss compares all pairs of a batch, so averaging the losses of micro-batches would give a different loss.
    Instead, as in GradCache (arXiv 2101.06983): encode all micro-batches without a graph, compute the loss of the whole
    batch and its gradient with respect to the features, then encode each micro-batch again with a graph and backpropagate
    those gradients through it. `seed` ensures that both passes use the same dropout masks.

    `passes`: the model as `recipes.train.parallel` wraps it for many ranks. Gradients are then averaged over ranks during the last pass.
    """
    passes = passes or Passes(model)
    size = len(next(iter(batch.values())))
    if micro_batch is None or micro_batch >= size:
        losses = passes(lambda: _logged(model.objective(_encode(model, batch, autocast, seed))))
        if losses.total.requires_grad:  # False for training-free models
            losses.total.backward()
        average_kept(passes)
        return losses

    parts = [{name: rows[start : start + micro_batch] for name, rows in batch.items()} for start in range(0, size, micro_batch)]
    with torch.no_grad():
        cached = [passes(_encode, model, part, autocast, seed + index) for index, part in enumerate(parts)]
    leaves = {name: torch.cat([features[name] for features in cached]) for name in cached[0]}
    leaves = {name: leaf.requires_grad_(leaf.is_floating_point()) for name, leaf in leaves.items()}  # labels have no gradient
    with no_reduction(passes):
        losses = passes(lambda: _logged(model.objective(leaves)))
        if not losses.total.requires_grad:
            return losses
        losses.total.backward()
    gradients = {name: leaf.grad.split(micro_batch) for name, leaf in leaves.items() if leaf.grad is not None}

    def trained(part: Batch, number: int) -> dict[str, Tensor]:
        features = _encode(model, part, autocast, seed + number)
        return {name: feature for name, feature in features.items() if feature.requires_grad and name in gradients}

    for number, part in enumerate(parts):
        with no_reduction(passes, unless=part is parts[-1]):
            features = passes(trained, part, number)
            torch.autograd.backward(list(features.values()), [gradients[name][number] for name in features])
    average_kept(passes)
    return losses


def _encode(model: Model, part: Batch, autocast: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    with autocast:
        return model.encode(part)


def _logged(losses: Losses) -> Losses:
    """With terms that are only logged: on many ranks, gradients are awaited of what the outputs of a pass depend on."""
    return losses._replace(terms={name: term.detach() for name, term in losses.terms.items()})
