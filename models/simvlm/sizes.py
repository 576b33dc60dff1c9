"""Configurations that `make params` counts. The paper publishes no counts."""

from __future__ import annotations

from models.contract import Size
from models.simvlm.model import SimVLMConfig

T5 = "transformers' T5 of these sizes with 32,000 tokens"
RESNET = "timm's {} without its last stage, and a linear layer"
LAYERS = ("transformer.tokens", "transformer.encoder", "transformer.encoder_norm", "transformer.decoder", "transformer.norm")

SIZES = (
    Size("small", SimVLMConfig.small()),
    Size("base, layers", SimVLMConfig.base(), derived=222_804_480, source=T5, counted=LAYERS),
    Size("large, layers", SimVLMConfig.large(), derived=737_536_000, source=T5, counted=LAYERS),
    Size("paper: huge, layers", SimVLMConfig.paper(), derived=1_509_173_760, source=T5, counted=LAYERS),
    Size("base, stage", SimVLMConfig.base(), derived=28_322_624, source=RESNET.format("ResNet-101"), counted=("stage",)),
    Size("large, stage", SimVLMConfig.large(), derived=44_228_672, source=RESNET.format("ResNet-152"), counted=("stage",)),
)
