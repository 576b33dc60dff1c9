"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.clip.cloob import CLOOBConfig
from models.clip.model import CLIPConfig
from models.contract import Size

RELEASED = "OpenAI's released weights"

SIZES = (
    Size("small", CLIPConfig.small()),
    Size("paper: ViT-B/32", CLIPConfig.paper(), 151_277_313, RELEASED),
    Size("ViT-B/16", CLIPConfig.vit_b16(), 149_620_737, RELEASED),
    Size("ViT-L/14", CLIPConfig.vit_l14(), 427_616_513, RELEASED),
    Size("paper: ViT-B/32", CLOOBConfig.paper(), derived=151_277_313, source="CLIP's: retrieval and InfoLOOB have no parameters"),
)
