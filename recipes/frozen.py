"""Frozen (arXiv 2106.13884).

make train-frozen                             2 CPU cores; trains its language model first (make train-lm)
make train-frozen PRESET=small                one CUDA GPU

           paper (sections 3 and 4)                   small                          tiny
data       CC3M captions                              scenes-small, captions and     scenes-tiny, captions and
                                                      questions, half and half       questions, half and half
image      NF-ResNet-50, from scratch, 2 vectors      ViT 12 x 384, 2 vectors        convolutions + 3 blocks, 2 vectors
language   7 G parameters, trained on C4              Pythia 410 M                   the suite's own, 1.9 M
batch      128                                        256                            96
optimiser  Adam, constant lr 3e-4, betas .9 .95,      lr 1e-3, cosine                lr 1.5e-3, cosine
           early stopping after about an epoch
"""

from __future__ import annotations

from models.frozen import FrozenConfig
from recipes.recipe import Optim, Prerequisite, Recipe

LANGUAGE = (Prerequisite("language_model", "lm"),)

PRESETS = {
    "tiny": Recipe(
        model=FrozenConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=6_000),
        budget=96_000,
        batch=96,
        prerequisites=LANGUAGE,
        tokenizer="language_model",
    ),
}
