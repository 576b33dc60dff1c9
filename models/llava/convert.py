"""LLaVA's weights and configuration from and to transformers (`LlavaForConditionalGeneration` with a CLIP tower and a Llama).

State dicts in, state dicts out. LLaVA does not use the tower's last norm, nor its last block if it reads the states before it: these are
dropped, and missing in the other direction, so load with `strict=False` there. A model with convolutions before its blocks (`tiny`) has no
counterpart: ValueError.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import LlavaForConditionalGeneration

from models.llava.model import LLaVAConfig
from models.shared.backbones import LanguageConfig, architecture_of
from models.shared.convert import (
    ADD_ONE,
    ADD_TWO,
    Row,
    State,
    activation_from_transformers,
    to_ours,
    to_theirs,
    transformers_blocks,
)
from models.shared.text import HubTokenizer
from models.shared.vision import VisionConfig

TRANSFORMERS_TYPE = "llava"
TOWER, LAYERS, LAST_NORM = "model.vision_tower", "model.vision_tower.encoder.layers", "model.vision_tower.post_layernorm."
TABLE = [
    Row("visual.cls_token", f"{TOWER}.embeddings.class_embedding", ADD_TWO),
    Row("visual.patch_embed.proj.weight", f"{TOWER}.embeddings.patch_embedding.weight"),
    Row("visual.pos_embed", f"{TOWER}.embeddings.position_embedding.weight", ADD_ONE),
    Row("visual.norm_pre.*", f"{TOWER}.pre_layrnorm.*"),
    *transformers_blocks("visual.blocks", LAYERS, mlp="mlp."),
    Row("to_language.0.*", "model.multi_modal_projector.linear_1.*"),
    Row("to_language.2.*", "model.multi_modal_projector.linear_2.*"),
    Row("language.model.**", "model.language_model.**"),
    Row("language.lm_head.weight", "lm_head.weight"),
]


def from_transformers(state: State, config: LLaVAConfig | None = None) -> State:
    """`config`: of the model that the weights are for, which decides whether the tower's last block is one of those dropped; without it
    the block stays, for a model that does not load what it lacks."""
    whole = any(name.startswith(LAST_NORM) for name in state)
    unused = config.vision.depth - 1 if config and whole and config.states == "penultimate" else None
    kept = {name: value for name, value in state.items() if not name.startswith(LAST_NORM) and _block(name) != unused}
    return to_ours(kept, TABLE)


def to_transformers(state: State) -> State:
    return to_theirs(state, TABLE)


def _block(name: str) -> int:
    """The number of the tower's block that a tensor belongs to; -1 for others."""
    match = re.match(rf"{re.escape(LAYERS)}\.(\d+)\.", name)
    return int(match[1]) if match else -1


def their_class(config: Any) -> type[Any]:
    return LlavaForConditionalGeneration


def tokenizer(name: str | None) -> HubTokenizer:
    """The language model's; its token for an image is not used, since images are vectors here. A deviation: transformers' tokenizer puts a
    blank of its own between an image and the line break after it, our template does not."""
    return HubTokenizer(str(name))


def config_from_transformers(config: Any) -> LLaVAConfig:
    """From a `transformers.LlavaConfig`. Raises ValueError for what LLaVA-1.5 does not do."""
    vision, layer, strategy = config.vision_config, config.vision_feature_layer, config.vision_feature_select_strategy
    if vision.model_type != "clip_vision_model" or layer not in (-1, -2) or strategy != "default" or config.projector_hidden_act != "gelu":
        raise ValueError(
            f"a LLaVA with the states {layer!r} ({strategy}) of a {vision.model_type} through {config.projector_hidden_act}; "
            "expected -1 or -2 (default) of a clip_vision_model through gelu"
        )
    return LLaVAConfig(
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
        states="penultimate" if layer == -2 else "last",
        language=LanguageConfig(architecture=architecture_of(config.text_config)),
        vocab_size=config.text_config.vocab_size,
    )
