"""VirTex (arXiv 2006.06666).

make train-virtex                             2 CPU cores
make train-virtex PRESET=small                one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train virtex paper --data SHARDS

           paper (section 4, authors' code)           small                   tiny
data       COCO train2017, 118 k pictures             scenes-small            scenes-tiny, 20 k pictures
image      ResNet-50, 224 px                          12 x 384, 128 px        convolutions + 3 blocks, 64 px
text       1 layer of 2,048 in each direction         1 x 512                 1 x 128
words      SentencePiece BPE, 10 k                    learned BPE             learned BPE
batch      256                                        1,024                   64
seen       500 k steps = 128 M                        6.4 M                   80 k
optimiser  SGD .9 with Lookahead, wd 1e-4, lr .2      AdamW, lr 1e-3,         Muon and AdamW,
           (ResNet) and 1e-3, clipped at 10,          wd 0.2                  lr 1.5e-3, wd 0.05
           10 k steps warm-up, cosine
augment    crops, colours, mirrored with the words    crops, mirrored         mirrored
"""

from __future__ import annotations

from dataclasses import replace

from models.coca import VirTexConfig, VirTexTokensConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.train.recipe import AnyRecipe, Optim, Recipe

PRESETS = {
    "tiny": Recipe(
        model=VirTexConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=6_400, muon=True),
        budget=80_000,
        batch=64,
    ),
    "small": Recipe(
        model=VirTexConfig.small(),
        optim=Optim(lr=1e-3, weight_decay=0.2, warmup=500_000),
        budget=6_400_000,
        batch=1024,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=VirTexConfig.paper(),
        optim=Optim(lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.999), warmup=10_000 * 256, clip_norm=10.0),
        budget=500_000 * 256,
        batch=256,
        vocab_size=10_000,
        workers=8,
    ),
}


def _tenth(recipe: AnyRecipe) -> AnyRecipe:
    """The first 2 of the 20 shards, so each picture is seen ten times as often."""
    return replace(recipe, shards=2)


def _tokens(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=VirTexTokensConfig(**vars(recipe.model)))


SHAPE = Cell("probe", "shape")
BOTH = Arm("both directions")

CLAIMS = (
    Claim(
        name="both-directions",
        sentence="Captions in both directions teach better visual features than captions in one.",
        paper="53.8 against 50.8, ImageNet linear top-1 in %; 88.7 against 88.6, VOC07 mAP (tables of the authors' code)",
        arms=(BOTH, Arm("forward only", with_model(backward=False))),
        metric=SHAPE,
        note="linear probe for the shape of single objects, equal numbers of samples; the second direction costs more",
    ),
    Claim(
        name="order-of-words",
        sentence="Captions teach better visual features than the set of their words.",
        paper="53.8 against 48.6 (token classification), ImageNet linear top-1 in %; 88.7 against 88.8, VOC07 mAP",
        arms=(BOTH, Arm("tokens in no order", _tokens)),
        metric=SHAPE,
        note="linear probe for the shape of single objects, equal numbers of samples",
    ),
    Claim(
        name="a-tenth-of-the-pictures",
        sentence="Captions of a tenth of the pictures teach features as good as those that labels of all pictures teach.",
        paper="abstract: 118 k captioned pictures of COCO match or exceed ImageNet's 1.28 M labelled ones",
        arms=(Arm("captions, a tenth", _tenth), Arm("labels, all", page="classifier")),
        metric=SHAPE,
        note="the same kind of pictures in both arms; labels here are the shapes, colours, sizes and fills of all objects",
    ),
)
