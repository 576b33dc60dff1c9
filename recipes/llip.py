"""Llip (arXiv 2405.00740): SigLIP's loss on image vectors that depend on the text.

make train-llip                               2 CPU cores
make train-llip PRESET=small                  one CUDA GPU
torchrun --nproc-per-node 8 -m recipes.train llip paper --data SHARDS --tokenizer open_clip

           paper (the authors' ViT-B runs)            small              tiny
data       MetaCLIP, 2.5 G pairs                      scenes-small       scenes-tiny, 20 k pictures
image      ViT-B/32, 64 tokens                        ViT-S/16, 128 px,  SigLIP's tower, 8 tokens
                                                      16 tokens
text       CLIP's, causal, 77 tokens                  6 x 256            2 x 128
batch      32,768                                     1,024              128
seen       32 epochs of 400 M = 12.8 G                6.4 M              192 k
optimiser  AdamW, lr 5e-4, wd 0.2, betas .9 .95,      SigLIP's           SigLIP's
           eps 1e-6, warm-up 2,000 steps, cosine
initial    b = -10, 1 / t = 0.07                      b = -ln 1,023      b = -ln 127

`small` and `tiny` have SigLIP's samples, tokenizer and schedule.
"""

from __future__ import annotations

from dataclasses import replace

from models.siglip import LlipConfig
from recipes import clip, siglip
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.clip import short
from recipes.train.recipe import AnyRecipe, Optim

PRESETS: dict[str, AnyRecipe] = {size: replace(siglip.PRESETS[size], model=getattr(LlipConfig, size)()) for size in ("tiny", "small")}
PAPER: AnyRecipe = clip.PRESETS["paper"]
PRESETS["paper"] = replace(
    PAPER,
    model=LlipConfig.paper(),
    optim=Optim(lr=5e-4, weight_decay=0.2, betas=(0.9, 0.95), eps=1e-6, warmup=2_000 * 32_768),
)

# -------------------------------------------------------------------------------------------------------------- claims


MIXED = Arm("8 tokens, mixed by the text")
ONE = Arm("1 token", with_model(tokens=1))
MEAN = Arm("8 tokens, averaged", with_model(mix="mean"))
BRIEF = "a quarter of the samples"

CLAIMS = (
    Claim(
        name="mixing-for-retrieval",
        sentence="An image vector that the text mixes from several tokens retrieves better than a single token or the tokens' mean.",
        paper="abstract: +6.0 points of retrieval on COCO over a CLIP of that size; a control with as many tokens, not mixed, gains little",
        base=short,
        arms=(MIXED, ONE, MEAN),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note=BRIEF,
    ),
    Claim(
        name="mixing-for-zero-shot",
        sentence="An image vector that the text mixes from several tokens classifies better than a single token or the tokens' mean.",
        paper="abstract: +2.9 points zero-shot on average over a CLIP of that size, ViT-G/14; more tokens help",
        base=short,
        arms=(MIXED, ONE, MEAN),
        metric=Cell("zeroshot", "shape"),
        note=BRIEF,
    ),
    Claim(
        name="mixing-for-word-order",
        sentence="A vector for each pair tells captions with swapped attributes apart better than one vector for the picture.",
        paper="none: where the vector of a pair should matter most",
        base=short,
        arms=(MIXED, ONE, MEAN),
        metric=Cell("foils", "swap_attribute"),
        note=BRIEF,
    ),
    Claim(
        name="llip-beats-siglip",
        sentence="Llip retrieves better than SigLIP at equal samples.",
        paper="one token is SigLIP, and more tokens are better",
        arms=(Arm("Llip"), Arm("SigLIP", page="siglip")),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        seeds=(0,),
    ),
)
