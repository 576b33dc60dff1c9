"""BLIP-2 (arXiv 2301.12597).

make train-blip2                              2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-blip2 PRESET=small                 one CUDA GPU; fetches CLIP's tower and OPT
torchrun --nproc-per-node 16 -m recipes.train blip2 paper --data SHARDS

           paper (section 3.4)                    small                         tiny
data       129 M pictures, LAION's by CapFilt     scenes-small                  scenes-tiny
image      EVA ViT-g/14 without its last layer    CLIP ViT-B/16, likewise       CLIP's tower, convolutions + 3 blocks
Q-Former   12 layers of 768 from BERT, 32         6 layers of 768 from          4 layers of 160 from scratch, 16 queries
           queries; here from scratch             scratch, 32 queries
language   OPT-2.7B to 6.7B, Flan-T5; here the    OPT-125M                      the suite's own, 1.9 M
           first
stage 1    250 k steps of 1,680                   2 M in batches of 256         48 k samples in batches of 96
stage 2    80 k steps of 1,920                    1 M in batches of 256;        64 k samples in batches of 96;
                                                  half of them questions        half of them questions
optimiser  AdamW, lr 1e-4, wd 0.05, betas .9 .98, the same lr                   Muon, lr 1e-3 and 1.5e-3
           2 k steps of warm-up, cosine, in stage 2
           to 5e-5; here to zero
augment    crops of half the area or more,        none                          none
           mirrored

An encoder-decoder for the second stage: ARGS="--model.language.source google/flan-t5-xl --tokenizer google/flan-t5-xl".
"""

from __future__ import annotations

from dataclasses import replace

from models.blip2 import BLIP2Config
from recipes.claims.claim import Arm, Cell, Change, Claim
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

PRESETS = {
    "tiny": Recipe(
        model=BLIP2Config.tiny(),
        stages=(
            Stage("represent", Optim(lr=1e-3, warmup=6_000, muon=True), budget=48_000, batch=96),
            Stage("generate", Optim(lr=1.5e-3, warmup=6_000, muon=True), budget=64_000, batch=96),
        ),
        prerequisites=(Prerequisite("vision", "clip"), Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=BLIP2Config.small(),
        stages=(
            Stage("represent", Optim(lr=1e-4, warmup=100_000), budget=2_000_000, batch=256),
            Stage("generate", Optim(lr=1e-4, warmup=50_000), budget=1_000_000, batch=256),
        ),
        tokenizer="facebook/opt-125m",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=BLIP2Config.paper(),
        stages=(
            Stage("represent", Optim(lr=1e-4, warmup=2_000 * 1_680), budget=250_000 * 1_680, batch=1_680),
            Stage("generate", Optim(lr=1e-4, warmup=2_000 * 1_920), budget=80_000 * 1_920, batch=1_920),
        ),
        tokenizer="facebook/opt-2.7b",
        workers=8,
    ),
}


def _stages(**budgets: int) -> Change:
    """Keep only the named stages, each with the given number of samples."""

    def change(recipe: AnyRecipe) -> AnyRecipe:
        return replace(recipe, stages=tuple(replace(each, budget=budgets[each.name]) for each in recipe.stages if each.name in budgets))

    return change


def _captions_only(recipe: AnyRecipe) -> AnyRecipe:
    """Train without questions, as in the paper."""
    short = _stages(represent=9_600, generate=24_000)(recipe)
    return replace(short, model=replace(short.model, questions=0.0))


def _without_generation(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, generation=0.0))


def _built_on(role: str, preset: str) -> Change:
    """Use another preset of the prerequisite with this role."""

    def change(recipe: AnyRecipe) -> AnyRecipe:
        return replace(recipe, prerequisites=tuple(replace(p, preset=preset) if p.role == role else p for p in recipe.prerequisites))

    return change


ANSWERS = Cell("vqa", "accuracy")
SECOND_STAGE = "only the second stage; half of the samples are questions"

CLAIMS = (
    Claim(
        name="first-stage",
        sentence="Without the first stage, the model learns to describe images less well in the second.",
        paper="figure 5: zero-shot VQA stays far lower without it, and with OPT it decreases during training",
        base=_captions_only,
        arms=(Arm("both stages"), Arm("second stage alone", _stages(generate=24_000))),
        metric=Cell("captioning", "shape F1"),
        note="trained only on captions, so the model describes images but does not answer questions: VQA, the paper's metric, cannot "
        "distinguish the arms",
    ),
    Claim(
        name="generation-helps-retrieval",
        sentence="The generation loss makes the first stage better at retrieval.",
        paper="table 6, R@1 on COCO in %: 85.4 and 68.3 with the generation loss, 84.5 and 67.2 without",
        base=_stages(represent=16_032),
        arms=(Arm("ITC, ITM and ITG"), Arm("ITC and ITM", _without_generation)),
        metric=Cell("retrieval", "i2t R@1 (500)"),
    ),
    Claim(
        name="better-image-encoder",
        sentence="A better image encoder gives better answers, all else equal.",
        paper="table 2: ViT-g does better than ViT-L, with both OPT and Flan-T5",
        base=_stages(generate=32_064),
        arms=(Arm("CLIP of 192 k pairs"), Arm("CLIP of 48 k pairs", _built_on("vision", "brief"))),
        metric=ANSWERS,
        note=SECOND_STAGE,
    ),
    Claim(
        name="better-language-model",
        sentence="A better language model gives better answers, all else equal.",
        paper="table 2: larger models of a family do better, and instruction-tuned Flan-T5 does better than OPT",
        base=_stages(generate=32_064),
        arms=(Arm("trained in full"), Arm("trained on a quarter", _built_on("language_model", "brief"))),
        metric=ANSWERS,
        note=SECOND_STAGE,
    ),
)
