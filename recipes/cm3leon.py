"""CM3leon (arXiv 2309.02591).

make train-cm3leon                            2 CPU cores
make train-cm3leon PRESET=small               one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train cm3leon paper --data SHARDS

           paper (section 2, table 2)                  small                    tiny
data       Shutterstock, 340 M                         scenes-small             scenes-tiny, 20 k pictures
image      256 px, 1,024 tokens of 8,192               128 px, 256 of 1,024     64 px, 64 of 1,000
decoder    350 M to 7 B; 32 layers of 4,096            12 of 512                4 of 192
documents  two to four retrieved                       none to two              none
pretraining
  batch    8 M tokens                                  256 pictures             32 pictures
  seen     2.4 T tokens (1.4 T, 1.9 T)                 4 M pictures             192 k pictures
  rate     1.2e-4 (6e-4, 5e-4), warm-up 1,500 steps    6e-4                     1.5e-3
tuning
  batch    2 M tokens                                  256 pictures             32 pictures
  seen     30 B tokens                                 500 k pictures           24 k pictures
  rate     5e-5                                        1e-4                     5e-4

Builds on `make train-vq` (the image tokenizer) and `make train-clip` (the retriever, whose words it shares); both are trained first where
they have not been yet, and frozen.
"""

from __future__ import annotations

from models.cm3leon import CM3leonConfig
from recipes.recipe import Optim, Prerequisite, Recipe, Stage

NEEDS = (Prerequisite("image_tokenizer", "vq"), Prerequisite("retriever", "clip"))
PER_PICTURE = 1_100  # tokens of a document at paper size

PRESETS = {
    "tiny": Recipe(
        model=CM3leonConfig.tiny(),
        stages=(
            Stage("pretraining", Optim(lr=1.5e-3, warmup=3_200), budget=192_000, batch=32),
            Stage("tuning", Optim(lr=5e-4, warmup=1_600), budget=24_000, batch=32),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
    ),
    "small": Recipe(
        model=CM3leonConfig.small(),
        stages=(
            Stage("pretraining", Optim(lr=6e-4, weight_decay=0.1, warmup=100_000), budget=4_000_000, batch=256),
            Stage("tuning", Optim(lr=1e-4, weight_decay=0.1, warmup=20_000), budget=500_000, batch=256),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=CM3leonConfig.paper(),
        stages=(
            Stage(
                "pretraining",
                Optim(lr=1.2e-4, weight_decay=0.1, betas=(0.9, 0.98), warmup=1_500 * 8_000_000 // PER_PICTURE),
                budget=2_400_000_000_000 // PER_PICTURE,
                batch=8_000_000 // PER_PICTURE // 64 * 64,
            ),
            Stage(
                "tuning",
                Optim(lr=5e-5, weight_decay=0.1, warmup=150 * 2_000_000 // PER_PICTURE),
                budget=30_000_000_000 // PER_PICTURE,
                batch=2_000_000 // PER_PICTURE // 64 * 64,
            ),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
        workers=8,
    ),
}
