"""`python -m models.params` (= `make params`): our parameter counts against the papers' and the released models'.

Counted on the meta device: no memory is taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

import models
from models.clip import CLIPConfig
from models.siglip import SigLIPConfig
from models.text import OpenCLIPTokenizer


@dataclass(frozen=True)
class Variant:
    model: str
    name: str
    config: CLIPConfig | SigLIPConfig
    published: int | None
    source: str

    def count(self) -> int:
        model_class, _ = models.classes(self.model)
        with torch.device("meta"):
            model = model_class(self.config, OpenCLIPTokenizer())
        return sum(parameter.numel() for parameter in model.parameters())


LEARNED = 436  # tokens, of the embedded data set's captions
RELEASED_CLIP = "OpenAI's released weights"
VARIANTS = [
    Variant("clip", "tiny", replace(CLIPConfig.tiny(), vocab_size=LEARNED), None, ""),
    Variant("clip", "small", replace(CLIPConfig.small(), vocab_size=LEARNED), None, ""),
    Variant("clip", "paper: ViT-B/32", CLIPConfig.paper(), 151_277_313, RELEASED_CLIP),
    Variant("clip", "ViT-B/16", CLIPConfig.vit_b16(), 149_620_737, RELEASED_CLIP),
    Variant("clip", "ViT-L/14", CLIPConfig.vit_l14(), 427_616_513, RELEASED_CLIP),
    Variant("siglip", "tiny", replace(SigLIPConfig.tiny(), vocab_size=LEARNED), None, ""),
    Variant("siglip", "small", replace(SigLIPConfig.small(), vocab_size=LEARNED), None, ""),
    Variant("siglip", "paper: ViT-B/16", SigLIPConfig.paper(), 203_155_970, "arXiv 2303.15343; Google's released weights"),
]


def main() -> int:
    """Print the table. Returns 1 when a count differs from the published one."""
    table = Table("model", "variant", "ours", "published", "source")
    for column in (2, 3):
        table.columns[column].justify = "right"
    equal = True
    for variant in VARIANTS:
        ours = variant.count()
        equal &= variant.published in (None, ours)
        table.add_row(variant.model, variant.name, f"{ours:,}", f"{variant.published:,}" if variant.published else "", variant.source)
    Console().print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
