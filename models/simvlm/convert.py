"""The transformer's weights from and to transformers' T5 (`T5ForConditionalGeneration`), whose layers it has.

State dicts in, state dicts out. Two conventions differ: T5's attention has no scale, and its embedding is larger by the square root of the
width. T5 has no absolute positions, so those of SimVLM stay behind; it is given embeddings that contain them. A T5 with relative
positions of its own is refused.
"""

from __future__ import annotations

import math

import torch

from models.shared.convert import Row, State, to_ours, to_theirs
from models.simvlm.transformer import EncoderDecoderConfig

POSITIONS = ("positions", "image_positions", "relative.relative_position_bias_table")
RELATIVE = tuple(f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for half in ("encoder", "decoder"))
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")  # with "shared.weight"


def from_t5(state: State, config: EncoderDecoderConfig, *, gradients: bool = False) -> State:
    """T5's weights as ours, without positions; or its `gradients`, for which the factors are the inverse ones."""
    if any(name in state and bool(state[name].any()) for name in RELATIVE):
        raise ValueError(
            "this T5 has relative positions of its own, which SimVLM's transformer does not: expected relative_attention_bias 0"
        )
    own = {name: value * _factor(name, config, gradients) for name, value in state.items() if name not in (*RELATIVE, *TIED)}
    return to_ours(own, _TABLE)


def to_t5(state: State, config: EncoderDecoderConfig, *, buckets: int = 32, gradients: bool = False) -> State:
    """Our weights as T5's, whose relative positions are 0."""
    theirs = to_theirs({name: value for name, value in state.items() if name not in POSITIONS}, _TABLE)
    theirs = {name: value / _factor(name, config, gradients) for name, value in theirs.items()}
    return theirs | dict.fromkeys(TIED, theirs["shared.weight"]) | {name: torch.zeros(buckets, config.heads) for name in RELATIVE}


def _factor(name: str, config: EncoderDecoderConfig, gradients: bool) -> float:
    """Ours / theirs."""
    factor = 1.0
    if name == "shared.weight":
        factor = config.width**-0.5
    elif name.endswith(".q.weight"):
        factor = math.sqrt(config.width / config.heads)
    return 1 / factor if gradients else factor


def _attention(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}.qkv.weight", (f"{theirs}.q.weight", f"{theirs}.k.weight", f"{theirs}.v.weight")),
        Row(f"{ours}.proj.weight", f"{theirs}.o.weight"),
    ]


def _mlp(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}.fc1.weight", f"{theirs}.wi.weight"),
        Row(f"{ours}.fc2.weight", f"{theirs}.wo.weight"),
    ]


_TABLE = [
    Row("tokens.weight", "shared.weight"),
    Row("encoder.*.norm1.weight", "encoder.block.*.layer.0.layer_norm.weight"),
    *_attention("encoder.*.attn", "encoder.block.*.layer.0.SelfAttention"),
    Row("encoder.*.norm2.weight", "encoder.block.*.layer.1.layer_norm.weight"),
    *_mlp("encoder.*.mlp", "encoder.block.*.layer.1.DenseReluDense"),
    Row("encoder_norm.weight", "encoder.final_layer_norm.weight"),
    Row("decoder.*.norm1.weight", "decoder.block.*.layer.0.layer_norm.weight"),
    *_attention("decoder.*.attn", "decoder.block.*.layer.0.SelfAttention"),
    Row("decoder.*.norm2.weight", "decoder.block.*.layer.1.layer_norm.weight"),
    Row("decoder.*.cross.q.weight", "decoder.block.*.layer.1.EncDecAttention.q.weight"),
    Row(
        "decoder.*.cross.kv.weight",
        tuple(f"decoder.block.*.layer.1.EncDecAttention.{half}.weight" for half in "kv"),
        parts=(1, 1),
    ),
    Row("decoder.*.cross.proj.weight", "decoder.block.*.layer.1.EncDecAttention.o.weight"),
    Row("decoder.*.norm3.weight", "decoder.block.*.layer.2.layer_norm.weight"),
    *_mlp("decoder.*.mlp", "decoder.block.*.layer.2.DenseReluDense"),
    Row("norm.weight", "decoder.final_layer_norm.weight"),
]
