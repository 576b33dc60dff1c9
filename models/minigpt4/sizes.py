"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.contract import Size
from models.minigpt4.model import MiniGPT4Config
from models.minigpt4.v2 import MiniGPTv2Config
from models.shared.backbones import LanguageConfig

MINIGPT4 = tuple(
    Size(
        f"paper, trained, Vicuna-{size}",
        replace(MiniGPT4Config.paper(), timm_name="", language=LanguageConfig(width=width, depth=1, heads=32, hidden=64)),
        source=f"arithmetic: one linear layer from the Q-Former's 768 to Vicuna's {width:,}",
        counted=("to_language",),
        derived=trained,
    )
    for size, width, trained in (("13B", 5120, 3_937_280), ("7B", 4096, 3_149_824))
)
SIZES = (
    *MINIGPT4,
    Size(
        "paper, trained: linear layer, LoRA",
        replace(MiniGPTv2Config.paper(), timm_name="", language=LanguageConfig(width=4096, depth=32, heads=32, hidden=64)),
        source="arithmetic: one linear layer from four patches' 5,632 to LLaMA-2's 4,096, and rank 64 on 32 layers' queries and values",
        counted=("to_language", "lora"),
        derived=23_072_768 + 33_554_432,
    ),
)
