"""MiniGPT-4 (arXiv 2304.10592).

make train-minigpt4                           2 CPU cores; trains BLIP-2 (make train-blip2) and the language model (make train-lm) first
make chat-minigpt4 IMAGE=picture.png          talks about a picture

           paper (section 3)                          tiny
data       5 M of LAION, CC and SBU; then 3,500       scenes-tiny; then conversations made from its truth
image      EVA ViT-g/14 and BLIP-2's Q-Former         BLIP-2's of `make train-blip2`
language   Vicuna-13B                                 the suite's own, 1.9 M
trained    one linear layer, 3.9 M                    one linear layer, 31 k
captions   20 k steps of 256, lr 1e-4                 64 k samples in batches of 64, lr 2e-3
tuning     400 steps of 12, lr 3e-5                   9.6 k samples in batches of 12, lr 5e-4
optimiser  AdamW, wd 0.05, betas .9 .999, cosine      betas .9 .98
           to 8e-5 and to 1e-5                        cosine to zero, in `paper`, too
"""

from __future__ import annotations

from models.minigpt4 import MiniGPT4Config
from recipes.recipe import Optim, Prerequisite, Recipe, Stage

NEEDS = (Prerequisite("vision", "blip2"), Prerequisite("language_model", "lm"))

PRESETS = {
    "tiny": Recipe(
        model=MiniGPT4Config.tiny(),
        stages=(
            Stage("captions", Optim(lr=2e-3, warmup=4_000), budget=64_000, batch=64),
            Stage("instructions", Optim(lr=5e-4, warmup=600), budget=9_600, batch=12),
        ),
        prerequisites=NEEDS,
        tokenizer="language_model",
    ),
}
