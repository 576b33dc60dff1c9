"""ALIGN (arXiv 2102.05918): a dual encoder for raw, noisy alt-texts.

make train-align                              2 CPU cores
make train-align PRESET=small                 one CUDA GPU
make train-align PRESET=small WEIGHTS=hf:kakaobrain/align-base DATA=SHARDS
torchrun --nproc-per-node 8 -m recipes.train align paper --data SHARDS --tokenizer bert-base-uncased

           paper                                      small              tiny
data       raw alt-texts, 1.8 G pairs                 scenes-small       scenes-tiny, 20 k pictures
image      EfficientNet-L2, 289 px                    CLIP's             CLIP's
text       BERT-large, 64 tokens, 100 k words         6 x 256            2 x 128
batch      16,384                                     1,024              128
seen       1.2 M steps = 20 G                         6.4 M              192 k
optimiser  LAMB, lr 1e-3, wd 1e-5, warm-up 10 k       CLIP's             CLIP's
           steps, linear decay
augment    random crop of 346 px, flip                random crop        none
labels     smoothed by 0.1                            the same           the same

The paper's values are recalled, not read: check them before you rely on them. AdamW and a cosine replace LAMB and the linear decay.
Pictures are not flipped, which would make captions wrong. The vocabulary of `paper` is its tokenizer's.
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import ALIGNConfig
from recipes import clip
from recipes.claims.claim import Arm, Cell, Change, Claim, with_model
from recipes.clip import short
from recipes.train.recipe import AnyRecipe, Optim

PRESETS = {size: replace(clip.PRESETS[size], model=getattr(ALIGNConfig, size)()) for size in ("tiny", "small", "paper")}
PRESETS["paper"] = replace(
    PRESETS["paper"],
    optim=Optim(lr=1e-3, weight_decay=1e-5, warmup=10_000 * 16_384),
    budget=1_200_000 * 16_384,
    batch=16_384,
    tokenizer="bert-base-uncased",
)

# -------------------------------------------------------------------------------------------------------------- claims


def noisy(share: float) -> Change:
    """A quarter of the samples, with a share of captions that belong to other pictures."""
    return lambda recipe: with_model(noise=share)(short(recipe))


def few_and_clean(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the pictures (the embedded data set has 21 shards), without noise."""
    return replace(with_model(noise=0.0)(recipe), shards=5)


RECALL, SHAPE = Cell("retrieval", "i2t R@1 (500)"), Cell("zeroshot", "shape")
SHUFFLED = "a quarter of the samples; captions of the same pictures, chosen by their keys, are exchanged for those of others"

CLAIMS = (
    Claim(
        name="scale-beats-cleanliness",
        sentence="Many noisy pairs teach more than few clean ones.",
        paper="table on data sizes: 12 M random pairs of the noisy data overtake the 3 M curated ones of Conceptual Captions (recalled)",
        base=noisy(0.25),
        arms=(Arm("four times as many, 25 % wrong"), Arm("few and clean", few_and_clean)),
        metric=RECALL,
        note=SHUFFLED,
    ),
    Claim(
        name="smoothing-against-noise",
        sentence="Smoothed labels make training robust to wrong captions.",
        paper="none: the paper smooths by 0.1 and does not ablate it",
        base=noisy(0.5),
        arms=(Arm("smoothing 0.1"), Arm("no smoothing", with_model(smoothing=0.0))),
        metric=RECALL,
        note=f"half of the captions are wrong; {SHUFFLED}",
    ),
    Claim(
        name="smoothing-without-noise",
        sentence="Smoothed labels do not hurt where captions are right.",
        paper="none: the control of the claim above",
        base=short,
        arms=(Arm("smoothing 0.1"), Arm("no smoothing", with_model(smoothing=0.0))),
        metric=RECALL,
        note="a quarter of the samples",
    ),
    Claim(
        name="noise-costs-little",
        sentence="A quarter of wrong captions costs little accuracy, half of them more.",
        paper="the paper's premise: scale makes up for noise",
        base=short,
        arms=(Arm("clean"), Arm("25 % wrong", with_model(noise=0.25)), Arm("50 % wrong", with_model(noise=0.5))),
        metric=SHAPE,
        note=SHUFFLED,
    ),
    Claim(
        name="the-temperature-starts-at-one",
        sentence="A learned temperature that starts at 1 is as good as one that starts sharp.",
        paper="ablation: the learned temperature is as good as the best fixed one (recalled)",
        base=short,
        arms=(Arm("starts at 1"), Arm("starts at 0.07", with_model(temperature=0.07))),
        metric=RECALL,
        note="a quarter of the samples, in which a plain parameter moves by less than 0.5 at CLIP's learning rate",
    ),
)
