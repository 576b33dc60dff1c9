"""CLIP (arXiv 2103.00020).

make train-clip                               2 CPU cores
make train-clip PRESET=small                  one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train clip paper --data SHARDS --tokenizer open_clip

           paper (section 2.5, tables 18, 20)         small              tiny
data       WIT, 400 M pairs                           scenes-small       scenes-tiny, 20 k pictures
image      ViT-B/32, 224 px                           ViT-S/16, 128 px   convolutions + 3 blocks, 64 px
batch      32,768                                     1,024              128
seen       32 epochs = 12.8 G                         6.4 M              192 k
optimiser  AdamW, lr 5e-4, wd 0.2, betas .9 .98,      lr 1e-3, wd 0.2    Muon, lr 1.5e-3, wd 0.05
           eps 1e-6, warm-up 2,000 steps, cosine
augment    random square crop                         the same           none
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import CLIPConfig
from recipes.claims.claim import Arm, Cell, Claim, Minus, with_optim
from recipes.claims.measures.zero_shot import zero_shot
from recipes.train.recipe import AnyRecipe, Optim, Recipe

PRESETS = {
    "tiny": Recipe(
        model=CLIPConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=8_000, muon=True),
        budget=192_000,
        batch=128,
    ),
    "small": Recipe(
        model=CLIPConfig.small(),
        optim=Optim(lr=1e-3, weight_decay=0.2, warmup=500_000),
        budget=6_400_000,
        batch=1024,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=CLIPConfig.paper(),
        optim=Optim(lr=5e-4, weight_decay=0.2, warmup=2_000 * 32_768),
        budget=32 * 400_000_000,
        batch=32_768,
        tokenizer="open_clip",
        workers=8,
    ),
}
PRESETS["brief"] = replace(PRESETS["tiny"], budget=48_000)  # a worse image tower, for claims about models that build on it


def short(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the samples: no arm has converged."""
    return replace(recipe, budget=48_000, optim=replace(recipe.optim, warmup=4_000))


def random_positions(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, vision=replace(recipe.model.vision, positions="random")))


FULL = "a {size} {fill} {colour} {shape}"

CLAIMS = (
    Claim(
        name="prompts-like-captions",
        sentence="Zero-shot classification does better with a prompt that reads like the training captions than with the bare class name.",
        paper='section 3.1.4: "a photo of a {label}" gains 1.3 points on ImageNet over the label alone',
        arms=(
            Arm("whole description", metric=zero_shot("shape", (FULL,))),
            Arm("class name", metric=zero_shot("shape", ("{shape}",))),
        ),
        metric=zero_shot("shape", (FULL,)),
        note="captions here name colour, size, fill and shape, and so does the prompt; probabilities are summed over all but the shape",
    ),
    Claim(
        name="prompt-ensembling",
        sentence="The mean embedding of several prompts classifies better than that of a single prompt.",
        paper="section 3.1.4 and figure 4: 80 prompts gain 3.5 points on ImageNet over one",
        arms=(
            Arm("three prompts", metric=Cell("zeroshot", "shape")),
            Arm("one prompt", metric=zero_shot("shape", (FULL,))),
        ),
        metric=Cell("zeroshot", "shape"),
        note="the three prompts of the harness; the single one is the first of them",
    ),
    Claim(
        name="zero-shot-beats-one-shot",
        sentence="Zero-shot classification does better than a linear probe trained on one labelled example of each class.",
        paper="figure 6: zero-shot matches four-shot logistic regression on the same features, over 20 data sets",
        arms=(
            Arm("zero-shot", metric=Cell("zeroshot", "shape")),
            Arm("one-shot probe", metric=Cell("probe", "shape 1-shot")),
        ),
        metric=Cell("zeroshot", "shape"),
    ),
    Claim(
        name="zero-shot-is-robust",
        sentence="Under a distribution shift, zero-shot classification loses less accuracy than a linear probe of the same features.",
        paper="section 3.3 and figure 14: a probe gains 9.2 points on ImageNet and none under natural shifts of it",
        arms=(
            Arm("zero-shot", metric=Minus(Cell("zeroshot", "shape", "style"), Cell("zeroshot", "shape"))),
            Arm("linear probe", metric=Minus(Cell("probe", "shape", "style"), Cell("probe", "shape"))),
        ),
        metric=Minus(Cell("zeroshot", "shape", "style"), Cell("zeroshot", "shape")),
        note="accuracy on the other style minus accuracy on test, on images of one object; the probe is trained on the training style",
    ),
    Claim(
        name="muon",
        sentence="Muon learns more from the same samples than AdamW.",
        paper="none: the paper trains with AdamW; a setting of all tiny presets here",
        base=short,
        arms=(Arm("Muon"), Arm("AdamW", with_optim(muon=False))),
        metric=Cell("zeroshot", "shape"),
        note="a quarter of the samples, at the same learning rate",
    ),
    Claim(
        name="muon-for-retrieval",
        sentence="Muon learns to retrieve better from the same samples than AdamW.",
        paper="none: the paper trains with AdamW; a setting of all tiny presets here",
        base=short,
        arms=(Arm("Muon"), Arm("AdamW", with_optim(muon=False))),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note="a quarter of the samples, at the same learning rate",
    ),
    Claim(
        name="positions-that-start-as-sines",
        sentence="Position embeddings that start as sines and cosines of size one teach a dual encoder relations.",
        paper="none: the paper's start small and random; a setting of all tiny presets here",
        base=short,
        arms=(Arm("sines and cosines"), Arm("small and random", random_positions)),
        metric=Cell("foils", "swap_relation"),
        note="a quarter of the samples; both are trained",
    ),
)
