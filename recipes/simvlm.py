"""SimVLM (arXiv 2108.10904).

make train-simvlm                             2 CPU cores
make train-simvlm PRESET=small                one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train simvlm paper --data SHARDS --tokenizer t5-base

           paper (section 4.1)                        small                   tiny
data       ALIGN 1.8 B pairs, C4 documents            scenes-small            scenes-tiny, 20 k pictures
image      ResNet-152's first three stages, 224 px    ResNet-50's, 128 px     convolutions, 64 px
layers     32 + 32 of 1,280 (base: 12 + 12 of 768)    8 + 8 of 384            3 + 3 of 160
batch      4,096 pairs and 512 documents              1,024, a ninth texts    64, a ninth texts
seen       1 M steps = 4.6 G                          6.4 M                   40 k
optimiser  AdamW, lr 5e-4, wd 0.01, 2 % warm-up,      AdamW, lr 1e-3,         Muon and AdamW,
           linear decay                               wd 0.1, cosine          lr 1.5e-3, wd 0.05, cosine
prefix     picture and words up to a random place     the same, half of the captions whole; and a question of each picture
"""

from __future__ import annotations

from dataclasses import replace

from models.simvlm import SimVLMConfig
from recipes.claims.claim import Arm, Cell, Change, Claim
from recipes.train.recipe import AnyRecipe, Optim, Recipe

PRESETS = {
    "tiny": Recipe(
        model=SimVLMConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=3_200, muon=True),
        budget=40_000,
        batch=64,
        tokenizer="train+questions",
    ),
    "small": Recipe(
        model=SimVLMConfig.small(),
        optim=Optim(lr=1e-3, weight_decay=0.1, warmup=300_000),
        budget=6_400_000,
        batch=1024,
        tokenizer="train+questions",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=SimVLMConfig.paper(),
        optim=Optim(lr=5e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup=20_000 * 4_608),
        budget=1_000_000 * 4_608,
        batch=4_608,
        tokenizer="t5-base",
        workers=8,
    ),
}


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """A third of the samples."""
    return replace(recipe, budget=recipe.budget // 3)


def mixed(**shares: float) -> Change:
    """Change what batches are made of."""
    return lambda recipe: replace(recipe, model=replace(recipe.model, mix=replace(recipe.model.mix, **shares)))


def _patches(recipe: AnyRecipe) -> AnyRecipe:
    """A linear patch embedding instead of convolutions."""
    return replace(recipe, model=replace(recipe.model, stage=replace(recipe.model.stage, kind="patch")))


SHAPES, ANSWERS = Cell("captioning", "shape F1"), Cell("vqa", "accuracy")

CLAIMS = (
    Claim(
        name="conv-against-patches",
        sentence="Convolutions before the transformer work better than a linear patch embedding.",
        paper="ablations: three blocks of a ResNet against a linear projection of patches, VQA dev",
        base=_short,
        arms=(Arm("convolutions"), Arm("patch embedding", _patches)),
        metric=SHAPES,
        note="measured by the shapes that captions name",
    ),
    Claim(
        name="prefix-against-language-model",
        sentence="Prefix language modelling works better than plain language modelling, which predicts every word of a caption.",
        paper="ablations: PrefixLM is ahead of a plain language model and of span corruption, VQA dev",
        base=_short,
        arms=(Arm("prefix", mixed(whole=0.0)), Arm("no words in the prefix", mixed(whole=1.0))),
        metric=ANSWERS,
        note="questions are a prefix in both arms, and answers are learned together with captions instead of by fine-tuning",
    ),
    Claim(
        name="texts-help",
        sentence="Texts without pictures, mixed into the batches, make a better model.",
        paper="ablations: both kinds of data are needed, VQA dev",
        base=_short,
        arms=(Arm("with texts"), Arm("pairs only", mixed(texts=0.0))),
        metric=ANSWERS,
        note="equal numbers of samples; the texts describe the same pictures, where C4 adds knowledge of its own",
    ),
)
