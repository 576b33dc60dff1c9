"""SigLIP's weights and configuration from and to transformers (`SiglipModel`) and open_clip (`CustomTextCLIP` around timm's tower).

State dicts in, state dicts out. timm's own `vit_*_siglip_*` towers need no conversion: `model.visual.load_state_dict(...)`.
A model with convolutions before its blocks (`tiny`) has no counterpart: ValueError or other names.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from models.shared.convert import (
    ADD_ONE,
    DROP_ONE,
    Row,
    State,
    activation_from_transformers,
    open_clip_blocks,
    to_ours,
    to_theirs,
    transformers_blocks,
)
from models.shared.text import HubTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.siglip.model import SigLIPConfig

TRANSFORMERS_TYPE = "siglip"
TRANSFORMERS = [
    Row("logit_scale", "logit_scale", DROP_ONE),
    Row("logit_bias", "logit_bias", DROP_ONE),
    Row("visual.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    Row("visual.pos_embed", "vision_model.embeddings.position_embedding.weight", ADD_ONE),
    *transformers_blocks("visual.blocks", "vision_model.encoder.layers", mlp="mlp."),
    Row("visual.norm.*", "vision_model.post_layernorm.*"),
    Row("visual.attn_pool.latent", "vision_model.head.probe"),
    Row(("visual.attn_pool.q.*", "visual.attn_pool.kv.*"), "vision_model.head.attention.in_proj_*", parts=(1, 2)),
    Row("visual.attn_pool.proj.*", "vision_model.head.attention.out_proj.*"),
    Row("visual.attn_pool.norm.*", "vision_model.head.layernorm.*"),
    Row("visual.attn_pool.mlp.*.*", "vision_model.head.mlp.*.*"),
    Row("text.tokens.weight", "text_model.embeddings.token_embedding.weight"),
    Row("text.positions", "text_model.embeddings.position_embedding.weight"),
    *transformers_blocks("text.blocks", "text_model.encoder.layers"),
    Row("text.norm.*", "text_model.final_layer_norm.*"),
    Row("text_projection.*", "text_model.head.*"),
]

OPEN_CLIP = [
    Row("logit_scale", "logit_scale"),
    Row("logit_bias", "logit_bias"),
    Row("visual.**", "visual.trunk.**"),
    Row("text.tokens.weight", "text.token_embedding.weight"),
    Row("text.positions", "text.positional_embedding"),
    *open_clip_blocks("text.blocks", "text.transformer.resblocks"),
    Row("text.norm.*", "text.ln_final.*"),
    Row("text_projection.*", "text.text_projection.*"),
]


def from_transformers(state: State) -> State:
    return to_ours(state, TRANSFORMERS)


def to_transformers(state: State) -> State:
    return to_theirs(state, TRANSFORMERS)


def from_open_clip(state: State) -> State:
    return to_ours(state, OPEN_CLIP)


def to_open_clip(state: State) -> State:
    return to_theirs(state, OPEN_CLIP)


def config_from_transformers(config: Any) -> SigLIPConfig:
    """From a `transformers.SiglipConfig`."""
    vision, text = config.vision_config, config.text_config
    return SigLIPConfig(
        vision=VisionConfig(
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            activation=activation_from_transformers(vision.hidden_act),
            norm_eps=vision.layer_norm_eps,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pool="map",
        ),
        text=TransformerConfig(
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            activation=activation_from_transformers(text.hidden_act),
            norm_eps=text.layer_norm_eps,
        ),
        context=text.max_position_embeddings,
        vocab_size=text.vocab_size,
    )


def tokenizer(name: str | None) -> HubTokenizer:
    """SigLIP's are on the hub."""
    return HubTokenizer(str(name))


def is_open_clip(cfg: dict[str, Any]) -> bool:
    """Whether a model configuration of open_clip's is a SigLIP: it has timm's tower of that name."""
    return "multimodal_cfg" not in cfg and "siglip" in cfg["vision_cfg"].get("timm_model_name", "")


def config_from_open_clip(cfg: dict[str, Any]) -> SigLIPConfig:
    """From open_clip's own description of a model, `open_clip.get_model_config("ViT-B-16-SigLIP")`.

    It says what open_clip computes: mostly the exact GELU, where the released weights were trained with its tanh
    approximation (features differ by some 1e-3; `hf:` follows the training). Raises ValueError for other architectures.
    """
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    released = text.get("pool_type") == "last" and text.get("no_causal_mask") and text.get("proj_bias")
    if "siglip" not in vision.get("timm_model_name", "") or not released:
        raise ValueError("not SigLIP's own towers: expected timm's vit_*_siglip_* and a bidirectional text transformer with a linear head")
    with torch.device("meta"):
        tower = timm.create_model(vision["timm_model_name"], img_size=vision["image_size"], num_classes=0)
    mlp = tower.blocks[0].mlp
    return SigLIPConfig(
        vision=VisionConfig(
            width=tower.embed_dim,
            depth=len(tower.blocks),
            heads=tower.blocks[0].attn.num_heads,
            mlp_ratio=mlp.fc1.out_features / tower.embed_dim,
            activation="gelu" if isinstance(mlp.act, nn.GELU) else "gelu_tanh",
            norm_eps=tower.norm.eps,
            image_size=vision["image_size"],
            patch_size=tower.patch_embed.patch_size[0],
            pool="map",
        ),
        text=TransformerConfig(
            width=text["width"],
            depth=text["layers"],
            heads=text["heads"],
            mlp_ratio=text.get("mlp_ratio", 4.0),
            activation="gelu_tanh" if (text.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu",
            norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        ),
        context=text["context_length"],
        vocab_size=text["vocab_size"],
    )
