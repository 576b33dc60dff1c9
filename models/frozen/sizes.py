"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.contract import Size
from models.frozen.clipcap import ClipCapConfig
from models.frozen.mapl import MAPLConfig
from models.frozen.model import FrozenConfig
from models.shared.backbones import LanguageConfig

GPT2 = LanguageConfig(width=768, depth=1, heads=12, hidden=64)  # its width: only the mappers are counted
GPTJ = LanguageConfig(width=4096, depth=1, heads=16, hidden=64)
CLIPCAP = replace(ClipCapConfig.paper(), language=GPT2)

SIZES = (
    Size("paper, trained", FrozenConfig.paper(), 40_000_000, "arXiv 2301.12597, table 2", ("visual", "to_prefix"), 0.01),
    Size("paper: transformer, k = 10", CLIPCAP, derived=41_745_408, source="the authors' code", counted=("to_prefix",)),
    Size(
        "paper: transformer, k = 40, from RN50x4's 640",
        replace(CLIPCAP, embed_dim=640, prefix=40, clip_length=40),
        derived=57_520_128,
        source="the authors' code",
        counted=("to_prefix",),
    ),
    Size("paper: MLP, k = 10", replace(CLIPCAP, mapper="mlp"), derived=31_468_800, source="the authors' code", counted=("to_prefix",)),
    Size(
        "paper: mapper",
        replace(MAPLConfig.paper(), language=GPTJ),
        derived=3_431_680,
        source="the authors' code; 3.4 M in the paper",
        counted=("to_prefix",),
    ),
)
