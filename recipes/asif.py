"""ASIF (arXiv 2210.01738). Nothing is trained: `make train-asif` makes anchors of pairs.

make train-asif                               2 CPU cores; trains what it builds on first (make train-classifier, make train-lm)
make train-asif PRESET=small DATA=SHARDS      one CUDA GPU, encoders from the hub

           paper (section 3)                     small                       tiny
pairs      1.6 M of CC12M                        100 k                       5 k of scenes-tiny's 20 k
image      ViT-B/16, supervised, ImageNet-21k    ViT-S/16, the same          the suite's, supervised by labels, 1.5 M parameters
text       a sentence encoder, MPNet             the same                    the suite's language model, 1.9 M parameters
k, p       800, 8                                800, 8                      800, 8
"""

from __future__ import annotations

from dataclasses import replace

from models.asif import ASIFConfig
from recipes.recipe import Prerequisite, Recipe

NEEDS = (Prerequisite("image_tower", "classifier"), Prerequisite("language_model", "lm"))
MPNET = "sentence-transformers/all-mpnet-base-v2"

PRESETS = {
    "tiny": Recipe(
        model=ASIFConfig.tiny(),
        budget=5_000,
        batch=50,
        prerequisites=NEEDS,
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=ASIFConfig.small(),
        budget=100_000,
        batch=250,
        tokenizer=MPNET,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=replace(ASIFConfig.paper(), side=0),
        budget=1_600_000,
        batch=500,
        tokenizer=MPNET,
        workers=8,
    ),
}
