"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.asif.model import ASIFConfig
from models.contract import Size
from models.shared.backbones import LanguageConfig

SIZES = (
    Size(
        "paper, image encoder",
        replace(ASIFConfig.paper(), language=LanguageConfig(), sentences=False),
        source="timm's vit_base_patch16_224 without its classifier; nothing is trained",
        counted=("visual",),
        derived=85_798_656,
    ),
)
