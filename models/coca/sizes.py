"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from open_clip import get_model_config

from models.coca.convert import config_from_open_clip
from models.coca.model import CoCaConfig
from models.coca.virtex import VirTexConfig
from models.contract import Size

TABLE = "arXiv 2205.01917, table 1: encoder and decoder, without what pools between them"
RELEASED = "open_clip's released weights"
VIRTEX = "the authors' code, rounded"

SIZES = (
    Size("small", CoCaConfig.small()),
    Size("Base", CoCaConfig.base(), 383_000_000, TABLE, ("visual", "text"), 0.001),
    Size("Large", CoCaConfig.large(), 787_000_000, TABLE, ("visual", "text"), 0.001),
    Size("paper: 2.1 B", CoCaConfig.paper(), None, "the layer sizes of table 1, which says 2.1 B"),
    Size("open_clip ViT-B/32", config_from_open_clip(get_model_config("coca_ViT-B-32")), 253_560_065, RELEASED),
    Size("open_clip ViT-L/14", config_from_open_clip(get_model_config("coca_ViT-L-14")), 638_450_177, RELEASED),
    Size("small", VirTexConfig.small()),
    Size("paper: head of 2,048", VirTexConfig.paper(), derived=159_000_000, source=VIRTEX, counted=("text",), rounded=0.001),
    Size("head of 1,024", VirTexConfig.h1024(), derived=46_000_000, source=VIRTEX, counted=("text",), rounded=0.001),
    Size("paper: ResNet-50", VirTexConfig.paper(), derived=23_508_032, source="timm's ResNet-50 without its head", counted=("visual",)),
)
