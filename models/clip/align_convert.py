"""ALIGN's weights and configuration from and to transformers (`AlignModel`).

State dicts in, state dicts out. BERT's pooler is in their weights, and nothing reads it: it is dropped, and `to_transformers` has none, so
load its state with `strict=False`. A model with CLIP's image tower (`tiny`, `small`) has no counterpart: ValueError.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from models.clip.align import ALIGNConfig, EfficientNetConfig
from models.shared.convert import Row, State, activation_from_transformers, to_ours, to_theirs
from models.shared.images import HALF
from models.shared.text import HubTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig

TRANSFORMERS_TYPE = "align"
POOLER = "text_model.pooler."
TRANSFORMERS = [
    Row("temperature", "temperature"),
    Row("visual.embeddings.**", "vision_model.embeddings.**"),
    Row("visual.encoder.**", "vision_model.encoder.**"),
    Row("text.**", "text_model.**"),
    Row("text_projection.*", "text_projection.*"),
]


def from_transformers(state: State) -> State:
    return to_ours({name: tensor for name, tensor in state.items() if not name.startswith(POOLER)}, TRANSFORMERS)


def to_transformers(state: State) -> State:
    return to_theirs(state, TRANSFORMERS)


def tokenizer(name: str | None) -> HubTokenizer:
    """BERT's, on the hub."""
    return HubTokenizer(str(name))


def config_from_transformers(config: Any) -> ALIGNConfig:
    """From a `transformers.AlignConfig`. Raises ValueError for pooling or blocks that ALIGN does not have."""
    vision, text = config.vision_config, config.text_config
    said = {"pooling_type": "mean", "hidden_act": "swish", "squeeze_expansion_ratio": 0.25, "depth_divisor": 8, "batch_norm_eps": 1e-3}
    if other := [f"{name} = {getattr(vision, name)!r}" for name, value in said.items() if getattr(vision, name) != value]:
        raise ValueError(f"not ALIGN's EfficientNet: {', '.join(other)}")
    values = {each.name: getattr(vision, each.name) for each in fields(EfficientNetConfig)}
    blocks: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    return ALIGNConfig(
        vision=VisionConfig(width=0, depth=0, heads=0, image_size=int(vision.image_size)),
        text=TransformerConfig(
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            activation=activation_from_transformers(text.hidden_act),
            norm_eps=text.layer_norm_eps,
        ),
        efficientnet=EfficientNetConfig(**blocks),
        context=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        temperature=config.temperature_init_value,
        mean=HALF,
        std=HALF,
    )
