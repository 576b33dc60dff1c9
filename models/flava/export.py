"""FLAVA as a folder of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, FlavaConfig, FlavaForPreTraining, FlavaImageProcessor, PreTrainedTokenizerFast

from models.flava.convert import UNUSED, to_transformers
from models.flava.model import FLAVA
from models.shared.convert import State
from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers, their_tower

UNLIKELY = -100.0  # score of a word that only stands for masked ones


def refuse_transformers(model: Any) -> None:
    vision = model.config.vision
    refuse_other_towers(vision, "transformers")
    if vision.pool != "token" or vision.pre_norm:
        raise Unsupported("transformers' FLAVA has a class token and no norm before its blocks; this tower is another one")
    _with_a_mask(model)


def transformers(model: FLAVA, folder: Path) -> list[Check]:
    """For `FlavaForPreTraining.from_pretrained(folder)`, with the tokenizer and the image processor."""
    refuse_transformers(model)
    vision, text, context = model.config.vision, model.config.text, model.config.context
    rows = len(model.text.tokens.weight)
    config = FlavaConfig(
        image_config=their_tower(vision)
        | {"image_size": vision.image_size, "patch_size": vision.patch_size, "mask_token": True}
        | {"vocab_size": model.mim_head[-1].out_features},
        text_config=their_tower(text) | {"vocab_size": rows, "max_position_embeddings": context, "pad_token_id": model.tokenizer.pad},
        multimodal_config=their_tower(model.config.fusion),
        projection_dim=model.config.embed_dim,
        hidden_size=model.config.fusion.width,
        init_codebook=False,
    )
    for part in (config.image_config, config.text_config, config.multimodal_config):
        part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.0
    theirs: Any = FlavaForPreTraining(config)
    own = _with_scores_for_masks({name: value for name, value in model.state_dict().items() if not name.startswith("answer_head.")}, rows)
    missing, unexpected = theirs.load_state_dict(to_transformers(own), strict=False)
    if unexpected or not all(name.startswith(UNUSED) for name in missing):
        raise ValueError(f"transformers' FLAVA has other tensors: {', '.join([*missing, *unexpected][:5])}")
    left = ["the image tokenizer"] + ["the head over answers"] * bool(model.config.answers)
    print(f"transformers' FLAVA has no place for {' and '.join(left)}: left out")
    theirs.save_pretrained(folder)
    _with_a_mask(model).save_pretrained(folder)
    size = {"height": vision.image_size, "width": vision.image_size}
    normal = {"image_mean": list(model.config.mean), "image_std": list(model.config.std)}
    FlavaImageProcessor(size=size, crop_size=size, resample=3, **normal).save_pretrained(folder)

    theirs = FlavaForPreTraining.from_pretrained(folder, trust_remote_code=False).eval()
    images = pictures(vision.image_size, len(TEXTS))
    pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)(images=images, return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(
        list(TEXTS), padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False
    )
    with torch.no_grad():
        out = theirs.flava(**tokens, pixel_values=pixels)
        matched = theirs.itm_head(out.multimodal_embeddings)
        image = theirs.flava.image_projection(out.image_embeddings[:, 0])
        read = theirs.flava.text_projection(out.text_embeddings[:, 0])
    return [
        Check.of("image features", model.encode_image(images), torch.nn.functional.normalize(image, dim=-1)),
        Check.of("text features", model.encode_text(TEXTS), torch.nn.functional.normalize(read, dim=-1)),
        Check.of("matching scores", model.score(images, TEXTS), matched[:, 1] - matched[:, 0]),
    ]


def _with_a_mask(model: FLAVA) -> PreTrainedTokenizerFast:
    """The tokenizer with the token of the row that stands for masked words."""
    tokenizer = copy.deepcopy(fast_tokenizer(model.tokenizer, model.config.context))
    if model.tokenizer.mask is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        if tokenizer.mask_token_id != model.mask_id:
            raise Unsupported(f"the tokenizer {model.tokenizer.name!r} has no room for a mask token at {model.mask_id}")
    return tokenizer


def _with_scores_for_masks(state: State, rows: int) -> State:
    """A tokenizer without a mask token got one more row of embeddings, which is never predicted; theirs scores every row."""
    found = dict(state)
    for head in ("mlm_head", "mmm_text_head"):
        weight, bias = state[f"{head}.3.weight"], state[f"{head}.3.bias"]
        found[f"{head}.3.weight"] = _padded(weight, rows, 0.0)
        found[f"{head}.3.bias"] = _padded(bias, rows, UNLIKELY)
    return found


def _padded(values: Tensor, rows: int, value: float) -> Tensor:
    return torch.cat([values, values.new_full((rows - len(values), *values.shape[1:]), value)])
