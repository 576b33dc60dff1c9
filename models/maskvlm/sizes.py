"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.maskvlm.model import MaskVLMConfig

SIZES = (Size("paper", MaskVLMConfig.paper(), None, "the paper gives no count"),)
