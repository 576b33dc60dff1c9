"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.contract import Size
from models.magic.model import MAGICConfig

SIZES = (Size("paper: ViT-B/32, GPT-2", MAGICConfig.paper(), 275_717_121, "151,277,313 and 124,439,808 in the released weights"),)
