"""MaskVLM (arXiv 2208.02131).

make train-maskvlm                            2 CPU cores
make train-maskvlm PRESET=small               one CUDA GPU
torchrun --nproc-per-node 16 -m recipes.train maskvlm paper --data SHARDS --tokenizer roberta-base

           paper (section 4.1)                        small                   tiny
data       COCO, VG, SBU, CC3M: 4 M pairs             scenes-small            scenes-tiny, 20 k pictures
encoders   ViT-B/16 and RoBERTa-base, pretrained      12 x 384, 6 x 384       3 x 128, 2 x 128, from scratch
cross      3 + 3 blocks of 768, image decoder 3       3 + 3 x 384, 3          2 + 2 x 128, 1
masked     60 % of patches, 30 % of tokens            the same                the same
batch      512                                        1,024                   128
seen       50 epochs = 200 M                          6.4 M                   160 k
optimiser  AdamW, wd 0.05, lr 3e-4, encoders 1e-5,    lr 1e-3                 lr 1.5e-3
           5 epochs of warm-up, cosine
"""

from __future__ import annotations

from models.maskvlm import MaskVLMConfig
from recipes.recipe import Optim, Prerequisite, Recipe

ENCODER = (Prerequisite("image_encoder", "clip"),)

PRESETS = {
    "tiny": Recipe(
        model=MaskVLMConfig.tiny(),
        optim=Optim(lr=1e-3, warmup=8_000),
        budget=80_000,
        batch=128,
        prerequisites=ENCODER,
    ),
    "small": Recipe(
        model=MaskVLMConfig.small(),
        optim=Optim(lr=1e-3, warmup=500_000),
        budget=6_400_000,
        batch=1024,
        prerequisites=ENCODER,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=MaskVLMConfig.paper(),
        optim=Optim(lr=3e-4, warmup=5 * 4_000_000),
        budget=50 * 4_000_000,
        batch=512,
        tokenizer="roberta-base",
        workers=8,
    ),
}
