"""FLAVA's weights from and to transformers (`FlavaForPreTraining`).

State dicts in, state dicts out. The towers' poolers there have no part in any loss, and the image codebook is DALL-E's: neither
has a counterpart here. A model with convolutions before its blocks (`tiny`) cannot be converted.
"""

from __future__ import annotations

from models.shared.convert import DROP_TWO, Row, State, to_ours, to_theirs


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
