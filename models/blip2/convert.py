"""BLIP-2 from and to transformers: the Q-Former with its heads (`Blip2ForImageTextRetrieval`) and the frozen image tower.

State dicts in, state dicts out. transformers' models have no head for the first stage's generation, no [DEC] row, and the
retrieval model has no bridge to a language model: missing parts are omitted, so load with `strict=False`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from models.blip2.model import BLIP2Config
from models.shared.backbones import LanguageConfig, architecture_of
from models.shared.convert import DROP_ONE, Row, State, to_ours, to_theirs, tower_from_transformers
from models.shared.sources import fetched
from models.shared.text import HubTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig

TRANSFORMERS_TYPE = "blip-2"
COMPARES, WRITES = ("score", "encode_image", "encode_text"), ("caption", "answer", "answer_likelihood")
LACKING: dict[str, tuple[str, ...]] = {
    "qformer.tokens.*": COMPARES,  # of a model that captions, which has no side for texts
    "qformer.positions": COMPARES,
    "qformer.layers.*.text_mlp.*": COMPARES,
    "image_projection.*": COMPARES,
    "text_projection.*": COMPARES,
    "match_head.*": COMPARES,
    "language.*": WRITES,  # of a model for retrieval
    "to_language.*": WRITES,
    "word_head.*": (),  # of the first stage's generation, which no capability uses
    "temperature": (),
    "visual.norm.*": (),  # nothing uses it
}

LAYER = "qformer.encoder.layer.*"


def _feed_forward(ours: str, suffix: str) -> list[Row]:
    return [
        Row(f"qformer.layers.*.{ours}.fc1.*", f"{LAYER}.intermediate{suffix}.dense.*"),
        Row(f"qformer.layers.*.{ours}.fc2.*", f"{LAYER}.output{suffix}.dense.*"),
        Row(f"qformer.layers.*.{ours}.norm.*", f"{LAYER}.output{suffix}.LayerNorm.*"),
    ]


def _attention(ours: str, norm: str, theirs: str, names: tuple[tuple[str, tuple[str, ...]], ...]) -> list[Row]:
    there = f"{LAYER}.{theirs}"
    return [
        *(
            Row(f"qformer.layers.*.{ours}.{mine}.*", tuple(f"{there}.attention.{name}.*" for name in parts), parts=(1,) * len(parts))
            for mine, parts in names
        ),
        Row(f"qformer.layers.*.{ours}.proj.*", f"{there}.output.dense.*"),
        Row(f"qformer.layers.*.{norm}.*", f"{there}.output.LayerNorm.*"),
    ]


VISION = [
    Row("visual.cls_token", "vision_model.embeddings.class_embedding"),
    Row("visual.pos_embed", "vision_model.embeddings.position_embedding"),
    Row("visual.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    Row("visual.blocks.*.norm1.*", "vision_model.encoder.layers.*.layer_norm1.*"),
    Row("visual.blocks.*.attn.qkv.*", "vision_model.encoder.layers.*.self_attn.qkv.*"),
    Row("visual.blocks.*.attn.proj.*", "vision_model.encoder.layers.*.self_attn.projection.*"),
    Row("visual.blocks.*.norm2.*", "vision_model.encoder.layers.*.layer_norm2.*"),
    Row("visual.blocks.*.mlp.fc1.*", "vision_model.encoder.layers.*.mlp.fc1.*"),
    Row("visual.blocks.*.mlp.fc2.*", "vision_model.encoder.layers.*.mlp.fc2.*"),
    Row("norm_image.*", "vision_model.post_layernorm.*"),
]
QFORMER = [
    Row("qformer.queries", "query_tokens", DROP_ONE),
    Row("qformer.norm.*", "qformer.layernorm.*"),
    *_attention("attn", "norm", "attention", (("qkv", ("query", "key", "value")),)),
    *_attention("cross", "norm_cross", "crossattention", (("q", ("query",)), ("kv", ("key", "value")))),
    *_feed_forward("query_mlp", "_query"),
]
TEXT = [
    Row("qformer.tokens.weight", "embeddings.word_embeddings.weight"),
    Row("qformer.positions", "embeddings.position_embeddings.weight"),
    *_feed_forward("text_mlp", ""),
    Row("image_projection.*", "vision_projection.*"),
    Row("text_projection.*", "text_projection.*"),
    Row("match_head.*", "itm_head.*"),
]
BRIDGE = [Row("to_language.*", "language_projection.*")]
ONLY_OURS = ("word_head.", "temperature", "visual.norm.")  # the first stage's generation and scale, a norm that is not used
OF_TEXTS = ("qformer.tokens.", "qformer.positions", "image_projection.", "text_projection.", "match_head.")


def from_retrieval(state: State) -> State:
    """Of a `Blip2ForImageTextRetrieval`: everything but the first stage's generation and the language model."""
    found = to_ours(state, [*VISION, *QFORMER, *TEXT])
    words = found["qformer.tokens.weight"]
    found["qformer.tokens.weight"] = torch.cat([words, words.mean(dim=0, keepdim=True)])  # [DEC] is not among theirs
    return found


def from_conditional_generation(state: State) -> State:
    """Of a `Blip2ForConditionalGeneration`: everything but the texts' side of the Q-Former; the language model as it is."""
    language = {
        name.replace("language_model.", "language.", 1): value for name, value in state.items() if name.startswith("language_model.")
    }
    rest = {name: value for name, value in state.items() if not name.startswith("language_model.")}
    return to_ours(rest, [*VISION, *QFORMER, *BRIDGE]) | language


def to_retrieval(state: State) -> State:
    """Inverse of `from_retrieval`, of a whole `BLIP2`."""
    kept = {name: value for name, value in state.items() if not name.startswith((*ONLY_OURS, "language.", "to_language."))}
    return to_theirs(kept | {"qformer.tokens.weight": kept["qformer.tokens.weight"][:-1]}, [*VISION, *QFORMER, *TEXT])


def to_conditional_generation(state: State) -> State:
    """Inverse of `from_conditional_generation`, of a whole `BLIP2`."""
    language = {name.replace("language.", "language_model.", 1): value for name, value in state.items() if name.startswith("language.")}
    other = (*ONLY_OURS, *OF_TEXTS, "language.")
    kept = {name: value for name, value in state.items() if not name.startswith(other) and ".text_mlp." not in name}
    return to_theirs(kept, [*VISION, *QFORMER, *BRIDGE]) | language


def from_transformers(state: State) -> State:
    """Of either model."""
    return from_retrieval(state) if any(name.startswith("itm_head.") for name in state) else from_conditional_generation(state)


def their_class(config: Any) -> type[Any]:
    """The retrieval model if the folder says that it is one; else the one that captions."""
    retrieves = Blip2ForImageTextRetrieval.__name__ in (config.architectures or [])
    return Blip2ForImageTextRetrieval if retrieves else Blip2ForConditionalGeneration


def tokenizer(name: str | None) -> HubTokenizer:
    """The language model's, ending where the weights were trained to end: the released OPTs' captions end with a line break. For the
    retrieval model BERT's."""
    found = HubTokenizer(str(name))
    config: Any = fetched(str(name), AutoConfig.from_pretrained, name, trust_remote_code=False)
    end = config.text_config.eos_token_id
    if their_class(config) is Blip2ForConditionalGeneration and isinstance(end, int) and end != found.end:
        found.end_with(end)
    return found


def config_from_transformers(config: Any) -> BLIP2Config:
    """From a `transformers.Blip2Config`. Raises ValueError for a tower without biases."""
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    if not vision.qkv_bias:
        raise ValueError("only a BLIP-2 whose image tower has biases of queries, keys and values is built here")
    retrieves = their_class(config) is Blip2ForImageTextRetrieval
    return BLIP2Config(
        vision=VisionConfig(**tower_from_transformers(vision), image_size=vision.image_size, patch_size=vision.patch_size),
        qformer=TransformerConfig(**tower_from_transformers(qformer)),
        queries=config.num_query_tokens,
        every=qformer.cross_attention_frequency,
        embed_dim=config.image_text_hidden_size,
        language=LanguageConfig(width=32, depth=1, heads=1, hidden=32) if retrieves else LanguageConfig(architecture=architecture_of(text)),
        context=qformer.max_position_embeddings if retrieves else 32,
        vocab_size=qformer.vocab_size if retrieves else text.vocab_size,
        start=not text.is_encoder_decoder,
        prompt="Question: {} Answer:",
    )
