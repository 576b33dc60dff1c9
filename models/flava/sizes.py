"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.flava.model import FLAVAConfig

SIZES = (
    Size(
        "paper",
        FLAVAConfig.paper(),
        241_356_289,
        "transformers' FlavaModel, three poolers that nothing uses and 512 positions included",
        ("visual", "text", "fusion", "image_projection", "text_projection"),
        0.01,
    ),
)
