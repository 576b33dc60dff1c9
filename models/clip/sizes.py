"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from models.clip.align import ALIGNConfig
from models.clip.cloob import CLOOBConfig
from models.clip.declip import DeCLIPConfig
from models.clip.model import CLIPConfig
from models.clip.rocket import CLIPRocketConfig
from models.clip.slip import SLIPConfig
from models.contract import Size

RELEASED = "OpenAI's released weights"
SLIPS = "the authors' code, with its head for training"
TOWERS = ("visual", "text", "visual_projection", "text_projection")

SIZES = (
    Size("small", CLIPConfig.small()),
    Size("paper: ViT-B/32", CLIPConfig.paper(), 151_277_313, RELEASED),
    Size("ViT-B/16", CLIPConfig.vit_b16(), 149_620_737, RELEASED),
    Size("ViT-L/14", CLIPConfig.vit_l14(), 427_616_513, RELEASED),
    Size("paper: ViT-B/32", CLOOBConfig.paper(), derived=151_277_313, source="CLIP's: retrieval and InfoLOOB have no parameters"),
    Size("small", SLIPConfig.small()),
    Size("paper: ViT-B/16", SLIPConfig.paper(), derived=170_616_321, source=SLIPS),
    Size(
        "ViT-B/16, towers",
        SLIPConfig.paper(),
        derived=149_619_968,
        source="CLIP's ViT-B/16 without its first norm",
        counted=TOWERS,
    ),
    Size("ViT-S/16", SLIPConfig.vit_s16(), derived=104_713_857, source=SLIPS),
    Size("ViT-L/16", SLIPConfig.vit_l16(), derived=389_298_945, source=SLIPS),
    Size("small", CLIPRocketConfig.small()),
    Size("paper: ViT-B/16", CLIPRocketConfig.paper(), derived=190_236_418, source="SLIP's towers, embeddings of 256, two projectors"),
    Size("small", DeCLIPConfig.small()),
    Size(
        "paper: ViT-B/32",
        DeCLIPConfig.paper(),
        derived=180_305_921,
        source="CLIP's towers, SimSiam's heads, the word head and a mask",
    ),
    Size("small", ALIGNConfig.small()),
    Size("paper: EfficientNet-L2, BERT-large", ALIGNConfig.paper()),
    Size(
        "released: EfficientNet-B7, BERT-base",
        ALIGNConfig.released(),
        derived=172_117_841 - 590_592,
        source="transformers' AlignModel, without BERT's pooler, which it never reads",
    ),
)
