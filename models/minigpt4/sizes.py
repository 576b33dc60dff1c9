"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.contract import Size
from models.minigpt4.model import MiniGPT4Config
from models.shared.backbones import LanguageConfig

SIZES = tuple(
    Size(
        f"paper, trained, Vicuna-{size}",
        replace(MiniGPT4Config.paper(), timm_name="", language=LanguageConfig(width=width, depth=1, heads=32, hidden=64)),
        source=f"arithmetic: one linear layer from the Q-Former's 768 to Vicuna's {width:,}",
        counted=("to_language",),
        derived=trained,
    )
    for size, width, trained in (("13B", 5120, 3_937_280), ("7B", 4096, 3_149_824))
)
