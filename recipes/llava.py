"""LLaVA-1.5 (arXiv 2310.03744; version 1: 2304.08485).

make train-llava                              2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-llava PRESET=small                 one CUDA GPU; fetches CLIP's tower and a chat model
make chat-llava IMAGE=picture.png             chat about an image on the terminal
torchrun --nproc-per-node 8 -m recipes.train llava paper --data SHARDS

           paper (1.5: section 3, table 9)        small                         tiny
data       558 k captions, then 665 k             scenes-small, then            scenes-tiny, then
           conversations and questions            generated conversations       generated conversations
image      CLIP ViT-L/14, 336 px, 576 states      CLIP ViT-B/16, 196 states     CLIP's tiny, 16 states
           before the last block                  before the last block         before the last block
MLP        1,024 - 4,096 - 4,096, 21.0 M          768 - 576 - 576, 0.8 M        160 - 192 - 192, 68 k
language   Vicuna-7B                              SmolLM2-135M-Instruct         the suite's own, 1.9 M
align      the MLP: batches of 256, lr 1e-3,      1 M in batches of 256         8 k images with 4 captions each,
           warm-up 3 %                                                          in batches of 16, lr 2e-3
tune       the MLP and the language model:        500 k in batches of 128       12 k images with 5 requests each,
           batches of 128, lr 2e-5, warm-up 3 %   lr 5e-5                       in batches of 16, lr 1e-3, Muon
optimiser  AdamW, wd 0, betas .9 .999, cosine     the same                      AdamW, cosine

Low-rank updates instead of the whole language model, as the paper's second setting: ARGS="--model.rank 128 --stages.1.optim.lr 2e-4".
Version 1: ARGS="--model.bridge 1".
"""

from __future__ import annotations

from dataclasses import replace

from models.llava import LLaVAConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model, with_optim
from recipes.claims.measures.reply_format import in_the_form_asked_for
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

NEEDS = (Prerequisite("vision", "clip"), Prerequisite("language_model", "lm"))


def _optim(lr: float, budget: int) -> Optim:
    return Optim(lr=lr, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, warmup=round(0.03 * budget))


PRESETS = {
    "tiny": Recipe(
        model=LLaVAConfig.tiny(),
        stages=(
            Stage("align", Optim(lr=2e-3, warmup=800), budget=8_000, batch=16),
            Stage("tune", Optim(lr=1e-3, warmup=1_600, muon=True), budget=12_000, batch=16),
        ),
        prerequisites=NEEDS,
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=LLaVAConfig.small(),
        stages=(
            Stage("align", _optim(1e-3, 1_000_000), budget=1_000_000, batch=256),
            Stage("tune", _optim(5e-5, 500_000), budget=500_000, batch=128),
        ),
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=LLaVAConfig.paper(),
        stages=(
            Stage("align", _optim(1e-3, 558_000), budget=558_000, batch=256),
            Stage("tune", _optim(2e-5, 665_000), budget=665_000, batch=128),
        ),
        tokenizer="lmsys/vicuna-7b-v1.5",
        workers=8,
    ),
}


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """Half of the second stage."""
    first, second = recipe.stages
    return replace(recipe, stages=(first, replace(second, budget=second.budget // 2)))


def _adamw(recipe: AnyRecipe) -> AnyRecipe:
    """As `_short`, without Muon, which has nothing to do if the language model is frozen."""
    return with_optim(muon=False)(_short(recipe))


def _second_stage_alone(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, stages=recipe.stages[1:])


ANSWERS = Cell("vqa", "accuracy")
HALF = "half of the second stage"

CLAIMS = (
    Claim(
        name="tuned-language-model",
        sentence="Tuning the language model gives better answers than training only what connects it to the image tower.",
        paper="not compared alone; 2304.08485, table 4, LLaVA-Bench (COCO): 21.5 without instruction tuning, 85.1 with it",
        base=_adamw,
        arms=(Arm("tuned"), Arm("frozen", with_model(tune_language=False)), Arm("low-rank updates", with_model(rank=8))),
        metric=ANSWERS,
        note=f"{HALF}; all arms have AdamW at the same learning rate; the language model has not read the template of conversations before",
    ),
    Claim(
        name="align-first",
        sentence="Without the first stage, which aligns image and language, the second one learns less.",
        paper="2304.08485, table 8, ScienceQA in %: 90.92 with it, 85.81 without",
        base=_short,
        arms=(Arm("both stages"), Arm("second stage alone", _second_stage_alone)),
        metric=ANSWERS,
        note=HALF,
    ),
    Claim(
        name="mlp",
        sentence="Two layers with a GELU connect image and language better than one linear layer.",
        paper="2310.03744, table 2, MME / MM-Vet / GQA: 1355.2 / 27.8 / 47.3 with the MLP, 1323.8 / 26.3 / 46.8 with a linear layer",
        base=_short,
        arms=(Arm("MLP"), Arm("linear", with_model(bridge=1))),
        metric=ANSWERS,
        note=HALF,
    ),
    Claim(
        name="penultimate-states",
        sentence="The image tower's states before its last block are better than the last ones.",
        paper="2304.08485, table 8, ScienceQA in %: 90.92 against 89.96",
        base=_short,
        arms=(Arm("before the last block"), Arm("after it", with_model(states="last"))),
        metric=ANSWERS,
        note=f"{HALF}; the tower has three blocks",
    ),
    Claim(
        name="format-prompt",
        sentence="If requests say which form of answer they ask for, a model that also writes sentences answers in one word when asked to.",
        paper="2310.03744, table 2 and section 3.2: MME 1323.8 with the prompt, 1197 without",
        base=_short,
        arms=(Arm("with the prompt"), Arm("without", with_model(format_prompt=False))),
        metric=in_the_form_asked_for("word"),
        note=f"{HALF}; a quarter of the training questions are answered by a sentence; without the prompt nothing tells which",
    ),
)
