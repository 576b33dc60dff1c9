"""VisualGPT (arXiv 2102.10407): GPT-2 with cross-attention inside its layers, tuned on few pictures.

make train-visualgpt                          2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-visualgpt PRESET=small             one CUDA GPU; trains CLIP's small first, fetches GPT-2
torchrun --nproc-per-node 2 -m recipes.train visualgpt paper --data SHARDS

           paper (sections 3 and 4)                   small                          tiny
data       .1, .5 and 1 % of COCO's training pairs    a shard of scenes-small,       a shard of scenes-tiny,
                                                      1,000 pictures                 1,000 pictures
image      50 region features of 2,048, 3 layers      CLIP's small, frozen;          CLIP's tiny, frozen;
           of 768; here a frozen ResNet-50's grid     3 layers of 768                1 layer of 192
language   GPT-2, tuned                               GPT-2, tuned                   the suite's own, 1.9 M, tuned
batch      50                                         50                             48
seen       100 epochs or fewer                        100 k                          24 k
optimiser  AdamW, lr 1e-4, constant, then             lr 1e-4, cosine                lr 1e-3, cosine
           self-critical training; here warm-up, cosine

`--shards 0` trains on all pictures.
"""

from __future__ import annotations

from dataclasses import replace

from models.flamingo import VisualGPTConfig
from models.shared.backbones import LanguageConfig
from recipes.claims.claim import Arm, Cell, Change, Claim, with_model
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

EYES = Prerequisite("vision", "clip")

PRESETS = {
    "tiny": Recipe(
        model=VisualGPTConfig.tiny(),
        optim=Optim(lr=1e-3, warmup=2_400),
        budget=24_000,
        batch=48,
        shards=1,
        prerequisites=(EYES, Prerequisite("language_model", "lm")),
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=VisualGPTConfig.small(),
        optim=Optim(lr=1e-4, warmup=5_000),
        budget=100_000,
        batch=50,
        shards=1,
        prerequisites=(EYES,),
        tokenizer="gpt2",
        data=".data/scenes-small",
        workers=8,
    ),
    "paper": Recipe(
        model=VisualGPTConfig.paper(),
        optim=Optim(lr=1e-4, betas=(0.9, 0.999), warmup=5_000),
        budget=100 * 5_665,
        batch=50,
        tokenizer="gpt2",
        workers=8,
    ),
}


def all_pictures(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, shards=0)


def untrained_language(recipe: AnyRecipe) -> AnyRecipe:
    """With a language model of the same size and random weights; its tokenizer is learned from the same captions."""
    eyes, *_ = recipe.prerequisites
    return replace(recipe, prerequisites=(eyes,), tokenizer="train", model=replace(recipe.model, language=LanguageConfig()))


def gate(kind: str, tau: float = 0.2) -> Change:
    return with_model(gate=kind, tau=tau)


CLAIMS = (
    Claim(
        name="a-trained-language-model-helps-with-few-pictures",
        sentence="With few captioned pictures, a captioner that begins with a trained language model is better than one from scratch.",
        paper="abstract: up to 10.0 CIDEr more than the best baseline on .1, .5 and 1 % of COCO",
        arms=(Arm("trained"), Arm("from scratch", untrained_language)),
        metric=Cell("captioning", "object F1"),
        note="1,000 pictures; object F1 instead of CIDEr",
    ),
    Claim(
        name="self-resurrecting-gates-help",
        sentence="Self-resurrecting gates balance language and vision better than other gates, with few pictures.",
        paper="tables 4 and 5 (from memory): SRAU above plain cross-attention and meshed gates; tau above 0 better than 0",
        arms=(
            Arm("SRAU, tau .2"),
            Arm("SRAU, tau 0", gate("srau", 0.0)),
            Arm("plain sum", gate("plain")),
            Arm("Flamingo's gate", gate("tanh")),
        ),
        metric=Cell("captioning", "object F1"),
        note="1,000 pictures; object F1 instead of CIDEr",
    ),
)
