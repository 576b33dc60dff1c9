"""CoCa (arXiv 2205.01917).

make train-coca                               2 CPU cores
make train-coca PRESET=small                  one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train coca paper --data SHARDS --tokenizer open_clip

           paper (section 4.1, table 1)               small                  tiny
data       JFT-3B labels and ALIGN, half and half     scenes-small           scenes-tiny, 20 k pictures
image      40 layers of 1408, 288 px, patch 18        12 x 384, 128 px       convolutions + 3 blocks, 64 px
text       18 + 18 layers of 1408, 64 k words         6 + 6 x 256            2 + 2 x 128
batch      65,536                                     1,024                  128
seen       500 k steps = 33 G                         6.4 M                  192 k
optimiser  Adafactor, lr 8e-4, wd 0.01, 2 % warm-up,  AdamW, lr 1e-3,        AdamW, lr 1.5e-3, wd 0.05, cosine
           linear decay                               wd 0.2, cosine
augment    not said                                   random square crop     none
"""

from __future__ import annotations

from models.coca import CoCaConfig
from recipes.recipe import Optim, Recipe

PRESETS = {
    "tiny": Recipe(
        model=CoCaConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=8_000),
        budget=192_000,
        batch=128,
    ),
    "small": Recipe(
        model=CoCaConfig.small(),
        optim=Optim(lr=1e-3, weight_decay=0.2, warmup=500_000),
        budget=6_400_000,
        batch=1024,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=CoCaConfig.paper(),
        optim=Optim(lr=8e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup=10_000 * 65_536),
        budget=500_000 * 65_536,
        batch=65_536,
        tokenizer="open_clip",
        workers=8,
    ),
}
