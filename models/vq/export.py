"""The image tokenizer as a folder of transformers: Chameleon's, which has no decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ChameleonImageProcessor, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from models.shared.export import Check, Unsupported, pictures
from models.shared.images import HALF, normalise
from models.vq.convert import to_transformers
from models.vq.model import VQ


def refuse_transformers(model: Any) -> None:
    config, network = model.config, model.config.network
    if config.quantiser == "fsq" or network.patch != 1 or network.norm != "group" or not network.middle or not network.attention:
        raise Unsupported(
            "transformers' image tokenizer has a codebook, group norms and attention, and folds no pixels; this one (as presets of the "
            "size tiny) has others: --model.quantiser gradient and the network of small can be written"
        )


def transformers(model: VQ, folder: Path) -> list[Check]:
    """For `ChameleonVQVAE.from_pretrained(folder)` of transformers.models.chameleon.modeling_chameleon, with the image processor."""
    refuse_transformers(model)
    config, network = model.config, model.config.network
    theirs: Any = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=config.embed_dim,
            num_embeddings=config.codes,
            latent_channels=network.latent,
            resolution=network.image_size,
            base_channels=network.width,
            channel_multiplier=list(network.multiplier),
            num_res_blocks=network.blocks,
        )
    )
    theirs.load_state_dict(to_transformers(model.state_dict(), network.blocks))
    print("transformers' image tokenizer encodes only: the decoder is left out")
    theirs.save_pretrained(folder)
    size = {"shortest_edge": network.image_size}
    crop = {"height": network.image_size, "width": network.image_size}
    processor = ChameleonImageProcessor(size=size, crop_size=crop, rescale_factor=1 / 255, image_mean=list(HALF), image_std=list(HALF))
    processor.save_pretrained(folder)

    theirs = ChameleonVQVAE.from_pretrained(folder, trust_remote_code=False).eval()
    images = pictures(network.image_size)
    pixels = ChameleonImageProcessor.from_pretrained(folder, trust_remote_code=False)(images=images, return_tensors="pt").pixel_values
    with torch.no_grad():
        out = theirs.encode(pixels)
        latents = model.encoder(normalise(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), HALF, HALF))
    return [
        Check.of("latents over their largest", latents / latents.abs().max(), out.last_hidden_state / latents.abs().max()),
        Check.of("codes", model.tokens(images).double(), out.image_tokens.view(len(images), -1).double()),
    ]
