"""The image tokenizer (VQ-GAN, arXiv 2012.09841; Make-A-Scene, arXiv 2203.13131): CM3leon generates its tokens, FLAVA predicts them.

make train-vq                                 2 CPU cores
make train-vq PRESET=small                    one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train vq paper --data SHARDS

           paper (Make-A-Scene; the rest VQ-GAN's)    small                    tiny
image      256 px -> 32 x 32 tokens                   128 px -> 16 x 16        64 px -> 8 x 8
codes      8,192, by gradient                         1,024, EMA               1,000, FSQ
losses     L1 + L2, VGG-16, discriminator, objects    L1 + L2, discriminator,  L1 + L2, objects x 16
           (faces and objects, by detectors)          objects x 5
batch      not stated; here 256                       128                      32
seen       not stated; here 100 M                     4 M                      96 k
optimiser  Adam, lr 4.5e-6 x batch in VQ-GAN's code   AdamW, lr 2e-4           AdamW, lr 2e-3, wd 0.01, cosine

`tiny` uses FSQ because it has no codebook that could collapse, and needs neither a commitment loss nor dead-code revival.
"""

from __future__ import annotations

from models.vq import VQConfig
from recipes.train.recipe import Optim, Recipe

COMPARED = False  # trained for others to build on

PRESETS = {
    "tiny": Recipe(
        model=VQConfig.tiny(),
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=3_200),
        budget=96_000,
        batch=32,
    ),
    "coarse": Recipe(
        model=VQConfig.coarse(),
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=3_200),
        budget=64_000,
        batch=32,
    ),
    "small": Recipe(
        model=VQConfig.small(),
        optim=Optim(lr=2e-4, weight_decay=0.01, betas=(0.5, 0.9), warmup=64_000),
        budget=4_000_000,
        batch=128,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper-112": Recipe(  # in DALL-E's shape, for FLAVA's `paper`
        model=VQConfig.dalle(),
        optim=Optim(lr=4.5e-5, weight_decay=0.0, betas=(0.5, 0.9), warmup=1_000_000),
        budget=100_000_000,
        batch=256,
        workers=8,
    ),
    "paper": Recipe(
        model=VQConfig.paper(),
        optim=Optim(lr=4.5e-5, weight_decay=0.0, betas=(0.5, 0.9), warmup=1_000_000),
        budget=100_000_000,
        batch=256,
        workers=8,
    ),
}
