"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.blip2.model import BLIP2Config
from models.contract import Size
from models.shared.backbones import LanguageConfig

SIZES = (
    Size(
        "paper, stage 1",
        replace(BLIP2Config.paper(), language=LanguageConfig()),
        188_000_000,
        "arXiv 2301.12597, section 3.1",
        ("qformer", "norm_image", "image_projection", "text_projection", "match_head", "word_head"),
        0.01,
    ),
)
