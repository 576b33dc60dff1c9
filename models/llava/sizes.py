"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.contract import Size
from models.llava.model import LLaVAConfig
from models.shared.backbones import LanguageConfig

SIZES = tuple(
    Size(
        f"{version}, trained first, Vicuna-{size}",
        replace(
            LLaVAConfig.paper(), timm_name="", bridge=layers, language=LanguageConfig(width=width, depth=1, heads=width // 128, hidden=64)
        ),
        source=f"arithmetic: {'two linear layers' if layers == 2 else 'one linear layer'} from CLIP's 1,024 to Vicuna's {width:,}",
        counted=("to_language",),
        derived=trained,
    )
    for version, layers, size, width, trained in (
        ("1.5", 2, "7B", 4096, 20_979_712),
        ("1.5", 2, "13B", 5120, 31_467_520),
        ("1", 1, "7B", 4096, 4_198_400),
        ("1", 1, "13B", 5120, 5_248_000),
    )
)
