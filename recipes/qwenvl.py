"""Qwen-VL (arXiv 2308.12966): one cross-attention of learned queries with 2D positions, boxes as text, three stages.

make train-qwenvl                             2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-qwenvl PRESET=small                one CUDA GPU; fetches CLIP's tower and a chat model
make train-qwenvl DATA=several                requests about several pictures, too: what differs, which one shows a red star
make chat-qwenvl IMAGE=picture.png            chat about an image on the terminal: "where is the red star?"
torchrun --nproc-per-node 8 -m recipes.train qwenvl paper --data SHARDS

           paper (sections 2, 3; table 8)         small                         tiny
data       1.4 G pairs; 76.8 M samples of seven   scenes-small, and tasks and   scenes-tiny, and tasks and
           tasks; 350 k dialogues                 dialogues of its annotations  dialogues of its annotations
image      ViT-bigG/14, 448 px, 1,024 patches     CLIP ViT-B/16, 196 patches    CLIP's tiny, 64 patches of 8 px
           (stage 1: 224 px)
adapter    256 queries of 4,096, 32 heads         64 queries of 576, 9 heads    16 queries of 192, 6 heads
language   Qwen-7B; here Qwen1.5-7B               SmolLM2-135M-Instruct         the suite's own, 1.9 M
captions   tower and adapter: 50 k steps of       1 M in batches of 256,        6 k images with 4 captions each,
           30,720, lr 2e-4, warm-up 500 steps     lr 2e-4                       in batches of 16, lr 1e-3
tasks      everything: 19 k steps of 4,096,       1 M in batches of 128,        20 k images with 4 tasks each,
           lr 5e-5, warm-up 400 steps             lr 5e-5                       in batches of 16, lr 1e-3, Muon
chat       adapter and language model: 8 k steps  200 k in batches of 128,      4 k images with 4 requests and a box,
           of 128, lr 1e-5, warm-up 3,000 steps   lr 1e-5                       in batches of 16, lr 3e-4, Muon
optimiser  AdamW, betas .9 .98, eps 1e-6, wd .05, cosine; the paper's ends at a tenth to a two-hundredth of the peak, ours at zero
"""

from __future__ import annotations

from dataclasses import replace

from models.llava import QwenVLConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model, with_optim
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage


def _optim(lr: float, warmup: int) -> Optim:
    return Optim(lr=lr, weight_decay=0.05, betas=(0.9, 0.98), eps=1e-6, warmup=warmup)


PRESETS = {
    "tiny": Recipe(
        model=QwenVLConfig.tiny(),
        stages=(
            Stage("captions", Optim(lr=1e-3, warmup=800), budget=6_000, batch=16),
            Stage("tasks", Optim(lr=1e-3, warmup=1_600, muon=True), budget=20_000, batch=16),
            Stage("chat", Optim(lr=3e-4, warmup=400, muon=True), budget=4_000, batch=16),
        ),
        prerequisites=(Prerequisite("vision", "clip"), Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=QwenVLConfig.small(),
        stages=(
            Stage("captions", _optim(2e-4, 10_000), budget=1_000_000, batch=256),
            Stage("tasks", _optim(5e-5, 20_000), budget=1_000_000, batch=128),
            Stage("chat", _optim(1e-5, 20_000), budget=200_000, batch=128),
        ),
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=QwenVLConfig.paper(),
        stages=(
            Stage("captions", _optim(2e-4, 500 * 30_720), budget=50_000 * 30_720, batch=30_720),
            Stage("tasks", _optim(5e-5, 400 * 4_096), budget=19_000 * 4_096, batch=4_096),
            Stage("chat", _optim(1e-5, 3_000 * 128), budget=8_000 * 128, batch=128),
        ),
        tokenizer="Qwen/Qwen1.5-7B",
        workers=8,
    ),
}


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """Half of the samples, and no conversations."""
    return replace(recipe, stages=tuple(replace(stage, budget=stage.budget // 2) for stage in recipe.stages[:2]))


def _adamw(recipe: AnyRecipe) -> AnyRecipe:
    """As `_short`, without Muon, which has nothing to do if the language model is frozen."""
    return with_optim(muon=False)(_short(recipe))


HALF = "half of the samples of the first two stages, without the third"
BOXES = Cell("referring", "accuracy")

CLAIMS = (
    Claim(
        name="places",
        sentence="An adapter that knows where queries and patches are locates objects better than one that does not.",
        paper="section 2.1: positions keep details of places that compression may lose; not compared",
        base=_short,
        arms=(Arm("2D places"), Arm("none", with_model(places=False))),
        metric=BOXES,
        note=f"{HALF}; the patches' states know their places from the tower in both arms",
    ),
    Claim(
        name="queries",
        sentence="A moderate number of queries is best: few lose information, many cost as much and gain nothing.",
        paper="appendix E.2: of 64, 144, 256 and 400 queries 256 have the lowest loss in the first stage",
        base=_short,
        arms=(Arm("16 queries"), Arm("4 queries", with_model(queries=4)), Arm("64 queries", with_model(queries=64))),
        metric=BOXES,
        note=f"{HALF}; 64 patches; accuracy of boxes instead of the loss",
    ),
    Claim(
        name="tuned-language-model",
        sentence="With the language model trained in the second stage, answers are better than with the adapter and the tower alone.",
        paper="not compared; section 3.2 trains all of it, so that it learns the tasks",
        base=_adamw,
        arms=(Arm("tuned"), Arm("frozen", with_model(tune_language=False))),
        metric=Cell("vqa", "accuracy"),
        note=f"{HALF}; both arms have AdamW at the same learning rate",
    ),
)
