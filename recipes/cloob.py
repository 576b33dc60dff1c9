"""CLOOB (arXiv 2110.11316): CLIP with a Hopfield memory and InfoLOOB.

make train-cloob                              2 CPU cores
make train-cloob PRESET=small                 one CUDA GPU
torchrun --nproc-per-node 4 -m recipes.train cloob paper --data SHARDS --tokenizer open_clip

           paper (the authors' run on CC3M)           small              tiny
data       CC3M, 2.9 M pairs                          scenes-small       scenes-tiny, 20 k pictures
image      RN50; here ViT-B/32, also in their code    ViT-S/16, 128 px   CLIP's
batch      512                                        1,024              128
seen       31 epochs = 90 M                           6.4 M              192 k
optimiser  Adam, lr 1e-3, wd 0.1, betas .9 .999,      lr 1e-3, wd 0.2    lr 1.5e-3, wd 0.05
           eps 1e-8, warm-up 20,000 steps, cosine
objective  beta = 8, 1 / tau = 30, both fixed         the same           the same

The authors' cosine restarts (10 cycles in 70 epochs); ours does not. `small` and `tiny` have CLIP's towers, samples, tokenizer and
schedule.
"""

from __future__ import annotations

from dataclasses import replace

from models.clip import CLOOBConfig
from recipes import clip
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.claims.measures.spectrum import directions
from recipes.clip import short
from recipes.train.recipe import Optim

PRESETS = {size: replace(clip.PRESETS[size], model=getattr(CLOOBConfig, size)()) for size in ("tiny", "small", "paper")}
PRESETS["paper"] = replace(
    PRESETS["paper"],
    optim=Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, warmup=20_000 * 512),
    budget=31 * 2_900_000,
    batch=512,
)

# -------------------------------------------------------------------------------------------------------------- claims


BOTH = Arm("Hopfield and InfoLOOB")
LOOB = Arm("InfoLOOB alone", with_model(retrieval=False))
HOPFIELD = Arm("Hopfield alone", with_model(leave_one_out=False))
NEITHER = Arm("InfoNCE", with_model(retrieval=False, leave_one_out=False))
BRIEF = "a quarter of the samples; all arms have the fixed temperature 1/30"
TABLE = "ablation of both parts: only together they beat InfoNCE on most of 8 zero-shot data sets, more so after 128 epochs than after 31"

CLAIMS = (
    Claim(
        name="both-parts",
        sentence="Hopfield retrieval and InfoLOOB together retrieve better than either alone and than InfoNCE.",
        paper=TABLE,
        base=short,
        arms=(BOTH, LOOB, HOPFIELD, NEITHER),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note=BRIEF,
    ),
    Claim(
        name="both-parts-zero-shot",
        sentence="Hopfield retrieval and InfoLOOB together classify better, zero-shot, than either alone and than InfoNCE.",
        paper=TABLE,
        base=short,
        arms=(BOTH, LOOB, HOPFIELD, NEITHER),
        metric=Cell("zeroshot", "shape"),
        note=BRIEF,
    ),
    Claim(
        name="neither-part-alone",
        sentence="Either part alone is worse than plain InfoNCE: retrieval under-fits, InfoLOOB over-fits.",
        paper=TABLE,
        base=short,
        arms=(NEITHER, LOOB, HOPFIELD),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note=BRIEF,
    ),
    Claim(
        name="retrieval-uses-more-directions",
        sentence="With Hopfield retrieval the embeddings of images use more directions.",
        paper="eigenvalues that hold 99 % of the covariance of embeddings: with retrieval their number rises during training",
        base=short,
        arms=(BOTH, LOOB),
        metric=directions(),
        note=BRIEF,
    ),
    Claim(
        name="repeated-captions",
        sentence="InfoLOOB learns better if pairs with the same caption are not each other's negatives.",
        paper="none: the paper's captions hardly repeat; those of the embedded data do; InfoLOOB has no bound on false negatives",
        base=short,
        arms=(Arm("repeats left out"), Arm("repeats are negatives", with_model(repeats_are_negatives=True))),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note="a quarter of the samples",
    ),
    Claim(
        name="cloob-beats-clip",
        sentence="CLOOB transfers better than CLIP at equal samples.",
        paper="zero-shot on 8 data sets, RN50 on YFCC: better on 7; ResNet on CC3M, 5 seeds: better on most",
        arms=(Arm("CLOOB"), Arm("CLIP", page="clip")),
        metric=Cell("zeroshot", "shape"),
        seeds=(0,),
    ),
)
