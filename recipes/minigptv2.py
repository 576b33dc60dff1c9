"""MiniGPT-v2 (arXiv 2310.09478): MiniGPT-4 without a Q-Former, with boxes as text, task identifiers and LoRA.

make train-minigptv2                          2 CPU cores; trains BLIP-2 (make train-blip2) and the language model (make train-lm) first
make train-minigptv2 PRESET=small             one CUDA GPU; trains BLIP-2's small first, fetches a chat model
make chat-minigptv2 IMAGE=picture.png         chat about an image on the terminal: "[refer] give me the location of the red star"
torchrun --nproc-per-node 8 -m recipes.train minigptv2 paper --data SHARDS

           paper (section 3)                      small                         tiny
data       weakly labelled and fine-grained;      tasks generated from          tasks generated from
           fine-grained; with instructions        scenes-small                  scenes-tiny
image      EVA ViT-g/14 at 448 px, 256 vectors    BLIP-2's small, 49 vectors    BLIP-2's tiny, 4 vectors
language   LLaMA-2-chat-7B, LoRA of rank 64       SmolLM2-135M-Instruct, 64     the suite's own, 1.9 M, LoRA of rank 8
stage 1    400 k steps of 96, lr 1e-4             1 M in batches of 96, 5e-4    48 k in batches of 48, lr 2e-3
stage 2    50 k steps of 64, lr 1e-5              400 k in batches of 64, 1e-4  48 k in batches of 48, lr 1e-3
stage 3    35 k steps of 24, lr 1e-5              100 k in batches of 24, 1e-4  12 k in batches of 24, lr 5e-4
           (all three from memory)
optimiser  AdamW, wd 0.05, cosine                 cosine to zero                cosine to zero
"""

from __future__ import annotations

from dataclasses import replace

from models.minigpt4 import MiniGPTv2Config
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

EYES = Prerequisite("vision", "blip2")

PRESETS = {
    "tiny": Recipe(
        model=MiniGPTv2Config.tiny(),
        stages=(
            Stage("pretraining", Optim(lr=2e-3, warmup=4_800), budget=48_000, batch=48),
            Stage("tasks", Optim(lr=1e-3, warmup=960), budget=48_000, batch=48),
            Stage("instructions", Optim(lr=5e-4, warmup=480), budget=12_000, batch=24),
        ),
        prerequisites=(EYES, Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=MiniGPTv2Config.small(),
        stages=(
            Stage("pretraining", Optim(lr=5e-4, warmup=50_000), budget=1_000_000, batch=96),
            Stage("tasks", Optim(lr=1e-4, warmup=10_000), budget=400_000, batch=64),
            Stage("instructions", Optim(lr=1e-4, warmup=2_000), budget=100_000, batch=24),
        ),
        prerequisites=(EYES,),
        tokenizer="HuggingFaceTB/SmolLM2-135M-Instruct",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=MiniGPTv2Config.paper(),
        stages=(
            Stage("pretraining", Optim(lr=1e-4, betas=(0.9, 0.999), warmup=1_000 * 96), budget=400_000 * 96, batch=96),
            Stage("tasks", Optim(lr=1e-5, betas=(0.9, 0.999), warmup=1_000 * 64), budget=50_000 * 64, batch=64),
            Stage("instructions", Optim(lr=1e-5, betas=(0.9, 0.999), warmup=1_000 * 24), budget=35_000 * 24, batch=24),
        ),
        prerequisites=(EYES,),
        tokenizer="meta-llama/Llama-2-7b-chat-hf",
        workers=8,
    ),
}


def _short(recipe: AnyRecipe) -> AnyRecipe:
    """Half of the samples, and no conversations."""
    return replace(recipe, stages=tuple(replace(stage, budget=stage.budget // 2) for stage in recipe.stages[:2]))


HALF = "half of the samples of the first two stages, without the third"

CLAIMS = (
    Claim(
        name="task-identifiers",
        sentence="Task identifiers help a model that learns several tasks to answer questions.",
        paper="mean over the question answering sets, in %: 49.8 with them, 48.6 without",
        base=_short,
        arms=(Arm("with identifiers"), Arm("without", with_model(identifiers=False))),
        metric=Cell("vqa", "accuracy"),
        note=HALF,
    ),
    Claim(
        name="task-identifiers-for-boxes",
        sentence="Task identifiers help a model that learns several tasks to locate objects.",
        paper="not compared; RefCOCO val 88.69 % with them",
        base=_short,
        arms=(Arm("with identifiers"), Arm("without", with_model(identifiers=False))),
        metric=Cell("referring", "accuracy"),
        note=HALF,
    ),
)
