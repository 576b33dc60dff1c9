"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.flamingo.model import FlamingoConfig
from models.flamingo.vcgpt import VCGPTConfig
from models.flamingo.visualgpt import VisualGPTConfig

TABLE = "arXiv 2204.14198, table 1"
PAPER = FlamingoConfig.paper()

SIZES = (
    Size("Flamingo-3B, image encoder", PAPER, 435_000_000, TABLE, ("visual",), 0.01),
    Size(  # table 1's 194 M are more than the layers of its appendix A.1.1
        "Flamingo-3B, resampler",
        PAPER,
        None,
        "6 x (4 x 1536^2 + 2 x 1536 x 6144) + 3072 x 1536",
        ("resampler",),
        0.002,
        derived=174_587_904,
    ),
    Size(  # the released decoder has 216.5 M; 21.3 M of them are never used
        "VisualGPT, in GPT-2's layers",
        VisualGPTConfig.paper(),
        None,
        "12 x (4 x (768^2 + 768) + 3 x (2 x 768^2 + 768))",
        ("blocks",),
        derived=70_843_392,
    ),
    Size("VC-GPT, head of the fusion", VCGPTConfig.paper(), None, "768 x 50,257", ("fuse_head",), derived=38_597_376),
)
