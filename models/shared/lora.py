"""LoRA: a low-rank update of a frozen linear layer (Hu et al., 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 2.0  # alpha / rank
FUSED = ("c_attn", "query_key_value", "Wqkv", "qkv_proj")  # queries, keys and values as one layer: GPT-2, GPT-NeoX and BLOOM, MPT, Phi-3


def is_linear(layer: nn.Module) -> bool:
    """Also transformers' Conv1D, GPT-2's linear layer; but no subclass, whose weight others may read past it."""
    return type(layer) is nn.Linear or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as `[inputs, outputs]`. Known by name: most models do without transformers."""
    return type(layer).__name__ == "Conv1D"


def sizes_of(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    inputs, outputs = layer.weight.shape if is_transposed(layer) else layer.weight.T.shape
    return int(inputs), int(outputs)


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
        """`[outputs, inputs]`: added to the layer's weight, it replaces the parallel path."""
        return self.scale * self.B.weight @ self.A.weight

    def beside(self, layer: nn.Module) -> None:
        """From now on the layer's output includes the update."""
        self._hook = layer.register_forward_hook(self._add)

    def apart(self) -> None:
        """Undo `beside`."""
        self._hook.remove()

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self(inputs[0])


ADAPTERS = "adapters"  # where a model tuned by `adapt` keeps its updates


def adapt(model: nn.Module, *, rank: int, scale: float = SCALE, layers: Sequence[str] | None = None) -> None:
    """Give a model a low-rank update beside each of the linear `layers` (default: those of repeated blocks that are trained now), and
    freeze its repeated blocks. What is outside of blocks (embeddings, heads, projections) stays as it is. The updates are kept as
    `model.adapters`, apart from the weights.

    Raises ValueError without a layer, and for the name of what is no linear layer of a repeated block.
    """
    linear: dict[str, Any] = {name: layer for name, layer in model.named_modules() if is_linear(layer) and in_a_block(name)}
    names = trained_layers(model) if layers is None else layers
    if not names:
        raise ValueError(f"lora_rank: {type(model).__name__} has no repeated blocks of linear layers that are trained")
    if unknown := [name for name in names if name not in linear]:
        raise ValueError(f"lora_rank: {type(model).__name__} has no linear layer {unknown[0]!r} in a repeated block")
    device = linear[names[0]].weight.device
    adapters = nn.ModuleDict()
    for name in names:
        layer = linear[name]
        update = LoRA(*sizes_of(layer), rank=rank, scale=scale).to(device)
        update.beside(layer)
        adapters[name.replace(".", "/")] = update
    model.adapters = adapters
    vars(model)["adapted"] = {"rank": rank, "scale": scale, "layers": list(names)}
    freeze_blocks(model)


def trained_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of repeated blocks that are trained now."""
    linear: list[tuple[str, Any]] = [(name, layer) for name, layer in model.named_modules() if is_linear(layer) and in_a_block(name)]
    return [name for name, layer in linear if layer.weight.requires_grad]


def thaw_layers(model: nn.Module) -> None:
    """Undo `freeze_blocks` for the layers with updates, so that the next stage can say which of them it trains."""
    for layer in _layers(model).values():
        layer.weight.requires_grad_(True)


def freeze_layers(model: nn.Module) -> None:
    """Freeze the blocks again, and train the updates of exactly those layers that the stage would train."""
    adapters: Any = model.adapters
    for name, layer in _layers(model).items():
        adapters[name].requires_grad_(layer.weight.requires_grad)
    freeze_blocks(model)


def _layers(model: nn.Module) -> dict[str, Any]:
    """The layers with updates, by the names of these."""
    adapters: Any = model.adapters
    return {name: model.get_submodule(name.replace("/", ".")) for name in adapters}


def freeze_blocks(model: nn.Module) -> None:
    """Freeze all that is in repeated blocks, without the updates beside."""
    for name, parameter in model.named_parameters():
        if in_a_block(name) and not name.startswith(f"{ADAPTERS}."):
            parameter.requires_grad_(False)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add the updates of an adapted model to its weights, and take them away: the same function, with the state dict of a model that was
    never adapted."""
    adapters: Any = model.adapters
    for name, layer in _layers(model).items():
        update = adapters[name].update()
        layer.weight += update.T if is_transposed(layer) else update
        adapters[name].apart()
    del model.adapters, model.adapted


def in_a_block(name: str) -> bool:
    """Whether the name of a module or parameter leads through a numbered module: "visual.blocks.0.attn.proj", but not "head.2"."""
    return any(part.isdigit() for part in name.split(".")[:-1])


def low_rank_updates(model: nn.Module, layers: Collection[str], *, rank: int, scale: float) -> nn.ModuleDict:
    """A LoRA for each linear layer of `model` whose name ends with one of `layers`, such as "q_proj"; or, in a language model that has
    none of these names, for those that are queries, keys and values at once. The caller must register the result; keys are the layers'
    names with "/" instead of ".".

    Raises ValueError if the model has no such layer.
    """
    linear = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
    found = next(filter(None, ({n: linear[n] for n in linear if n.split(".")[-1] in names} for names in (layers, FUSED))), {})
    if not found:
        names = " or ".join(sorted({*layers, *FUSED}))
        raise ValueError(f"{type(model).__name__} has no linear layer named {names} for a low-rank update")
    updates = nn.ModuleDict()
    for name, layer in found.items():
        update = LoRA(*sizes_of(layer), rank=rank, scale=scale)
        update.beside(layer)
        updates[name.replace(".", "/")] = update
    return updates
