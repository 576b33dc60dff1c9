"""SLIP (arXiv 2112.12750): CLIP with a SimCLR loss on two further views of each picture.

make train-slip                               2 CPU cores
make train-slip PRESET=small                  one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train slip paper --data SHARDS --tokenizer open_clip

           paper (section 4 and its code)             small              tiny
data       YFCC15M, title or description              scenes-small       scenes-tiny, 20 k pictures
image      ViT-B/16, 224 px                           ViT-S/16, 128 px   convolutions + 3 blocks, 64 px
views      two, 224 px; crops of .08 to 1, jitter,    the same, 128 px   the same, 32 px
           grey, blur, mirrored
head       768-4096-4096-256, BatchNorm               384-2048-2048-256  160-512-512-128
batch      4,096                                      1,024              128
seen       25 epochs = 375 M                          6.4 M              192 k
optimiser  AdamW, lr 3e-3, wd 0.1, betas .9 .98,      lr 1e-3, wd 0.2    lr 1.5e-3, wd 0.05
           eps 1e-8, warm-up one epoch, cosine

`tiny` and `small` differ from CLIP's in the views and their loss alone. A view of 32 px costs the image tower a quarter of a picture, so
that a step at `tiny` takes its time one and a half times, not three times. No view makes a caption false (models/clip/views.py): in the
embedded data captions name colours, so hues stay.
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import SLIPConfig
from recipes import clip
from recipes.claims.claim import Arm, Cell, Claim
from recipes.clip import short
from recipes.train.recipe import AnyRecipe, Optim

YFCC = 15_000_000  # pairs
PRESETS = {size: replace(clip.PRESETS[size], model=getattr(SLIPConfig, size)()) for size in ("tiny", "small", "paper")}
PRESETS["paper"] = replace(
    PRESETS["paper"],
    optim=Optim(lr=3e-3, weight_decay=0.1, eps=1e-8, warmup=YFCC),
    budget=25 * YFCC,
    batch=4096,
)

# -------------------------------------------------------------------------------------------------------------- claims


def as_published(recipe: AnyRecipe) -> AnyRecipe:
    """Views that are also mirrored and recoloured where captions name sides and colours."""
    return replace(recipe, model=replace(recipe.model, view=replace(recipe.model.view, careful=False)))


ARMS = (Arm("SLIP"), Arm("CLIP", page="clip"), Arm("CLIP-rocket", page="clip_rocket"))
NOTE = "a quarter of the samples; SLIP and CLIP-rocket, the control, see each picture three times, CLIP once"

CLAIMS = (
    Claim(
        name="zero-shot-gain",
        sentence="Self-supervision beside the contrast improves zero-shot classification at equal samples.",
        paper="table 1, ImageNet zero-shot in %, YFCC15M, ViT-B/16: SLIP 42.8, CLIP 37.6",
        base=short,
        arms=ARMS,
        metric=Cell("zeroshot", "shape"),
        note=NOTE,
    ),
    Claim(
        name="linear-gain",
        sentence="Self-supervision beside the contrast improves a linear probe of the image tower more than zero-shot classification.",
        paper="table 1, linear probe on ImageNet in %, YFCC15M, ViT-B/16: SLIP 72.1, CLIP 66.5",
        base=short,
        arms=ARMS,
        metric=Cell("probe", "shape"),
        note=NOTE,
    ),
    Claim(
        name="views-that-keep-captions-true",
        sentence="Views that change what captions name, such as colours, cost zero-shot accuracy on it.",
        paper="not in the paper, whose captions seldom name colours and sides; its views change both",
        base=short,
        arms=(Arm("views that keep captions true"), Arm("views as published", as_published)),
        metric=Cell("zeroshot", "colour"),
        note="a quarter of the samples; the head is dropped after training, but the tower has learned to ignore what views change",
    ),
)
