"""LoRA: a frozen linear layer learns by a low-rank update beside it (Hu et al., 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn


class LoRA(nn.Module):
    """h = W x + scale * B A x (equation 3), where B is zero at the start. The paper's scale is alpha / r.

    The layer keeps its weight, name and place in the state dict: `beside` registers the update as a hook on its output.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Linear(inputs, rank, bias=False)  # as in the authors' code: uniform, variance 1 / (3 inputs)
        self.B = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        return self.scale * self.B(self.A(x))

    def update(self) -> Tensor:
        """`[outputs, inputs]`: added to the layer's weight, it replaces the path beside the layer."""
        return self.scale * self.B.weight @ self.A.weight

    def beside(self, layer: nn.Module) -> None:
        """From now on the layer's output includes the update."""
        layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self(inputs[0])


def low_rank_updates(model: nn.Module, layers: Collection[str], *, rank: int, scale: float) -> nn.ModuleDict:
    """A LoRA beside each linear layer of `model` whose name ends with one of `layers`, such as "q_proj". The caller must register
    the result; keys are the layers' names with "/" instead of ".".

    Raises ValueError if the model has no such layer.
    """
    found: dict[str, Any] = {
        name: layer for name, layer in model.named_modules() if name.split(".")[-1] in layers and isinstance(layer, nn.Linear)
    }
    if not found:
        raise ValueError(f"a {type(model).__name__} has no linear layer named {' or '.join(sorted(layers))} for a low-rank update")
    updates = nn.ModuleDict()
    for name, layer in found.items():
        update = LoRA(layer.in_features, layer.out_features, rank=rank, scale=scale)
        update.beside(layer)
        updates[name.replace(".", "/")] = update
    return updates
