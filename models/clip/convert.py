"""CLIP's weights and configuration from and to open_clip (`CLIP`) and transformers (`CLIPModel`); LiT's from and to transformers'
`VisionTextDualEncoderModel` of a `CLIPVisionModel` and a `CLIPTextModel`.

State dicts in, state dicts out. A model with convolutions before its blocks (`tiny`) has no counterpart: ValueError.
"""

from __future__ import annotations

from typing import Any

import torch

from models.clip.model import CLIPConfig
from models.shared.convert import (
    ADD_ONE,
    ADD_TWO,
    TRANSPOSED,
    Row,
    State,
    activation_from_transformers,
    open_clip_activation,
    open_clip_blocks,
    open_clip_vision,
    to_ours,
    to_theirs,
    transformers_blocks,
)
from models.shared.text import OpenCLIPTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig

OPEN_CLIP = [
    Row("logit_scale", "logit_scale"),
    Row("visual.patch_embed.proj.weight", "visual.conv1.weight"),
    Row("visual.cls_token", "visual.class_embedding", ADD_TWO),
    Row("visual.pos_embed", "visual.positional_embedding", ADD_ONE),
    Row("visual.norm_pre.*", "visual.ln_pre.*"),
    *open_clip_blocks("visual.blocks", "visual.transformer.resblocks", mlp="mlp."),
    Row("visual.norm.*", "visual.ln_post.*"),
    Row("visual_projection.weight", "visual.proj", TRANSPOSED),
    Row("text.tokens.weight", "token_embedding.weight"),
    Row("text.positions", "positional_embedding"),
    *open_clip_blocks("text.blocks", "transformer.resblocks"),
    Row("text.norm.*", "ln_final.*"),
    Row("text_projection.weight", "text_projection", TRANSPOSED),
]

TRANSFORMERS_TYPE = "clip"
TRANSFORMERS = [
    Row("logit_scale", "logit_scale"),
    Row("visual.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
    Row("visual.cls_token", "vision_model.embeddings.class_embedding", ADD_TWO),
    Row("visual.pos_embed", "vision_model.embeddings.position_embedding.weight", ADD_ONE),
    Row("visual.norm_pre.*", "vision_model.pre_layrnorm.*"),
    *transformers_blocks("visual.blocks", "vision_model.encoder.layers", mlp="mlp."),
    Row("visual.norm.*", "vision_model.post_layernorm.*"),
    Row("visual_projection.weight", "visual_projection.weight"),
    Row("text.tokens.weight", "text_model.embeddings.token_embedding.weight"),
    Row("text.positions", "text_model.embeddings.position_embedding.weight"),
    *transformers_blocks("text.blocks", "text_model.encoder.layers"),
    Row("text.norm.*", "text_model.final_layer_norm.*"),
    Row("text_projection.weight", "text_projection.weight"),
]


def from_open_clip(state: State) -> State:
    return to_ours(state, OPEN_CLIP)


def to_open_clip(state: State) -> State:
    return to_theirs(state, OPEN_CLIP)


def from_transformers(state: State) -> State:
    return to_ours(state, TRANSFORMERS)


def to_transformers(state: State) -> State:
    return to_theirs(state, TRANSFORMERS)


PROJECTION = "visual_projection.weight"


def from_dual_encoder(state: State) -> State:
    """The projection of images is dropped if it is the identity: LiT has none."""
    found = to_ours(state, TRANSFORMERS)
    weight = found[PROJECTION]
    if weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype, device=weight.device)):
        del found[PROJECTION]
    return found


def to_dual_encoder(state: State) -> State:
    """Without a projection of images (LiT) theirs is the identity. Raises ValueError for a tower that is not CLIP's: a dual encoder reads
    the pooled output, which of transformers' other vision transformers is a layer more than LiT's."""
    width = state["visual.norm.weight"] if "visual.norm.weight" in state else state["visual.fc_norm.weight"]
    identity = {PROJECTION: torch.eye(len(width), dtype=width.dtype, device=width.device)}
    return to_theirs(identity | state, TRANSFORMERS)


def tokenizer(_: str | None = None) -> OpenCLIPTokenizer:
    """Of all published CLIPs; it is part of open_clip."""
    return OpenCLIPTokenizer()


def is_open_clip(cfg: dict[str, Any]) -> bool:
    """Whether a model configuration of open_clip's is a plain CLIP: no text decoder, no SigLIP tower."""
    return "multimodal_cfg" not in cfg and "siglip" not in cfg["vision_cfg"].get("timm_model_name", "")


def config_from_open_clip(cfg: dict[str, Any]) -> CLIPConfig:
    """From open_clip's own description of a model, `open_clip.get_model_config(name)`.

    Raises ValueError where it is not CLIP's plain vision transformer and text transformer.
    """
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    plain = {
        "layers",
        "width",
        "head_width",
        "heads",
        "mlp_ratio",
        "patch_size",
        "image_size",
        "patch_dropout",
        "context_length",
        "vocab_size",
        "hf_tokenizer_name",
        "eos_id",  # where texts are read at the end token by its id, and not at the largest one, which CLIP's own end is
    }
    plain |= {"pool_type"} if text.get("pool_type") in ("argmax", "eos") else set()
    if foreign := {*vision, *text} - plain:
        raise ValueError(f"not CLIP's own towers: open_clip's configuration has {', '.join(sorted(foreign))}")
    if not isinstance(vision["layers"], int):
        raise ValueError("not CLIP's own towers: a ResNet; only vision transformers are built here")
    return CLIPConfig(
        vision=open_clip_vision(cfg),
        text=TransformerConfig(
            width=text["width"],
            depth=text["layers"],
            heads=text["heads"],
            mlp_ratio=text.get("mlp_ratio", 4.0),
            activation=open_clip_activation(cfg),
        ),
        embed_dim=cfg["embed_dim"],
        context=text["context_length"],
        vocab_size=text["vocab_size"],
    )


def config_from_transformers(config: Any) -> CLIPConfig:
    """From a `transformers.CLIPConfig`."""
    vision, text = config.vision_config, config.text_config
    return CLIPConfig(
        vision=VisionConfig(
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            activation=activation_from_transformers(vision.hidden_act),
            norm_eps=vision.layer_norm_eps,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pre_norm=True,
        ),
        text=TransformerConfig(
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            activation=activation_from_transformers(text.hidden_act),
            norm_eps=text.layer_norm_eps,
        ),
        embed_dim=config.projection_dim,
        context=text.max_position_embeddings,
        vocab_size=text.vocab_size,
    )
