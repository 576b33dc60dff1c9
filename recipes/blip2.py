"""BLIP-2 (arXiv 2301.12597).

make train-blip2                              2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first

           paper (section 4.1)                        tiny
data       129 M pictures, captions by CapFilt        scenes-tiny; stage 2 asks questions in half of the samples
image      EVA ViT-g/14 without its last layer        CLIP's tower, convolutions + 3 blocks
Q-Former   12 layers of 768 from BERT, 32 queries     4 layers of 160 from scratch, 16 queries
language   OPT-2.7B to 6.7B, Flan-T5                  the suite's own, 1.9 M
stage 1    250 k steps of 1,680                       96 k samples in batches of 96
stage 2    80 k steps of 1,520                        64 k samples in batches of 96
optimiser  AdamW, lr 1e-4, wd 0.05, betas .9 .98,     lr 1e-3 and 1.5e-3
           2 k steps of warm-up, cosine
"""

from __future__ import annotations

from models.blip2 import BLIP2Config
from recipes.recipe import Optim, Prerequisite, Recipe, Stage

PRESETS = {
    "tiny": Recipe(
        model=BLIP2Config.tiny(),
        stages=(
            Stage("represent", Optim(lr=1e-3, warmup=6_000), budget=96_000, batch=96),
            Stage("generate", Optim(lr=1.5e-3, warmup=6_000), budget=64_000, batch=96),
        ),
        prerequisites=(Prerequisite("vision", "clip"), Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
}
