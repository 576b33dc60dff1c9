"""The decoder's weights from and to transformers: `OPTForCausalLM` without biases and gains, and `ChameleonForConditionalGeneration`.

State dicts of `TokenDecoder` on our side; with its image tokenizer (models/vq/convert.py), a Chameleon as a whole is a `Chameleon`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

import models.vq.convert as vq
from models.cm3leon.chameleon import ChameleonConfig
from models.cm3leon.decoder import DecoderConfig
from models.shared.convert import Row, Shape, State, to_ours, to_theirs
from models.shared.text import HubTokenizer


def _with_unused_rows(positions: Tensor) -> Tensor:
    return torch.cat([positions.new_zeros(2, positions.shape[1]), positions])


TRANSFORMERS_TYPE = "chameleon"
TOKENIZER, THEIRS = "image_tokenizer.", "model.vqmodel."
LACKING: dict[str, tuple[str, ...]] = {TOKENIZER + name: () for name in vq.LACKING}  # it reads pictures and draws none

OPT = [
    Row("tokens.weight", "model.decoder.embed_tokens.weight"),
    Row("positions", "model.decoder.embed_positions.weight", Shape(lambda x: x[2:], _with_unused_rows)),  # OPT starts to count at 2
    Row("blocks.*.attn.qkv.weight", tuple(f"model.decoder.layers.*.self_attn.{name}_proj.weight" for name in "qkv")),
    Row("blocks.*.attn.proj.weight", "model.decoder.layers.*.self_attn.out_proj.weight"),
    Row("blocks.*.mlp.up.weight", "model.decoder.layers.*.fc1.weight"),
    Row("blocks.*.mlp.down.weight", "model.decoder.layers.*.fc2.weight"),
]

CHAMELEON = [
    Row("tokens.weight", "model.embed_tokens.weight"),
    Row("blocks.*.norm1.weight", "model.layers.*.input_layernorm.weight"),
    Row("blocks.*.attn.qkv.weight", tuple(f"model.layers.*.self_attn.{name}_proj.weight" for name in "qkv")),
    Row("blocks.*.attn.proj.weight", "model.layers.*.self_attn.o_proj.weight"),
    Row("blocks.*.attn.q_norm.*", "model.layers.*.self_attn.q_norm.*"),
    Row("blocks.*.attn.k_norm.*", "model.layers.*.self_attn.k_norm.*"),
    Row("blocks.*.norm2.weight", "model.layers.*.post_attention_layernorm.weight"),
    Row("blocks.*.mlp.*.weight", "model.layers.*.mlp.*_proj.weight"),
    Row("norm.weight", "model.norm.weight"),
    Row("head.weight", "lm_head.weight"),
]


def from_opt(state: State) -> State:
    """The output layer is tied to the embeddings and left out."""
    return to_ours({name: tensor for name, tensor in state.items() if name != "lm_head.weight"}, OPT)


def to_opt(state: State) -> State:
    theirs = to_theirs(state, OPT)
    return theirs | {"lm_head.weight": theirs["model.decoder.embed_tokens.weight"]}


def from_chameleon(state: State) -> State:
    return to_ours({name: tensor for name, tensor in state.items() if not name.startswith("model.vqmodel.")}, CHAMELEON)


def to_chameleon(state: State) -> State:
    return to_theirs(state, CHAMELEON)


def config_from_opt(config: Any) -> DecoderConfig:
    """From a `transformers.OPTConfig`. Raises ValueError for an OPT that has what CM3leon's decoder does not."""
    plain = not config.enable_bias and not config.layer_norm_elementwise_affine and config.do_layer_norm_before
    if not plain or config.activation_function != "relu" or config.word_embed_proj_dim != config.hidden_size:
        raise ValueError(
            "only an OPT with enable_bias=False, layer_norm_elementwise_affine=False, do_layer_norm_before=True, relu and embeddings of "
            "its own width is CM3leon's decoder"
        )
    return DecoderConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.ffn_dim,
        positions=config.max_position_embeddings,
    )


def config_from_chameleon(config: Any) -> DecoderConfig:
    """From a `transformers.ChameleonConfig`. Raises ValueError for shared keys and values, biases, or scaled rotary positions."""
    if config.num_key_value_heads != config.num_attention_heads or config.attention_bias or config.mlp_bias:
        raise ValueError("only a Chameleon without biases whose heads have keys and values of their own is built here")
    if config.rope_parameters["rope_type"] != "default" or config.hidden_act != "silu":
        raise ValueError("only a Chameleon with plain rotary positions and SiLU is built here")
    return DecoderConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        hidden=config.intermediate_size,
        positions=config.max_position_embeddings,
        chameleon=True,
        norm_after=config.swin_norm,
        norm_eps=config.rms_norm_eps,
        rotary_base=config.rope_parameters["rope_theta"],
    )


# ------------------------------------------------------------------------------------------- a Chameleon as a whole


def their_class(_: Any) -> type[ChameleonForConditionalGeneration]:
    return ChameleonForConditionalGeneration


def tokenizer(name: str | None) -> HubTokenizer:
    return HubTokenizer(str(name))


def from_transformers(state: State) -> State:
    pictures = {name.removeprefix(THEIRS): tensor for name, tensor in state.items() if name.startswith(THEIRS)}
    tokenizer = {TOKENIZER + name: tensor for name, tensor in vq.from_transformers(pictures).items()}
    return {f"decoder.{name}": tensor for name, tensor in from_chameleon(state).items()} | tokenizer


def config_from_transformers(config: Any) -> ChameleonConfig:
    """From a `transformers.ChameleonConfig`. Raises ValueError if its map of the vocabulary lacks image tokens or the marks around them."""
    image_tokenizer = vq.config_from_transformers(config.vq_config)
    known = config.vocabulary_map or {}
    letters = str.maketrans("ABCDEFGHIJ", "0123456789")
    codes = {int(name[len("IMGIMG") : -1].translate(letters)): token for name, token in known.items() if name.startswith("IMGIMG")}
    if sorted(codes) != list(range(image_tokenizer.codes)):
        raise ValueError(f"vocabulary_map has {len(codes)} image tokens, expected one for each of the {image_tokenizer.codes} codes")
    marks = ("<racm3:break>", "<eoss>", "<reserved08706>")
    if missing := [mark for mark in marks if mark not in known]:
        raise ValueError(f"vocabulary_map has no {', '.join(missing)}, which stand around a picture and after a question")
    return ChameleonConfig(
        decoder=config_from_chameleon(config),
        image_tokenizer=image_tokenizer,
        vocab_size=config.vocab_size,
        images=tuple(codes[code] for code in range(len(codes))),
        begin=known[marks[0]],
        finish=known[marks[1]],
        turn=known[marks[2]],
    )
