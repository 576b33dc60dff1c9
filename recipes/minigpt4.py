"""MiniGPT-4 (arXiv 2304.10592).

make train-minigpt4                           2 CPU cores; trains BLIP-2 (make train-blip2) and the language model (make train-lm) first
make train-minigpt4 PRESET=small              one CUDA GPU; trains BLIP-2's small first, fetches a chat model
make chat-minigpt4 IMAGE=picture.png          chat about an image on the terminal
torchrun --nproc-per-node 4 -m recipes.train minigpt4 paper --data SHARDS

           paper (section 3)                     small                         tiny
data       5 M of LAION, CC and SBU, then        scenes-small, then            scenes-tiny, then
           3,500 corrected descriptions          generated conversations       generated conversations
image      EVA ViT-g/14 and BLIP-2's Q-Former    BLIP-2's small                BLIP-2's tiny
language   Vicuna-13B                            SmolLM2-135M-Instruct         the suite's own, 1.9 M
trained    one linear layer, 3.9 M               one linear layer, 443 k       one linear layer, 31 k
captions   20 k steps of 256, lr 1e-4,           1 M in batches of 256,        40 k samples in batches of 64,
           warm-up 5 k steps                     lr 5e-4                       lr 2e-3
tuning     400 steps of 12, lr 3e-5,             9,600 in batches of 12,       9,600 samples in batches of 12,
           warm-up 200 steps                     lr 1e-4                       lr 5e-4
optimiser  AdamW, wd 0.05, cosine to 8e-5        cosine to zero                cosine to zero
           and to 1e-5; here to zero

The paper's 3,500 descriptions are seen 1.4 times; here each of 9,600 images has one conversation, generated from its ground truth.
"""

from __future__ import annotations

from dataclasses import replace

from models.minigpt4 import MiniGPT4Config
from models.shared.chat import SAMPLED
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.claims.measures.reply_format import in_the_form_asked_for
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

EYES = Prerequisite("vision", "blip2")

PRESETS = {
    "tiny": Recipe(
        model=MiniGPT4Config.tiny(),
        stages=(
            Stage("captions", Optim(lr=2e-3, warmup=4_000), budget=40_000, batch=64),
            Stage("instructions", Optim(lr=5e-4, warmup=600), budget=9_600, batch=12),
        ),
        prerequisites=(EYES, Prerequisite("language_model", "lm")),  # the run that BLIP-2 has learned with
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=MiniGPT4Config.small(),
        stages=(
            Stage("captions", Optim(lr=5e-4, warmup=50_000), budget=1_000_000, batch=256),
            Stage("instructions", Optim(lr=1e-4, warmup=600), budget=9_600, batch=12),
        ),
        prerequisites=(EYES,),
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=MiniGPT4Config.paper(),
        stages=(
            Stage("captions", Optim(lr=1e-4, betas=(0.9, 0.999), warmup=5_000 * 256), budget=20_000 * 256, batch=256),
            Stage("instructions", Optim(lr=3e-5, betas=(0.9, 0.999), warmup=200 * 12), budget=400 * 12, batch=12),
        ),
        prerequisites=(EYES,),
        tokenizer="lmsys/vicuna-13b-v1.5",
        workers=8,
    ),
}


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """Half of the captions."""
    first, *rest = recipe.schedule
    return replace(recipe, stages=(replace(first, budget=first.budget // 2), *rest))


def _first_stage(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, stages=recipe.schedule[:1])


CLAIMS = (
    Claim(
        name="second-stage-mends-replies",
        sentence="After training only on captions, replies are often ill-formed; a small set of conversations fixes that.",
        paper="section 4.3: detailed descriptions fail in 35 % after the first stage and in 2 % after the second, poems in 32 % and 1 %",
        base=_short,
        arms=(Arm("both stages"), Arm("captions alone", _first_stage)),
        metric=in_the_form_asked_for(how=SAMPLED),
        note="a reply fails if it does not end, repeats a phrase, or has another format than requested; sampled, as in a chat",
    ),
    Claim(
        name="sampled-replies-repeat-less",
        sentence="Sampled replies fail less often than greedy ones.",
        paper="not compared; Holtzman et al. (1904.09751) find that the most likely texts are repetitive",
        base=_short,
        arms=(Arm("sampled"), Arm("greedy", metric=in_the_form_asked_for())),
        metric=in_the_form_asked_for(how=SAMPLED),
    ),
    Claim(
        name="one-linear-layer",
        sentence="One linear layer is enough: neither more layers nor a fine-tuned Q-Former gives better answers.",
        paper="section 4.4, AOK-VQA / GQA in %: 58.2 / 32.2; three layers 49.7 / 31.0; Q-Former tuned 52.1 / 28.0; none 56.9 / 33.4",
        base=_short,
        arms=(
            Arm("one linear layer"),
            Arm("three layers", with_model(bridge=3)),
            Arm("Q-Former learns, too", with_model(tune_qformer=True)),
            Arm("no Q-Former", with_model(queries=0)),
        ),
        metric=Cell("vqa", "accuracy"),
        note="without a Q-Former, each group of four neighbouring patches becomes one vector",
    ),
)
