"""CoCa (arXiv 2205.01917).

make train-coca                               2 CPU cores
make train-coca PRESET=small                  one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train coca paper --data SHARDS --tokenizer open_clip

           paper (section 4.1, table 1)               small                  tiny
data       JFT-3B labels and ALIGN, 50 % each         scenes-small           scenes-tiny, 20 k pictures
image      40 layers of 1408, 288 px, patch 18        12 x 384, 128 px       convolutions + 3 blocks, 64 px
text       18 + 18 layers of 1408, 64 k words         6 + 6 x 256            2 + 2 x 128
batch      65,536                                     1,024                  128
seen       500 k steps = 33 G                         6.4 M                  192 k
optimiser  Adafactor, lr 8e-4, wd 0.01, 2 % warm-up,  AdamW, lr 1e-3,        Muon, lr 1.5e-3, wd 0.05, cosine
           linear decay                               wd 0.2, cosine
augment    not stated                                 random square crop     none
losses     2 x captioning, a sum over a caption's     2 x captioning, a mean over all tokens of the batch (as in open_clip),
           tokens (equation 3), + 1 x contrastive     + 1 x contrastive
"""

from __future__ import annotations

from dataclasses import replace

from models.coca import CoCaConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model, with_optim
from recipes.train.recipe import AnyRecipe, Optim, Recipe

PRESETS = {
    "tiny": Recipe(
        model=CoCaConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=8_000, muon=True),
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


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """A third of the samples: all arms are well above chance, but none has converged."""
    return replace(recipe, budget=64_000)


JOINT = Arm("captioning 2, contrastive 1")
SHAPE, CAPTION = Cell("zeroshot", "shape"), Cell("captioning", "shape F1")


def random_positions(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, vision=replace(recipe.model.vision, positions="random")))


CLAIMS = (
    Claim(
        name="joint-against-contrastive",
        sentence="The contrastive and captioning losses together give better zero-shot features than the contrastive loss alone.",
        paper="table 8: 71.6 against 70.7, ImageNet zero-shot top-1 in %, at 1.18 times the cost",
        base=_short,
        arms=(JOINT, Arm("contrastive alone", with_model(captioning_weight=0.0))),
        metric=SHAPE,
        note="the arms' FLOPs include the saving: without captioning the second half of the decoder is not computed",
    ),
    Claim(
        name="joint-against-captioning",
        sentence="The contrastive loss does not make captions worse.",
        paper="table 8: 69.0 against 68.9, VQA after fine-tuning, in %",
        base=_short,
        arms=(JOINT, Arm("captioning alone", with_model(contrastive_weight=0.0))),
        metric=CAPTION,
        note="measured by the shapes that captions name, instead of VQA after fine-tuning",
    ),
    Claim(
        name="loss-ratio",
        sentence="The captioning loss should have twice the weight of the contrastive loss.",
        paper="table 8c: 2:1 71.6, 1:1 71.5, 1:2 71.0, ImageNet zero-shot top-1 in %; VQA 69.0, 68.6, 68.1",
        base=_short,
        arms=(
            JOINT,
            Arm("captioning 1, contrastive 1", with_model(captioning_weight=1.0)),
            Arm("captioning 1, contrastive 2", with_model(captioning_weight=1.0, contrastive_weight=2.0)),
        ),
        metric=SHAPE,
        note="weights of a mean over tokens, as open_clip's; the paper's equation 3 sums over a caption, so its 2 : 1 may be another ratio",
    ),
    Claim(
        name="cascade-against-parallel",
        sentence="A contrastive pooler on top of the generative one works better than two poolers on the encoder.",
        paper="table 8f: cascade 71.6, parallel 71.2, ImageNet zero-shot top-1 in %; VQA 69.0, 68.7",
        base=_short,
        arms=(Arm("cascade", with_model(pooling="cascade")), Arm("parallel")),
        metric=SHAPE,
    ),
    Claim(
        name="positions-that-start-as-sines",
        sentence="Position embeddings that start as sines and cosines of size one let a captioner tell relations apart.",
        paper="none: how the paper's start is not stated; a setting of all tiny presets here",
        arms=(Arm("sines and cosines"), Arm("small and random", random_positions)),
        metric=Cell("foils", "swap_relation"),
        note="both are trained",
        seeds=(0,),
    ),
    Claim(
        name="muon",
        sentence="Muon learns more from the same samples than AdamW.",
        paper="none: the paper trains with Adafactor; a setting of all tiny presets here",
        arms=(JOINT, Arm("AdamW", with_optim(muon=False))),
        metric=CAPTION,
        note="at the same learning rate",
        base=_short,
    ),
)
