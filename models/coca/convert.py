"""CoCa's weights and configuration from and to open_clip (`CoCa`).

State dicts in, state dicts out. What open_clip cannot build is refused: ValueError for a model with convolutions before its
blocks, without a class token, or with one MLP per multimodal layer (the paper's; open_clip's have two).
"""

from __future__ import annotations

from typing import Any

from models.coca.model import CoCaConfig
from models.shared.convert import (
    ADD_ONE,
    ADD_TWO,
    TRANSPOSED,
    Row,
    State,
    open_clip_activation,
    open_clip_blocks,
    open_clip_vision,
    to_ours,
    to_theirs,
)
from models.shared.text import OpenCLIPTokenizer
from models.shared.transformer import TransformerConfig

HALVES = (1, 2)  # of a fused projection: queries; keys and values


def from_open_clip(state: State) -> State:
    return to_ours(state, _open_clip(single="visual.attn_pool_contrastive.query" not in state))


def to_open_clip(state: State) -> State:
    return to_theirs(state, _open_clip(single="pooling.contrastive.query" not in state, like=state))


def _open_clip(*, single: bool, like: State | None = None) -> list[Row]:
    """`like`: our tensors, which show whether a pooler's projections are fused in open_clip (memory and queries equally wide)."""
    return [
        Row("logit_scale", "logit_scale"),
        Row("visual.patch_embed.proj.weight", "visual.conv1.weight"),
        Row("visual.cls_token", "visual.class_embedding", ADD_TWO),
        Row("visual.pos_embed", "visual.positional_embedding", ADD_ONE),
        Row("visual.norm_pre.*", "visual.ln_pre.*"),
        *open_clip_blocks("visual.blocks", "visual.transformer.resblocks", mlp="mlp."),
        Row("pooling.norm.*" if single else "visual.norm.*", "visual.ln_post.*"),
        *_pooler("pooling.generative", "visual.attn_pool", like),
        *_pooler("pooling.contrastive", "visual.attn_pool_contrastive", like),
        Row("visual_projection.weight", "visual.proj", TRANSPOSED),
        Row("text.tokens.weight", "text.token_embedding.weight"),
        Row("text.cls_token", "text.cls_emb"),
        Row("text.positions", "text.positional_embedding"),
        *open_clip_blocks("text.unimodal", "text.transformer.resblocks"),
        Row("text.norm_cls.*", "text.ln_final.*"),
        Row("text_projection.weight", "text.text_projection", TRANSPOSED),
        *_multimodal("text.multimodal", "text_decoder"),
        Row("text.norm.*", "text_decoder.ln_final.*"),
        Row("text.head.weight", "text_decoder.text_projection", TRANSPOSED),
    ]


def _pooler(ours: str, theirs: str, like: State | None) -> list[Row]:
    name = f"{ours}.attn.kv.weight"
    separate = like is not None and name in like and like[name].shape[1] != like[f"{ours}.attn.q.weight"].shape[1]
    fused = Row((f"{ours}.attn.q.weight", name), f"{theirs}.attn.in_proj_weight", parts=HALVES)
    return [
        Row(f"{ours}.query", f"{theirs}.query"),
        Row(f"{ours}.norm_query.*", f"{theirs}.ln_q.*"),
        Row(f"{ours}.norm_memory.*", f"{theirs}.ln_k.*"),
        *([] if separate else [fused]),
        Row(f"{ours}.attn.q.weight", f"{theirs}.attn.q_proj_weight"),
        Row(name, (f"{theirs}.attn.k_proj_weight", f"{theirs}.attn.v_proj_weight"), parts=(1, 1)),
        Row((f"{ours}.attn.q.bias", f"{ours}.attn.kv.bias"), f"{theirs}.attn.in_proj_bias", parts=HALVES),
        Row(f"{ours}.attn.proj.*", f"{theirs}.attn.out_proj.*"),
    ]


def _multimodal(ours: str, theirs: str) -> list[Row]:
    """A layer of ours is two blocks of theirs: one of self-attention, one of cross-attention, each with its MLP."""
    first, second = f"{theirs}.resblocks", f"{theirs}.cross_attn"
    return [
        Row(f"{ours}.*.norm1.*", f"{first}.*.ln_1.*"),
        Row(f"{ours}.*.attn.qkv.*", f"{first}.*.attn.in_proj_*"),
        Row(f"{ours}.*.attn.proj.*", f"{first}.*.attn.out_proj.*"),
        Row(f"{ours}.*.mlp1.norm.*", f"{first}.*.ln_2.*"),
        Row(f"{ours}.*.mlp1.fc1.*", f"{first}.*.mlp.c_fc.*"),
        Row(f"{ours}.*.mlp1.fc2.*", f"{first}.*.mlp.c_proj.*"),
        Row(f"{ours}.*.norm2.*", f"{second}.*.ln_1.*"),
        Row(f"{ours}.*.norm_memory.*", f"{second}.*.ln_1_kv.*"),
        Row((f"{ours}.*.cross.q.*", f"{ours}.*.cross.kv.*"), f"{second}.*.attn.in_proj_*", parts=HALVES),
        Row(f"{ours}.*.cross.proj.*", f"{second}.*.attn.out_proj.*"),
        Row(f"{ours}.*.mlp2.norm.*", f"{second}.*.ln_2.*"),
        Row(f"{ours}.*.mlp2.fc1.*", f"{second}.*.mlp.c_fc.*"),
        Row(f"{ours}.*.mlp2.fc2.*", f"{second}.*.mlp.c_proj.*"),
    ]


def tokenizer(_: str | None = None) -> OpenCLIPTokenizer:
    """Of all published CoCas; it is part of open_clip."""
    return OpenCLIPTokenizer()


def is_open_clip(cfg: dict[str, Any]) -> bool:
    """Whether a model configuration of open_clip's is a CoCa: it has a text decoder."""
    return "multimodal_cfg" in cfg


def config_from_open_clip(cfg: dict[str, Any]) -> CoCaConfig:
    """From open_clip's own description of a model, `open_clip.get_model_config("coca_ViT-B-32")`.

    Raises ValueError where it is not one that it can build itself (its "cascade" and "parallel" pooling need an image tower as
    wide as the embedding) or has parts that are unknown here.
    """
    vision, text, multimodal = cfg["vision_cfg"], cfg["text_cfg"], cfg["multimodal_cfg"]
    known_vision = {
        "image_size",
        "layers",
        "width",
        "head_width",
        "mlp_ratio",
        "patch_size",
        "attentional_pool",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "output_tokens",
    }
    known_text = {"context_length", "vocab_size", "layers", "width", "heads", "embed_cls", "output_tokens", "pad_id", "hf_tokenizer_name"}
    ignored = {"mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"}  # by open_clip, too
    if foreign := (set(vision) - known_vision) | (set(text) - known_text) | (set(multimodal) - known_text - ignored):
        raise ValueError(f"not CoCa's own towers: open_clip's configuration has {', '.join(sorted(foreign))}")
    pooling = vision.get("attentional_pool")
    if pooling not in (True, "cascade", "parallel"):
        raise ValueError(f"attentional_pool is {pooling!r}: expected true, cascade or parallel")
    differs = [name for name in ("context_length", "vocab_size", "width", "heads") if text[name] != multimodal[name]]
    if differs or cfg["embed_dim"] != text["width"]:
        raise ValueError(f"both halves of the decoder and the embedding must agree: they differ in {', '.join(differs or ['embed_dim'])}")
    return CoCaConfig(
        vision=open_clip_vision(cfg),
        text=TransformerConfig(
            width=text["width"],
            depth=text["layers"],
            heads=text["heads"],
            activation=open_clip_activation(cfg),
        ),
        multimodal_depth=multimodal["layers"],
        queries=vision.get("attn_pooler_queries", 256),
        pooling="single" if pooling is True else pooling,
        pooler_heads=vision.get("attn_pooler_heads", 8),
        embed_dim=cfg["embed_dim"],
        context=text["context_length"],
        vocab_size=text["vocab_size"],
        second_mlp=True,
        shifted_mask=True,
    )
