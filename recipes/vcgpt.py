"""VC-GPT (arXiv 2201.12723): a decoder that reads the picture on top of GPT-2, and the sum of both predictions.

make train-vcgpt                              2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-vcgpt PRESET=small                 one CUDA GPU; trains CLIP's small first, fetches GPT-2
torchrun --nproc-per-node 2 -m recipes.train vcgpt paper --data SHARDS

           paper                                      small                          tiny
data       COCO's and Flickr30k's captions            scenes-small                   scenes-tiny
image      CLIP's ViT, tuned; here frozen             CLIP's small, frozen           CLIP's tiny, frozen
language   GPT-2, tuned                               GPT-2, tuned                   the suite's own, 1.9 M, tuned
fusion     depth not found; here 6 layers             4 layers                       2 layers
optimiser  not found; here AdamW, lr 1e-4             lr 1e-4, cosine                lr 1e-3, cosine
seen       not found; here 20 epochs of COCO          500 k in batches of 128        48 k in batches of 48
"""

from __future__ import annotations

from dataclasses import replace

from models.flamingo import VCGPTConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

EYES = Prerequisite("vision", "clip")

PRESETS = {
    "tiny": Recipe(
        model=VCGPTConfig.tiny(),
        optim=Optim(lr=1e-3, warmup=4_800),
        budget=48_000,
        batch=48,
        prerequisites=(EYES, Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=VCGPTConfig.small(),
        optim=Optim(lr=1e-4, warmup=25_000),
        budget=500_000,
        batch=128,
        prerequisites=(EYES,),
        tokenizer="gpt2",
        data=".data/scenes-small",
        workers=8,
    ),
    "paper": Recipe(
        model=VCGPTConfig.paper(),
        optim=Optim(lr=1e-4, warmup=113_000),
        budget=20 * 113_287,
        batch=64,
        tokenizer="gpt2",
        workers=8,
    ),
}


def half(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, budget=recipe.budget // 2)


def few_pictures(recipe: AnyRecipe) -> AnyRecipe:
    """The first 1,000 pictures."""
    return replace(half(recipe), shards=1)


CLAIMS = (
    Claim(
        name="two-predictions-are-better",
        sentence="The sum of the language model's and the fusion's logits predicts captions better than the fusion's alone.",
        paper="ablation (from memory): captions without the self-ensemble are clearly worse",
        base=half,
        arms=(Arm("both"), Arm("fusion alone", with_model(ensemble=False))),
        metric=Cell("captioning", "object F1"),
        note="object F1 instead of CIDEr",
    ),
    Claim(
        name="two-predictions-are-better-with-few-pictures",
        sentence="The same, where there are few captioned pictures.",
        paper="not in the paper: our own question",
        base=few_pictures,
        arms=(Arm("both"), Arm("fusion alone", with_model(ensemble=False))),
        metric=Cell("captioning", "object F1"),
        note="1,000 pictures",
    ),
)
