"""BLIP-2 as folders of transformers: the model that captions, and under retrieval/ the one that compares."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

from models.blip2.convert import to_conditional_generation, to_retrieval
from models.blip2.model import BLIP2
from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers, their_tower
from models.shared.prefix import SOFT, embed
from models.shared.text import BPETokenizer


def refuse_transformers(model: Any) -> None:
    vision = model.config.vision
    refuse_other_towers(vision, "transformers")
    if model.config.timm_name:
        raise Unsupported(f"transformers' BLIP-2 has a plain vision transformer, and this one has timm's {model.config.timm_name}")
    if vision.pool != "token" or vision.pre_norm:
        raise Unsupported("transformers' BLIP-2 has a class token and no norm before its blocks; this tower is another one")
    if "caption" not in model.without:
        _with_a_token_for_images(model)
    if "score" not in model.without and model.tokenizer.start is None:
        raise Unsupported(f"transformers' BLIP-2 begins texts with a start token, and the tokenizer {model.tokenizer.name!r} has none")


def transformers(model: BLIP2, folder: Path) -> list[Check]:
    """For `Blip2ForConditionalGeneration.from_pretrained(folder)` and `Blip2ForImageTextRetrieval.from_pretrained(folder / "retrieval")`,
    each with the tokenizer and the image processor."""
    refuse_transformers(model)
    writers = {"caption": (_captions, folder), "score": (_compares, folder / "retrieval")}
    return [check for name, (writer, place) in writers.items() if name not in model.without for check in writer(model, place)]


def _captions(model: BLIP2, folder: Path) -> list[Check]:
    tokenizer, image = _with_a_token_for_images(model)
    theirs: Any = Blip2ForConditionalGeneration(_config(model, image))
    theirs.load_state_dict(to_conditional_generation(model.state_dict()))
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _processor(model).save_pretrained(folder)

    theirs = Blip2ForConditionalGeneration.from_pretrained(folder, trust_remote_code=False).eval()
    images = pictures(model.config.vision.image_size)
    pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)(images=images, return_tensors="pt").pixel_values
    text = [*model.sequences.begin, *model.tokenizer.encode(TEXTS[0])]
    row = torch.tensor([[*[image] * model.config.queries, *text]] * len(images))
    soft, reads = model._prefixes(images), {"input_ids": row, "pixel_values": pixels, "attention_mask": torch.ones_like(row)}
    ids = torch.cat([torch.full((len(images), model.config.queries), SOFT), row[:, model.config.queries :]], dim=1)
    if model.language.config.is_encoder_decoder:  # the same text on the decoder's side
        reads["decoder_input_ids"] = row[:, model.config.queries :]
    with torch.no_grad():
        mine = model.language(
            inputs_embeds=embed(model.language, ids, soft),
            attention_mask=torch.ones_like(ids),
            **{name: value for name, value in reads.items() if name == "decoder_input_ids"},
        )
        return [Check.of("logits of a caption", mine.logits, theirs(**reads).logits)]


def _compares(model: BLIP2, folder: Path) -> list[Check]:
    theirs: Any = Blip2ForImageTextRetrieval(_config(model, None))
    theirs.load_state_dict(to_retrieval(model.state_dict()))
    theirs.save_pretrained(folder)
    fast_tokenizer(model.tokenizer, model.config.context).save_pretrained(folder)
    _processor(model).save_pretrained(folder)

    theirs = Blip2ForImageTextRetrieval.from_pretrained(folder, trust_remote_code=False).eval()
    images = pictures(model.config.vision.image_size, len(TEXTS))
    pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)(images=images, return_tensors="pt").pixel_values
    ids = model.pairs.texts(TEXTS)
    reads = {"input_ids": ids, "attention_mask": model.pairs.real(ids).long(), "pixel_values": pixels}
    with torch.no_grad():
        matched = theirs(**reads, use_image_text_matching_head=True).logits_per_image
        similarity = theirs(**reads, use_image_text_matching_head=False).logits_per_image
    mine = torch.einsum("nqd,td->ntq", model.encode_image(images), model.encode_text(TEXTS)).amax(dim=-1)
    return [
        Check.of("matching scores", model.score(images, TEXTS), matched[:, 1] - matched[:, 0]),
        Check.of("similarities", mine, similarity),
    ]


def _config(model: BLIP2, image: int | None) -> Blip2Config:
    """With the id of the token that stands for an image, or for the model that compares."""
    vision, qformer = model.config.vision, model.config.qformer
    config = Blip2Config(
        vision_config=their_tower(vision) | {"image_size": vision.image_size, "patch_size": vision.patch_size},
        qformer_config=their_tower(qformer)
        | {"vocab_size": model.config.vocab_size, "max_position_embeddings": model.config.context}
        | {"cross_attention_frequency": model.config.every, "encoder_hidden_size": vision.width, "use_qformer_text_input": image is None},
        text_config=copy.deepcopy(model.language.config).to_dict(),
        num_query_tokens=model.config.queries,
        image_text_hidden_size=model.config.embed_dim,
        image_token_index=image,
    )
    config.text_config.update({"bos_token_id": model.tokenizer.start, "eos_token_id": model.tokenizer.end})
    return config


def _with_a_token_for_images(model: BLIP2) -> tuple[PreTrainedTokenizerFast, int]:
    """The tokenizer and the id that marks an image's places: that of padding, which no text has. Texts are padded by their end instead;
    the attention mask tells the two apart."""
    tokenizer, pad = model.tokenizer, model.tokenizer.pad
    if pad in (tokenizer.start, tokenizer.end):
        raise Unsupported(f"transformers marks the places of an image by a token of its own, and the tokenizer {tokenizer.name!r} has none")
    fast = copy.deepcopy(fast_tokenizer(tokenizer, model.config.context))
    if isinstance(tokenizer, BPETokenizer) and not model.sequences.begin:
        fast.backend_tokenizer.post_processor = None  # captions begin right after the image
    fast.pad_token = fast.convert_ids_to_tokens(tokenizer.end)
    return fast, pad


def _processor(model: BLIP2) -> BlipImageProcessor:
    size = {"height": model.config.vision.image_size, "width": model.config.vision.image_size}
    return BlipImageProcessor(size=size, image_mean=list(model.config.mean), image_std=list(model.config.std))
