"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.frozen.model import FrozenConfig

SIZES = (Size("paper, trained", FrozenConfig.paper(), 40_000_000, "arXiv 2301.12597, table 2", ("visual", "to_prefix"), 0.01),)
