"""`python -m recipes.tools.params` (= `make params`): our parameter counts against the papers' and the released models'.

Counted on the meta device: no memory is taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from open_clip import get_model_config
from rich.console import Console
from rich.table import Table

import models
from models.asif import ASIFConfig
from models.blip2 import BLIP2Config
from models.clip import CLIPConfig
from models.cm3leon import CM3leonConfig
from models.coca import CoCaConfig
from models.coca.convert import config_from_open_clip as coca_from_open_clip
from models.flava import FLAVAConfig
from models.frozen import FrozenConfig
from models.magic import MAGICConfig
from models.maskvlm import MaskVLMConfig
from models.minigpt4 import MiniGPT4Config
from models.shared.backbones import LanguageConfig
from models.shared.text import OpenCLIPTokenizer
from models.siglip import SigLIPConfig


@dataclass(frozen=True)
class Variant:
    model: str
    name: str
    config: Any
    published: int | None
    source: str
    counted: tuple[str, ...] = ()  # the modules that the published figure counts; () for all
    rounded: float = 0.0  # share by which the figure may differ, where a paper rounds it

    def count(self) -> int:
        """Parameters of what the published figure counts."""
        model_class, _ = models.classes(self.model)
        with torch.device("meta"):
            model = model_class(self.config, OpenCLIPTokenizer())
        parts = [model.get_submodule(name) for name in self.counted] or [model]
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    def agrees(self) -> bool:
        return self.published is None or abs(self.count() - self.published) <= self.rounded * self.published


LEARNED = 436  # tokens, of the embedded data set's captions
RELEASED_CLIP = "OpenAI's released weights"
CM3LEON_TABLE = "the layers of arXiv 2309.02591, table 2, built as transformers' OPT; the paper says {}"
COCA_TABLE = "arXiv 2205.01917, table 1: encoder and decoder, without what pools between them"
VARIANTS = [
    Variant("clip", "tiny", replace(CLIPConfig.tiny(), vocab_size=LEARNED), None, ""),
    Variant("clip", "small", replace(CLIPConfig.small(), vocab_size=LEARNED), None, ""),
    Variant("clip", "paper: ViT-B/32", CLIPConfig.paper(), 151_277_313, RELEASED_CLIP),
    Variant("clip", "ViT-B/16", CLIPConfig.vit_b16(), 149_620_737, RELEASED_CLIP),
    Variant("clip", "ViT-L/14", CLIPConfig.vit_l14(), 427_616_513, RELEASED_CLIP),
    Variant("siglip", "tiny", replace(SigLIPConfig.tiny(), vocab_size=LEARNED), None, ""),
    Variant("siglip", "small", replace(SigLIPConfig.small(), vocab_size=LEARNED), None, ""),
    Variant("siglip", "paper: ViT-B/16", SigLIPConfig.paper(), 203_155_970, "arXiv 2303.15343; Google's released weights"),
    Variant("coca", "tiny", replace(CoCaConfig.tiny(), vocab_size=LEARNED), None, ""),
    Variant("coca", "small", replace(CoCaConfig.small(), vocab_size=LEARNED), None, ""),
    Variant("coca", "Base", CoCaConfig.base(), 383_000_000, COCA_TABLE, ("visual", "text"), 0.001),
    Variant("coca", "Large", CoCaConfig.large(), 787_000_000, COCA_TABLE, ("visual", "text"), 0.001),
    Variant("coca", "paper: 2.1 B", CoCaConfig.paper(), None, "the layer sizes of table 1, which says 2.1 B"),
    Variant(
        "coca", "open_clip ViT-B/32", coca_from_open_clip(get_model_config("coca_ViT-B-32")), 253_560_065, "open_clip's released weights"
    ),
    Variant(
        "coca", "open_clip ViT-L/14", coca_from_open_clip(get_model_config("coca_ViT-L-14")), 638_450_177, "open_clip's released weights"
    ),
    Variant(
        "cm3leon",
        "tiny",
        replace(CM3leonConfig.tiny(), vocab_size=LEARNED, retriever=replace(CLIPConfig.tiny(), vocab_size=LEARNED)),
        None,
        "",
    ),
    Variant(
        "cm3leon",
        "small",
        replace(CM3leonConfig.small(), vocab_size=LEARNED, retriever=replace(CLIPConfig.small(), vocab_size=LEARNED)),
        None,
        "",
    ),
    Variant("cm3leon", "350 M", CM3leonConfig.m350(), 372_246_528, CM3LEON_TABLE.format("350 M"), ("decoder",), 0.001),
    Variant("cm3leon", "760 M", CM3leonConfig.m760(), 784_862_208, CM3LEON_TABLE.format("760 M"), ("decoder",), 0.001),
    Variant(
        "flava",
        "paper",
        FLAVAConfig.paper(),
        241_356_289,
        "transformers' FlavaModel, three poolers that nothing uses and 512 positions included",
        ("visual", "text", "fusion", "image_projection", "text_projection"),
        0.01,
    ),
    Variant("maskvlm", "paper", MaskVLMConfig.paper(), None, "the paper gives no count"),
    Variant("magic", "paper: ViT-B/32, GPT-2", MAGICConfig.paper(), 275_717_121, "151,277,313 and 124,439,808 in the released weights"),
    Variant("frozen", "paper, trained", FrozenConfig.paper(), 40_000_000, "arXiv 2301.12597, table 2", ("visual", "to_prefix"), 0.01),
    Variant(
        "blip2",
        "paper, stage 1",
        replace(BLIP2Config.paper(), language=LanguageConfig()),
        188_000_000,
        "arXiv 2301.12597, section 3.1",
        ("qformer", "norm_image", "image_projection", "text_projection", "match_head", "word_head"),
        0.01,
    ),
    *(
        Variant(
            "minigpt4",
            f"paper, trained, Vicuna-{size}",
            replace(MiniGPT4Config.paper(), timm_name="", language=LanguageConfig(width=width, depth=1, heads=32, hidden=64)),
            trained,
            f"arXiv 2304.10592: one linear layer from the Q-Former's 768 to Vicuna's {width:,}",
            ("to_language",),
        )
        for size, width, trained in (("13B", 5120, 3_937_280), ("7B", 4096, 3_149_824))
    ),
    Variant(
        "asif",
        "paper, image encoder",
        replace(ASIFConfig.paper(), language=LanguageConfig(), sentences=False),
        85_798_656,
        "timm's vit_base_patch16_224 without its classifier; nothing is trained",
        ("visual",),
    ),
    Variant("cm3leon", "paper: 7 B", CM3leonConfig.paper(), 6_723_477_504, CM3LEON_TABLE.format("7 B"), ("decoder",), 0.001),
]


def main() -> int:
    """Print the table. Returns 1 when a count differs from the published one."""
    table = Table("model", "variant", "ours", "published", "source")
    for column in (2, 3):
        table.columns[column].justify = "right"
    equal = True
    for variant in VARIANTS:
        equal &= variant.agrees()
        table.add_row(
            variant.model, variant.name, f"{variant.count():,}", f"{variant.published:,}" if variant.published else "", variant.source
        )
    Console().print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
