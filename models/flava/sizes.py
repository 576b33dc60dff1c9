"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.flava.model import FLAVAConfig

SIZES = (
    Size(
        "paper",
        FLAVAConfig.paper(),
        source="transformers' FlavaModel, three poolers that nothing uses and 512 positions included",
        counted=("visual", "text", "fusion", "image_projection", "text_projection"),
        rounded=0.01,
        derived=241_356_289,
    ),
)
