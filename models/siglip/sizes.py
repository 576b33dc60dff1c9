"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.siglip.llip import LlipConfig
from models.siglip.model import SigLIPConfig

SIZES = (
    Size("small", SigLIPConfig.small()),
    Size("paper: ViT-B/16", SigLIPConfig.paper(), 203_155_970, "arXiv 2303.15343; Google's released weights"),
    Size("small", LlipConfig.small()),
    Size("paper: ViT-B/32, 64 tokens", LlipConfig.paper(), derived=201_836_802, source="built by the authors' code"),
    Size("ViT-B/16, 32 tokens", LlipConfig.vit_b16(), derived=174_965_250, source="built by the authors' code"),
)
