"""Activation checkpointing: the backward pass computes the activations inside repeated blocks again, instead of keeping them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(model: nn.Module) -> list[str]:
    """Let every repeated block of `model` keep only its inputs in training. Returns their names.

    Results do not change: dropout is drawn from the same random state. Left out are blocks that read more than their arguments, which is
    gone in the backward pass: with hooks inside, or a module that sets `reads_beside`. A block's class is exchanged for a subclass, so
    names of parameters, copies and state dicts stay as they are.
    """
    blocks = {name: block for name, block in repeated_blocks(model).items() if not _reads_beside(block)}
    for block in blocks.values():
        block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]  # mypy does not believe that classes can be hashed
    return list(blocks)


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Numbered modules with linear layers inside them ("visual.blocks.0"), the outermost ones. Layers of heads ("head.2") have none."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{outer}.") for outer in found)
        holds_layers = any(isinstance(each, nn.Linear) for each in module.modules() if each is not module)
        if name.rpartition(".")[2].isdigit() and holds_layers and not inside:
            found[name] = module
    return found


def _reads_beside(block: nn.Module) -> bool:
    inner = [each for each in block.modules() if each is not block]
    hooked = any(each._forward_hooks or each._forward_pre_hooks for each in inner)
    return hooked or any(getattr(each, "reads_beside", False) for each in block.modules())


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    class Recomputed(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().forward(*args, **options)
            return checkpoint(super().forward, *args, use_reentrant=False, **options)

    Recomputed.__name__ = Recomputed.__qualname__ = kind.__name__
    return Recomputed
