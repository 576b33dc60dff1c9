"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.siglip.model import SigLIPConfig

SIZES = (
    Size("small", SigLIPConfig.small()),
    Size("paper: ViT-B/16", SigLIPConfig.paper(), 203_155_970, "arXiv 2303.15343; Google's released weights"),
)
