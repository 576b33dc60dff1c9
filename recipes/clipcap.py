"""ClipCap (arXiv 2111.09734): Frozen on CLIP's embedding, with a mapper instead of one linear layer.

make train-clipcap                            2 CPU cores; trains CLIP (make train-clip) and its language model (make train-lm) first
make train-clipcap PRESET=small               one CUDA GPU; trains CLIP's small first, fetches GPT-2
torchrun --nproc-per-node 2 -m recipes.train clipcap paper --data SHARDS

           paper (section 4, released code)       small                          tiny
data       COCO's captions                        scenes-small, captions and     scenes-tiny, captions and
                                                  questions, half and half       questions, half and half
image      CLIP ViT-B/32, 512 features            CLIP's small, 256              CLIP's tiny, 128
mapper     transformer 8 x 768, k = 10            the same                       transformer 4 x 192, k = 4
language   GPT-2, frozen                          GPT-2, frozen                  the suite's own, 1.9 M, frozen
batch      40                                     256                            96
seen       10 epochs of 566 k captions = 5.7 M    2 M                            96 k
optimiser  AdamW, lr 2e-5, warm-up 5 k steps,     lr 2e-4, cosine                Muon, lr 1.5e-3, cosine
           linear to zero; here cosine

The paper's other variant, an MLP with a language model that is tuned, is ARGS="--model.mapper mlp --model.tune-language", and
PRESET=paper-mlp at the paper's size.
"""

from __future__ import annotations

from dataclasses import replace

from models.frozen import ClipCapConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model, with_optim
from recipes.frozen import captions_only
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

CLIP, LANGUAGE = Prerequisite("vision", "clip"), Prerequisite("language_model", "lm")

PRESETS = {
    "tiny": Recipe(
        model=ClipCapConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=6_000, muon=True),
        budget=96_000,
        batch=96,
        prerequisites=(CLIP, LANGUAGE),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=ClipCapConfig.small(),
        optim=Optim(lr=2e-4, warmup=50_000),
        budget=2_000_000,
        batch=256,
        prerequisites=(CLIP,),
        tokenizer="gpt2",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=ClipCapConfig.paper(),
        optim=Optim(lr=2e-5, weight_decay=0.01, betas=(0.9, 0.999), warmup=5_000 * 40),
        budget=10 * 566_000,
        batch=40,
        tokenizer="gpt2",
        workers=8,
    ),
}
PRESETS["paper-mlp"] = replace(PRESETS["paper"], model=ClipCapConfig.paper_mlp())


def _adamw(recipe: AnyRecipe) -> AnyRecipe:
    """Captions only, without Muon, which has nothing to do for an MLP and a frozen language model."""
    return with_optim(muon=False)(captions_only(recipe))


OBJECTS = Cell("captioning", "object F1")
A_THIRD = "trained only on captions, a third of the samples; colour and shape of objects instead of COCO's metrics"

CLAIMS = (
    Claim(
        name="frozen-language-model",
        sentence="A transformer on a frozen language model describes images as well as an MLP with a tuned one, which has more to train.",
        paper="COCO, B@4 / METEOR / CIDEr / SPICE: 33.53 / 27.45 / 113.08 / 21.05 against 32.15 / 27.1 / 108.35 / 20.12",
        base=_adamw,
        arms=(
            Arm("transformer, frozen"),
            Arm("MLP, tuned", with_model(mapper="mlp", tune_language=True)),
            Arm("transformer, tuned", with_model(tune_language=True)),
        ),
        metric=OBJECTS,
        note=f"{A_THIRD}; all arms have AdamW at the same learning rate",
    ),
    Claim(
        name="transformer-for-a-frozen-language-model",
        sentence="If the language model is frozen, a transformer maps better than an MLP.",
        paper="section 4: with the language model frozen an MLP gives much worse captions (from memory)",
        base=_adamw,
        arms=(Arm("transformer"), Arm("MLP", with_model(mapper="mlp"))),
        metric=OBJECTS,
        note=A_THIRD,
    ),
    Claim(
        name="longer-prefix",
        sentence="A longer prefix gives better captions.",
        paper="figure 4: metrics rise with the length of the prefix, more for the transformer (from memory)",
        base=captions_only,
        arms=(
            Arm("k = 10", with_model(prefix=10, clip_length=10)),
            Arm("k = 4"),
            Arm("k = 1", with_model(prefix=1, clip_length=1)),
        ),
        metric=OBJECTS,
        note=A_THIRD,
    ),
)
