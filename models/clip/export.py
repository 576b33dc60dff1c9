"""CLIP as folders of transformers and open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip import create_model_and_transforms
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast
from transformers import CLIPConfig as TheirConfig

from data.files import write_text
from models.clip.convert import to_open_clip, to_transformers
from models.clip.model import CLIP
from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers, their_tower
from models.shared.text import OpenCLIPTokenizer

# transformers' CLIP takes an end token of this id for a mistake in old configurations, and reads a text at its largest id instead.
OLD_END = 2


def refuse_transformers(model: Any) -> None:
    _refuse_what_is_not_clips(model, "transformers")
    fast_tokenizer(model.tokenizer, model.config.context)


def transformers(model: CLIP, folder: Path) -> list[Check]:
    """For `CLIPModel.from_pretrained(folder)`, with the tokenizer and the image processor."""
    refuse_transformers(model)
    tokenizer, state = fast_tokenizer(model.tokenizer, model.config.context), dict(model.state_dict())
    end = model.tokenizer.end
    if end == OLD_END:
        last = model.config.vocab_size - 1
        tokenizer = _exchanged(tokenizer, end, last)
        state["text.tokens.weight"] = state["text.tokens.weight"].clone()
        state["text.tokens.weight"][[end, last]] = state["text.tokens.weight"][[last, end]]
        end = last
    vision, text = model.config.vision, model.config.text
    config = TheirConfig(
        vision_config=their_tower(vision) | {"image_size": vision.image_size, "patch_size": vision.patch_size},
        text_config=their_tower(text)
        | {"vocab_size": model.config.vocab_size, "max_position_embeddings": model.config.context}
        | {"bos_token_id": model.tokenizer.start, "eos_token_id": end, "pad_token_id": model.tokenizer.pad},
        projection_dim=model.config.embed_dim,
    )
    theirs = CLIPModel(config)
    theirs.load_state_dict(to_transformers(state))
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = vision.image_size
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=size, image_mean=list(model.config.mean), image_std=list(model.config.std)
    ).save_pretrained(folder)
    return _checked_in_transformers(model, folder)


def _exchanged(tokenizer: PreTrainedTokenizerFast, one: int, other: int) -> PreTrainedTokenizerFast:
    """Two tokens exchange their ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    places = {one: other, other: one}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: places.get(number, number) for token, number in vocabulary.items()}
    for added in content["added_tokens"]:
        added["id"] = places.get(added["id"], added["id"])
    for special in content["post_processor"]["special_tokens"].values():
        special["ids"] = [places.get(number, number) for number in special["ids"]]
    options = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "model_max_length", "padding_side")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **options)


def _checked_in_transformers(model: CLIP, folder: Path) -> list[Check]:
    theirs: Any = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    images = pictures(model.config.vision.image_size)
    tokens = tokenizer(list(TEXTS), padding="max_length", truncation=True, return_tensors="pt")
    pixels = processor(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        out = theirs(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    return [
        Check.of("image features", model.encode_image(images), out.image_embeds),
        Check.of("text features", model.encode_text(TEXTS), out.text_embeds),
    ]


def _refuse_what_is_not_clips(model: Any, library: str) -> None:
    if not isinstance(model, CLIP):
        raise Unsupported(f"{library} has no {type(model).__name__} with these layers")
    refuse_other_towers(model.config.vision, library)
    if type(model) is not CLIP and model.state_dict().keys() != CLIP(model.config, model.tokenizer).state_dict().keys():
        raise Unsupported(f"{library} has no {type(model).__name__}: only CLIP itself")
    if not model.config.image_head or model.config.vision.pool != "token" or not model.config.vision.pre_norm:
        raise Unsupported(f"{library}'s CLIP has a class token, a norm before its blocks and an image head; this tower is another one")


def refuse_open_clip(model: Any) -> None:
    _refuse_what_is_not_clips(model, "open_clip")
    vision, text = model.config.vision, model.config.text
    if vision.activation not in ("gelu", "quick_gelu") or text.activation != vision.activation:
        raise Unsupported(f"open_clip's CLIP has GELU or quick GELU in both towers; these have {vision.activation} and {text.activation}")
    if vision.norm_eps != 1e-5 or text.norm_eps != 1e-5:
        raise Unsupported("open_clip's norms have an eps of 1e-5")


def open_clip(model: CLIP, folder: Path) -> list[Check]:
    """open_clip_config.json and open_clip_model.safetensors, for `open_clip.create_model("local-dir:FOLDER")`."""
    refuse_open_clip(model)
    vision, text = model.config.vision, model.config.text
    if not isinstance(model.tokenizer, OpenCLIPTokenizer):
        print("open_clip loads tokenizers of the hub only: encode texts with transformers' AutoTokenizer.from_pretrained of this folder")
    own = not isinstance(model.tokenizer, OpenCLIPTokenizer)
    cfg = {
        "embed_dim": model.config.embed_dim,
        "quick_gelu": vision.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.depth,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": vision.mlp_ratio,
        },
        "text_cfg": {
            "context_length": model.config.context,
            "vocab_size": model.config.vocab_size,
            "layers": text.depth,
            "width": text.width,
            "heads": text.heads,
            "mlp_ratio": text.mlp_ratio,
        }
        | ({"pool_type": "eos", "eos_id": model.tokenizer.end} if own else {}),
    }
    preprocess = {"mean": list(model.config.mean), "std": list(model.config.std), "interpolation": "bicubic", "resize_mode": "shortest"}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "open_clip_config.json", json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}, indent=1))
    state = {name: tensor.detach().clone().contiguous() for name, tensor in to_open_clip(model.state_dict()).items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    if own:
        fast_tokenizer(model.tokenizer, model.config.context).save_pretrained(folder)
    theirs, _, transform = create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    images = pictures(vision.image_size)
    ids = model.collate.texts(TEXTS)
    ids = torch.nn.functional.pad(ids, (0, model.config.context - ids.shape[1]), value=model.tokenizer.pad)
    with torch.no_grad():
        image = theirs.encode_image(torch.stack([transform(Image.fromarray(each)) for each in images]), normalize=True)
        text_features = theirs.encode_text(ids, normalize=True)
    return [
        Check.of("image features", model.encode_image(images), image),
        Check.of("text features", model.encode_text(TEXTS), text_features),
    ]
