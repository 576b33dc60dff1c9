"""The image tower supervised by labels, which takes the place of one trained on ImageNet offline. ASIF, FLAVA and LiT build on it.

make train-classifier                         2 CPU cores
make train-classifier PRESET=small            one CUDA GPU

           small                                tiny
data       objects of scenes-small              objects of scenes-tiny
classes    22: 8 shapes, 9 colours, 2 sizes, 3 fills
image      ViT-S/16, 128 px                     convolutions + 3 blocks, 64 px
batch      256                                  64
seen       2 M                                  96 k
optimiser  AdamW, lr 5e-4, wd 0.05              Muon, lr 1.5e-3, wd 0.05

It uses no captions, and its labels do not say which attributes belong to the same object.
"""

from __future__ import annotations

from models.classifier import ClassifierConfig
from recipes.train.recipe import Optim, Recipe

COMPARED = False  # trained for others to build on

PRESETS = {
    "tiny": Recipe(
        model=ClassifierConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=4_000, muon=True),
        budget=96_000,
        batch=64,
    ),
    "small": Recipe(
        model=ClassifierConfig.small(),
        optim=Optim(lr=5e-4, warmup=100_000),
        budget=2_000_000,
        batch=256,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
}
