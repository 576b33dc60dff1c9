"""CM3leon (arXiv 2309.02591).

make train-cm3leon                            2 CPU cores
make train-cm3leon PRESET=small               one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train cm3leon paper --data SHARDS

           paper (section 2, table 3)                  small                    tiny
data       Shutterstock, 340 M                         scenes-small             scenes-tiny, 20 k pictures
image      256 px, 1,024 tokens of 8,192               128 px, 256 of 1,024     64 px, 64 of 1,000
decoder    350 M to 7 B; 32 layers of 4,096            12 of 512                4 of 192
documents  three of four retrieved                       none to two              none
pretraining
  batch    8 M tokens                                  256 pictures             32 pictures
  seen     2.4 T tokens (1.4 T, 1.9 T)                 4 M pictures             192 k pictures
  rate     1.2e-4 (6e-4, 5e-4), warm-up 1,500 steps    6e-4                     1.8e-3, Muon
tuning
  batch    2 M tokens                                  256 pictures             32 pictures
  seen     30 B tokens                                 500 k pictures           18 k pictures
  rate     5e-5                                        1e-4                     6e-4, Muon

Builds on `make train-vq` (the image tokenizer) and `make train-clip` (the retriever, whose vocabulary it shares). Both are frozen, and
trained first if they are missing.
"""

from __future__ import annotations

from dataclasses import replace

from models.cm3leon import CM3leonConfig
from recipes.claims.claim import Arm, Change, Claim
from recipes.claims.measures.drawing import drawn_right, surprise_after, surprise_in_boxes
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

NEEDS = (Prerequisite("image_tokenizer", "vq"), Prerequisite("retriever", "clip"))
PER_PICTURE = 1_100  # tokens of a document at paper size

PRESETS = {
    "tiny": Recipe(
        model=CM3leonConfig.tiny(),
        stages=(
            Stage("pretraining", Optim(lr=1.8e-3, warmup=3_200, muon=True), budget=192_000, batch=32),
            Stage("tuning", Optim(lr=6e-4, warmup=1_600, muon=True), budget=18_000, batch=32),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
    ),
    "small": Recipe(
        model=CM3leonConfig.small(),
        stages=(
            Stage("pretraining", Optim(lr=6e-4, weight_decay=0.1, warmup=100_000), budget=4_000_000, batch=256),
            Stage("tuning", Optim(lr=1e-4, weight_decay=0.1, warmup=20_000), budget=500_000, batch=256),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=CM3leonConfig.paper(),
        stages=(
            Stage(
                "pretraining",
                Optim(lr=1.2e-4, weight_decay=0.1, betas=(0.9, 0.98), warmup=1_500 * 8_000_000 // PER_PICTURE),
                budget=2_400_000_000_000 // PER_PICTURE,
                batch=8_000_000 // PER_PICTURE // 64 * 64,
            ),
            Stage(
                "tuning",
                Optim(lr=5e-5, weight_decay=0.1, warmup=150 * 2_000_000 // PER_PICTURE),
                budget=30_000_000_000 // PER_PICTURE,
                batch=2_000_000 // PER_PICTURE // 64 * 64,
            ),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
        workers=8,
    ),
}


def brief(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the tiny pretraining, and no tuning."""
    stage = recipe.schedule[0]
    return replace(recipe, stages=(replace(stage, budget=stage.budget // 4),))


def retrieving(recipe: AnyRecipe) -> AnyRecipe:
    """`brief`, with zero, one or two retrieved documents before each document."""
    short = brief(recipe)
    return replace(short, model=replace(short.model, mix=replace(short.model.mix, documents=(0.5, 0.25, 0.25))))


def spans(share: float) -> Change:
    """Set the share of documents with CM3's random spans; with 0 the model is causal."""

    def change(recipe: AnyRecipe) -> AnyRecipe:
        return replace(recipe, model=replace(recipe.model, mix=replace(recipe.model.mix, spans=share)))

    return change


CLAIMS = (
    Claim(
        name="retrieved-documents-help",
        sentence="Retrieved documents make an image easier to predict than its caption alone; random documents do not.",
        paper="zero-shot FID-30K on COCO 10.82, 5.78 and 4.88 with 0, 1 and 2 retrieved documents (7 B)",
        base=retrieving,
        arms=(
            Arm("two retrieved", metric=surprise_after(2)),
            Arm("one retrieved", metric=surprise_after(1)),
            Arm("none", metric=surprise_after(0)),
            Arm("two random", metric=surprise_after(2, random=True)),
        ),
        metric=surprise_after(2),
        better="lower",
        note="nats per image token instead of FID; documents are retrieved by caption and picture",
    ),
    Claim(
        name="guidance-has-an-optimum",
        sentence="Generated images are best at a moderate classifier-free guidance weight, and worse without guidance or at a high weight.",
        paper="section 3.1: FID over the weight is U-shaped, with its minimum at the same weight for every model size",
        arms=(
            Arm("guidance 2", metric=drawn_right(2.0)),
            Arm("guidance 1", metric=drawn_right(1.0)),
            Arm("guidance 8", metric=drawn_right(8.0)),
        ),
        metric=drawn_right(2.0),
        note="colour and shape according to a recogniser, instead of FID; one sample per prompt, no re-ranking",
    ),
    Claim(
        name="choosing-helps",
        sentence="The more generated images CLIP selects from, the more often the selected one is correct.",
        paper="section 3: eight samples, re-ranked by CLIP; other numbers are not compared",
        arms=(
            Arm("best of 32", metric=drawn_right(2.0, samples=32)),
            Arm("best of 8", metric=drawn_right(2.0, samples=8)),
            Arm("one sample", metric=drawn_right(2.0)),
        ),
        metric=drawn_right(2.0, samples=32),
    ),
    Claim(
        name="infilling-needs-both-sides",
        sentence="A model trained to infill predicts masked spans of an image better than a causal one.",
        paper="CM3 (2201.07520): the masked objective conditions on both sides, a causal model only on the left",
        base=brief,
        arms=(
            Arm("CM3, filled in", spans(0.5), metric=surprise_in_boxes(infilled=True)),
            Arm("causal, from the left", spans(0.0), metric=surprise_in_boxes(infilled=False)),
        ),
        metric=surprise_in_boxes(infilled=True),
        better="lower",
    ),
)
