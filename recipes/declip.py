"""DeCLIP (arXiv 2110.05208): CLIP with self-supervision in each modality, two views of both, and nearest-neighbour texts.

make train-declip                             2 CPU cores
make train-declip PRESET=small                one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train declip paper --data SHARDS --tokenizer open_clip

           paper (its code's YFCC15M setup)           small              tiny
data       YFCC15M, 15,388,848 pairs                  scenes-small       scenes-tiny, 20 k pictures
image      ViT-B/32, 224 px                           ViT-S/16, 128 px   convolutions + 3 blocks, 64 px
views      two of MoCo v2's, 224 px; crops of .2      the picture, and   the same, 32 px
           to 1, jitter, grey, blur, mirrored         one of .5 to 1
bank       65,536 texts                               16,384             4,096
batch      4,096                                      1,024              128
seen       128,001 steps = 524 M                      6.4 M              192 k
optimiser  AdamW, lr 1e-3, wd 0.1, betas .9 .98,      lr 1e-3, wd 0.2    lr 1.5e-3, wd 0.05
           eps 1e-8, warm-up 2,500 steps, cosine

`tiny` and `small` differ from CLIP's in the further view and text, masked words, neighbours and their losses alone. The text tower reads
three texts of each pair. A view of 32 px costs the image tower a quarter of a picture.
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import DeCLIPConfig
from models.clip.declip import Weights
from recipes import clip
from recipes.claims.claim import Arm, Cell, Claim
from recipes.clip import short
from recipes.train.recipe import AnyRecipe, Optim

BATCH = 4096
PRESETS = {size: replace(clip.PRESETS[size], model=getattr(DeCLIPConfig, size)()) for size in ("tiny", "small", "paper")}
PRESETS["paper"] = replace(
    PRESETS["paper"],
    optim=Optim(lr=1e-3, weight_decay=0.1, eps=1e-8, warmup=2_500 * BATCH),
    budget=128_001 * BATCH,
    batch=BATCH,
)

# -------------------------------------------------------------------------------------------------------------- claims


def few_pictures(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the samples, of a tenth of the pictures."""
    return replace(short(recipe), shards=2)


def weighted(**weights: float) -> Weights:
    """Of some of the losses; CLIP's takes what the others leave, as in the paper."""
    return Weights(clip=1 - sum(weights.values()), **({"nn": 0.0, "simsiam": 0.0, "mlm": 0.0} | weights))


def without_neighbours(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, weights=weighted(simsiam=0.2, mlm=0.2)))


def views_alone(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, weights=weighted()))


CLAIMS = (
    Claim(
        name="data-efficiency",
        sentence="With few pictures DeCLIP learns more from them than CLIP.",
        paper="abstract: R50, ImageNet zero-shot 60.4 % with 88 M pairs, .8 more than CLIP's with 7.1 times as many",
        base=few_pictures,
        arms=(Arm("DeCLIP"), Arm("CLIP", page="clip")),
        metric=Cell("zeroshot", "shape"),
        note="2,000 pictures and 48 k samples for both; DeCLIP's cost more",
    ),
    Claim(
        name="every-supervision-adds",
        sentence="Nearest-neighbour texts add to self-supervision, which adds to two views of both.",
        paper="ablation of the losses, one added after the other",
        base=few_pictures,
        arms=(Arm("all"), Arm("without neighbours", without_neighbours), Arm("two views alone", views_alone)),
        metric=Cell("zeroshot", "shape"),
        note="2,000 pictures and 48 k samples",
    ),
)
