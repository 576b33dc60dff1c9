"""SigLIP as a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, SiglipImageProcessor, SiglipModel
from transformers import SiglipConfig as TheirConfig

from models.shared.export import TEXTS, Check, Unsupported, fast_tokenizer, pictures, refuse_other_towers, their_tower
from models.shared.images import HALF
from models.siglip.convert import to_transformers
from models.siglip.model import SigLIP


def refuse_transformers(model: Any) -> None:
    refuse_other_towers(model.config.vision, "transformers")
    if type(model) is not SigLIP or model.config.vision.pool != "map":
        raise Unsupported(f"transformers has no {type(model).__name__} with this tower: SigLIP itself, with its attention pooling")
    fast_tokenizer(model.tokenizer, model.config.context)


def transformers(model: SigLIP, folder: Path) -> list[Check]:
    """For `SiglipModel.from_pretrained(folder)`, with the tokenizer and the image processor."""
    refuse_transformers(model)
    vision, text = model.config.vision, model.config.text
    config = TheirConfig(
        vision_config=their_tower(vision) | {"image_size": vision.image_size, "patch_size": vision.patch_size},
        text_config=their_tower(text)
        | {"vocab_size": model.config.vocab_size, "max_position_embeddings": model.config.context, "projection_size": vision.width}
        | {"bos_token_id": model.tokenizer.start, "eos_token_id": model.tokenizer.end, "pad_token_id": model.tokenizer.pad},
    )
    theirs: Any = SiglipModel(config)
    theirs.load_state_dict(to_transformers(model.state_dict()))
    theirs.save_pretrained(folder)
    tokenizer = fast_tokenizer(model.tokenizer, model.config.context)
    tokenizer.save_pretrained(folder)
    size = {"height": vision.image_size, "width": vision.image_size}
    SiglipImageProcessor(size=size, image_mean=list(HALF), image_std=list(HALF)).save_pretrained(folder)

    theirs = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    images = pictures(vision.image_size)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    pixels = processor(images=images, return_tensors="pt").pixel_values
    ids = model.collate.texts(TEXTS)  # SigLIP reads its padding: their texts must be padded to the context, as these are
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
    return [
        Check.of("image features", model.encode_image(images), out.image_embeds),
        Check.of("text features", model.encode_text(TEXTS), out.text_embeds),
    ]
