"""CLIP-rocket (arXiv 2305.08675): CLIP's own loss on strong views of pictures and texts. The control of SLIP and DeCLIP.

make train-clip_rocket                        2 CPU cores
make train-clip_rocket PRESET=small           one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train clip_rocket paper --data SHARDS --tokenizer open_clip

           paper (section 4 and its code)             small              tiny
data       YFCC15M                                    scenes-small       scenes-tiny, 20 k pictures
image      ViT-B/16, 224 px, embeddings of 256        ViT-S/16, 128 px   convolutions + 3 blocks, 64 px
views      two of both; SLIP's of pictures; stop      crops of .5 to 1,  the same, 32 px
           words and changed words of texts           128 px; captions
projectors 3 layers, 4096 wide, BatchNorm             2048 wide          512 wide
batch      4,096                                      1,024              128
seen       32 epochs = 480 M                          6.4 M              192 k
optimiser  AdamW, lr 3e-3, wd 0.1, betas .9 .98,      lr 1e-3, wd 0.2    lr 1.5e-3, wd 0.05
           eps 1e-8, warm-up one epoch, cosine

`tiny` and `small` differ from CLIP's in the views and their loss alone. As in SLIP a view of 32 px costs the image tower a quarter of a
picture; the text tower reads three texts of each pair.
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import CLIPRocketConfig
from recipes import clip
from recipes.claims.claim import Arm, Cell, Claim
from recipes.clip import short
from recipes.slip import YFCC
from recipes.train.recipe import AnyRecipe, Optim

PRESETS = {size: replace(clip.PRESETS[size], model=getattr(CLIPRocketConfig, size)()) for size in ("tiny", "small", "paper")}
PRESETS["paper"] = replace(
    PRESETS["paper"],
    optim=Optim(lr=3e-3, weight_decay=0.1, eps=1e-8, warmup=YFCC),
    budget=32 * YFCC,
    batch=4096,
)

# -------------------------------------------------------------------------------------------------------------- claims


def without_image_views(recipe: AnyRecipe) -> AnyRecipe:
    """The whole picture twice, as it is."""
    view = replace(recipe.model.view, area=(1.0, 1.0), jitter=0.0, grey=0.0, blur=0.0, flip=0.0)
    return replace(recipe, model=replace(recipe.model, view=view))


def without_text_views(recipe: AnyRecipe) -> AnyRecipe:
    """The weak pair's caption twice, as it is."""
    return replace(recipe, model=replace(recipe.model, paraphrase=False, drop=0.0))


def without_projectors(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, separate=False))


def without_smoothing(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, smoothing=0.0))


CLAIMS = (
    Claim(
        name="no-need-of-self-supervision",
        sentence="CLIP with strong views, smoothing and two projectors is at least as good as CLIP with self-supervision.",
        paper="abstract: self-supervised losses improve a basic CLIP, but not one with a strong recipe",
        base=short,
        arms=(Arm("CLIP-rocket"), Arm("SLIP", page="slip"), Arm("CLIP", page="clip")),
        metric=Cell("zeroshot", "shape"),
        note="a quarter of the samples; both see each picture three times, CLIP once",
    ),
    Claim(
        name="what-it-takes",
        sentence="Views of pictures, views of texts, projectors of their own and smoothing all help.",
        paper="abstract and ablations: augmentation of pictures and texts alone gives most of the gain",
        base=short,
        arms=(
            Arm("all"),
            Arm("without views of pictures", without_image_views),
            Arm("without views of texts", without_text_views),
            Arm("without projectors", without_projectors),
            Arm("without smoothing", without_smoothing),
        ),
        metric=Cell("zeroshot", "shape"),
        note="a quarter of the samples, at equal passes of both towers",
        seeds=(0,),
    ),
)
