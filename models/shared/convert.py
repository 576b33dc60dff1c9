"""Convert weights from and to the names of other libraries, by tables that work in both directions.

The only operations are renaming, splitting and reshaping, so round trips are bit-exact, and gradients convert like weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.shared.transformer import Activation
from models.shared.vision import VisionConfig

State = dict[str, Tensor]
Names = str | tuple[str, ...]


class Shape(NamedTuple):
    """A change of shape in both directions."""

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


SAME = Shape(lambda x: x, lambda x: x)
TRANSPOSED = Shape(lambda x: x.T, lambda x: x.T)
ADD_ONE = Shape(lambda x: x[None], lambda x: x[0])  # theirs [N, D], ours [1, N, D]
ADD_TWO = Shape(lambda x: x[None, None], lambda x: x[0, 0])  # theirs [D], ours [1, 1, D]
DROP_ONE = Shape(lambda x: x[0], lambda x: x[None])  # theirs [1], ours []
DROP_TWO = Shape(lambda x: x[0, 0], lambda x: x[None, None])  # theirs [1, 1, D], ours [D]


class Row(NamedTuple):
    """A naming rule for one kind of tensor. `*` matches the same component in both names (a block's index, "weight"), `**` several.

    If one side is a tuple of names, the other side's tensor is split along dimension 0, in the proportions `parts`.
    """

    ours: Names
    theirs: Names
    shape: Shape = SAME
    parts: tuple[int, ...] = (1, 1, 1)


def to_ours(state: State, table: Sequence[Row]) -> State:
    return _rename(state, [(row.theirs, row.ours, row.shape.to_ours, row.parts) for row in table])


def to_theirs(state: State, table: Sequence[Row]) -> State:
    return _rename(state, [(row.ours, row.theirs, row.shape.to_theirs, row.parts) for row in table])


def open_clip_blocks(ours: str, theirs: str, *, mlp: str = "") -> list[Row]:
    """Rules for transformer blocks of open_clip. `mlp` is "mlp." if ours are timm's blocks, which nest the two MLP layers."""
    return [
        Row(f"{ours}.*.norm1.*", f"{theirs}.*.ln_1.*"),
        Row(f"{ours}.*.attn.qkv.*", f"{theirs}.*.attn.in_proj_*"),
        Row(f"{ours}.*.attn.proj.*", f"{theirs}.*.attn.out_proj.*"),
        Row(f"{ours}.*.norm2.*", f"{theirs}.*.ln_2.*"),
        Row(f"{ours}.*.{mlp}fc1.*", f"{theirs}.*.mlp.c_fc.*"),
        Row(f"{ours}.*.{mlp}fc2.*", f"{theirs}.*.mlp.c_proj.*"),
    ]


def transformers_blocks(ours: str, theirs: str, *, mlp: str = "") -> list[Row]:
    """Rules for transformer blocks of CLIP and SigLIP in transformers."""
    qkv = (f"{theirs}.*.self_attn.q_proj.*", f"{theirs}.*.self_attn.k_proj.*", f"{theirs}.*.self_attn.v_proj.*")
    return [
        Row(f"{ours}.*.norm1.*", f"{theirs}.*.layer_norm1.*"),
        Row(f"{ours}.*.attn.qkv.*", qkv),
        Row(f"{ours}.*.attn.proj.*", f"{theirs}.*.self_attn.out_proj.*"),
        Row(f"{ours}.*.norm2.*", f"{theirs}.*.layer_norm2.*"),
        Row(f"{ours}.*.{mlp}fc1.*", f"{theirs}.*.mlp.fc1.*"),
        Row(f"{ours}.*.{mlp}fc2.*", f"{theirs}.*.mlp.fc2.*"),
    ]


def open_clip_vision(cfg: dict[str, Any]) -> VisionConfig:
    """The image tower of an open_clip configuration of CLIP or CoCa with open_clip's own tower (not timm's)."""
    vision = cfg["vision_cfg"]
    return VisionConfig(
        width=vision["width"],
        depth=vision["layers"],
        heads=vision["width"] // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        activation=open_clip_activation(cfg),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        pre_norm=True,
    )


def open_clip_activation(cfg: dict[str, Any]) -> Activation:
    return "quick_gelu" if cfg.get("quick_gelu") else "gelu"


def tower_from_transformers(config: Any) -> dict[str, Any]:
    """The fields of a `TransformerConfig` from the words of transformers' CLIP, BERT and their like."""
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "activation": activation_from_transformers(config.hidden_act),
        "norm_eps": config.layer_norm_eps,
    }


def activation_from_transformers(name: str) -> Activation:
    names: dict[str, Activation] = {
        "quick_gelu": "quick_gelu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "relu": "relu",
    }
    if name not in names:
        raise ValueError(f"activation {name!r} of the transformers configuration is not supported; supported: {', '.join(names)}")
    return names[name]


def _rename(state: State, rules: list[tuple[Names, Names, Callable[[Tensor], Tensor], tuple[int, ...]]]) -> State:
    """Apply the rules. Raises ValueError for tensors without a rule, so that nothing is dropped silently."""
    left = dict(state)
    renamed: State = {}
    for sources, targets, reshape, parts in rules:
        sources, targets = _tuple(sources), _tuple(targets)
        for stars in [match.groups() for name in left if (match := re.fullmatch(_expression(sources[0]), name))]:
            names = [_fill(source, stars) for source in sources]
            if missing := [name for name in names if name not in left]:
                raise ValueError(f"there is a tensor {names[0]}, but no {', '.join(missing)}")
            tensors = [left.pop(name) for name in names]
            tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            pieces = tensor.split([len(tensor) * part // sum(parts) for part in parts]) if len(targets) > 1 else (tensor,)
            renamed |= {_fill(target, stars): reshape(piece) for target, piece in zip(targets, pieces, strict=True)}
    if left:
        raise ValueError(f"{len(left)} of {len(state)} tensors have no counterpart on the other side: {', '.join(list(left)[:5])}")
    return renamed


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)")


def _fill(pattern: str, stars: tuple[str, ...]) -> str:
    return pattern.replace("**", "{}").replace("*", "{}").format(*stars)
