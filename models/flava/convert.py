"""FLAVA's weights and configuration from and to transformers (`FlavaForPreTraining`).

State dicts in, state dicts out. The towers' poolers there have no part in any loss, and the image codebook is DALL-E's: neither
has a counterpart here. A model with convolutions before its blocks (`tiny`) cannot be converted.
"""

from __future__ import annotations

from typing import Any

from transformers import FlavaForPreTraining

from models.flava.model import FLAVAConfig
from models.shared.convert import DROP_TWO, Row, State, to_ours, to_theirs, tower_from_transformers
from models.shared.text import HubTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQConfig
from models.vq.network import NetworkConfig


def _blocks(ours: str, theirs: str, *, mlp: str = "") -> list[Row]:
    there = f"{theirs}.encoder.layer.*"
    qkv = tuple(f"{there}.attention.attention.{name}.*" for name in ("query", "key", "value"))
    return [
        Row(f"{ours}.*.norm1.*", f"{there}.layernorm_before.*"),
        Row(f"{ours}.*.attn.qkv.*", qkv),
        Row(f"{ours}.*.attn.proj.*", f"{there}.attention.output.dense.*"),
        Row(f"{ours}.*.norm2.*", f"{there}.layernorm_after.*"),
        Row(f"{ours}.*.{mlp}fc1.*", f"{there}.intermediate.dense.*"),
        Row(f"{ours}.*.{mlp}fc2.*", f"{there}.output.dense.*"),
    ]


def _head(ours: str, theirs: str) -> list[Row]:
    return [
        Row(f"{ours}.0.*", f"{theirs}.transform.dense.*"),
        Row(f"{ours}.2.*", f"{theirs}.transform.LayerNorm.*"),
        Row(f"{ours}.3.*", f"{theirs}.decoder.*"),
    ]


TRANSFORMERS_TYPE = "flava"
LACKING: dict[str, tuple[str, ...]] = {
    "codebook.*": ("unmask",),  # always: theirs is DALL-E's
    "match_head.*": ("score",),  # the heads, in folders of a `FlavaModel`
    "mim_head.*": ("unmask",),
    "mmm_image_head.*": ("unmask",),
    "mlm_head.*": (),
    "mmm_text_head.*": ("words",),
}
IMAGE, TEXT, FUSION = "flava.image_model", "flava.text_model", "flava.multimodal_model"
TRANSFORMERS = [
    Row("logit_scale", "flava.logit_scale"),
    Row("visual.cls_token", f"{IMAGE}.embeddings.cls_token"),
    Row("mask_token", f"{IMAGE}.embeddings.mask_token", DROP_TWO),
    Row("visual.pos_embed", f"{IMAGE}.embeddings.position_embeddings"),
    Row("visual.patch_embed.proj.*", f"{IMAGE}.embeddings.patch_embeddings.projection.*"),
    *_blocks("visual.blocks", IMAGE, mlp="mlp."),
    Row("visual.norm.*", f"{IMAGE}.layernorm.*"),
    Row("text.tokens.weight", f"{TEXT}.embeddings.word_embeddings.weight"),
    Row("text.positions", f"{TEXT}.embeddings.position_embeddings.weight"),
    Row("text.segments", f"{TEXT}.embeddings.token_type_embeddings.weight"),
    Row("text.norm_tokens.*", f"{TEXT}.embeddings.LayerNorm.*"),
    *_blocks("text.blocks", TEXT),
    Row("text.norm.*", f"{TEXT}.layernorm.*"),
    Row("fusion.image.*", "flava.image_to_mm_projection.*"),
    Row("fusion.text.*", "flava.text_to_mm_projection.*"),
    Row("fusion.cls_token", f"{FUSION}.cls_token", DROP_TWO),
    *_blocks("fusion.blocks", FUSION),
    Row("fusion.norm.*", f"{FUSION}.layernorm.*"),
    Row("image_projection.*", "flava.image_projection.*"),
    Row("text_projection.*", "flava.text_projection.*"),
    *_head("mim_head", "mim_head"),
    *_head("mlm_head", "mlm_head"),
    *_head("mmm_image_head", "mmm_image_head"),
    *_head("mmm_text_head", "mmm_text_head"),
    Row("match_head.0.*", "itm_head.pooler.dense.*"),
    Row("match_head.2.*", "itm_head.seq_relationship.*"),
]
UNUSED = tuple(f"{tower}.pooler." for tower in (IMAGE, TEXT, FUSION))
HEADS = ("mim_head", "mlm_head", "mmm_image_head", "mmm_text_head")


def from_transformers(state: State) -> State:
    """All but our own image tokenizer's weights (`codebook`)."""
    twice = {f"{head}.bias" for head in HEADS}  # the same tensor as the decoder's bias
    kept = {name: value for name, value in state.items() if not name.startswith((*UNUSED, "image_codebook.")) and name not in twice}
    return to_ours(kept, TRANSFORMERS)


def to_transformers(state: State) -> State:
    """Without the poolers that no loss needs."""
    found = to_theirs({name: value for name, value in state.items() if not name.startswith("codebook.")}, TRANSFORMERS)
    return found | {f"{head}.bias": found[f"{head}.decoder.bias"] for head in HEADS}


def their_class(_: Any) -> type[FlavaForPreTraining]:
    return FlavaForPreTraining


def tokenizer(name: str | None) -> HubTokenizer:
    """BERT's, which comes with the weights."""
    return HubTokenizer(str(name))


def config_from_transformers(config: Any) -> FLAVAConfig:
    """From a `transformers.FlavaConfig`, which then builds no image codebook: it is not ours. Raises ValueError for towers without the
    biases, the class token or the mask token of the released ones."""
    image, text, fusion = config.image_config, config.text_config, config.multimodal_config
    options = [image.qkv_bias, text.qkv_bias, fusion.qkv_bias, image.mask_token, fusion.use_cls_token]
    if not all(options):
        raise ValueError(
            "only a FLAVA with biases of queries, keys and values, a mask token, and a class token in its fusion is built here"
        )
    config.init_codebook = False
    side = image.image_size // image.patch_size
    network = NetworkConfig(image_size=8 * side, patch=8, width=32, multiplier=(1,), blocks=1, latent=32, middle=False)  # stands in
    return FLAVAConfig(
        vision=VisionConfig(**tower_from_transformers(image), image_size=image.image_size, patch_size=image.patch_size),
        text=TransformerConfig(**tower_from_transformers(text)),
        fusion=TransformerConfig(**tower_from_transformers(fusion)),
        codebook=VQConfig(network=network, codes=image.vocab_size, embed_dim=8),
        embed_dim=config.projection_dim,
        context=text.max_position_embeddings,
        vocab_size=text.vocab_size,
    )
