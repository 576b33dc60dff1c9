"""MAPL (arXiv 2210.07179): Frozen on all states of a CLIP that is frozen, too, with a small transformer between the two.

make train-mapl                               2 CPU cores; trains CLIP (make train-clip) and its language model (make train-lm) first
make train-mapl PRESET=small                  one CUDA GPU; trains CLIP's small first, fetches Pythia
torchrun --nproc-per-node 4 -m recipes.train mapl paper --data SHARDS

           paper (section 4)                      small                          tiny
data       CC3M, filtered: 398 k captions         scenes-small, captions and     scenes-tiny, captions and
                                                  questions, half and half       questions, half and half
image      CLIP ViT-L/14, 257 states              CLIP's small, 65 states        CLIP's tiny, 16 states
mapper     transformer 4 x 256, 32 vectors        the same                       transformer 2 x 64, 8 vectors
language   GPT-J, 6 B                             Pythia 410 M                   the suite's own, 1.9 M
trained    3.4 M                                  2.5 M                          95 k
batch      128 (from memory)                      256                            96
seen       4 M (from memory)                      2 M                            96 k
optimiser  AdamW, lr 3e-4, constant after the     lr 5e-4, cosine                Muon, lr 1.5e-3, cosine
           warm-up (from memory); here cosine
"""

from __future__ import annotations

from dataclasses import replace

from models.frozen import MAPLConfig
from recipes.claims.claim import Arm, Cell, Claim
from recipes.frozen import captions_only
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

CLIP, LANGUAGE = Prerequisite("vision", "clip"), Prerequisite("language_model", "lm")

PRESETS = {
    "tiny": Recipe(
        model=MAPLConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=6_000, muon=True),
        budget=96_000,
        batch=96,
        prerequisites=(CLIP, LANGUAGE),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=MAPLConfig.small(),
        optim=Optim(lr=5e-4, warmup=50_000),
        budget=2_000_000,
        batch=256,
        prerequisites=(CLIP,),
        tokenizer="EleutherAI/pythia-410m",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=MAPLConfig.paper(),
        optim=Optim(lr=3e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup=1_500 * 128),
        budget=4_000_000,
        batch=128,
        tokenizer="EleutherAI/gpt-j-6b",
        workers=8,
    ),
}


def _a_tenth(recipe: AnyRecipe) -> AnyRecipe:
    return replace(captions_only(recipe), shards=2)


CLAIMS = (
    Claim(
        name="few-parameters",
        sentence="A mapper between two frozen models answers questions as well as Frozen, which trains ten times as many parameters.",
        paper="abstract: 3.4 M trained parameters against 40 M, competitive or better on VQA and captioning",
        arms=(Arm("MAPL"), Arm("Frozen", page="frozen")),
        metric=Cell("vqa", "accuracy"),
        note="MAPL's image encoder is a CLIP trained on the same images; the runs are those of `make train-mapl` and `make train-frozen`",
    ),
    Claim(
        name="all-states",
        sentence="A mapper that reads all states of CLIP describes images better than one that reads its embedding.",
        paper="not compared; ClipCap (2111.09734) reads the embedding",
        arms=(Arm("MAPL, all states"), Arm("ClipCap, embedding", page="clipcap")),
        metric=Cell("captioning", "object F1"),
        note="the runs are those of `make train-mapl` and `make train-clipcap`",
    ),
    Claim(
        name="little-data",
        sentence="With a tenth of the images, a mapper between two frozen models describes images better than Frozen.",
        paper="abstract: well suited to little data; with 1 % of the in-domain data it stays useful",
        base=_a_tenth,
        arms=(Arm("MAPL"), Arm("Frozen", page="frozen")),
        metric=Cell("captioning", "object F1"),
        note="2,000 images, a third of the samples, trained only on captions; CLIP and the language model have seen all images and texts",
    ),
)
