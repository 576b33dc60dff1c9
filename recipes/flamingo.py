"""Flamingo (arXiv 2204.14198).

make train-flamingo                           2 CPU cores; trains its image tower (make train-clip) and language model (make train-lm) first
make train-flamingo PRESET=small              one CUDA GPU; trains CLIP's small first, fetches Pythia
torchrun --nproc-per-node 64 -m recipes.train flamingo paper --data SHARDS

           paper (section 3, appendix B; 3B)          small                          tiny
data       M3W, 43 M pages of up to 5 pictures;       pages-small: scenes-small and  pages-tiny: 20 k samples of
           ALIGN and LTIP, pairs; VTP, clips          half as many pages             scenes-tiny and 10 k pages
image      NFNet-F6 by contrast, 320 px, frozen       CLIP's small, frozen           CLIP's tiny, frozen
resampler  6 layers of 1,536, 64 latents              4 layers of 384, 32 latents    2 layers of 160, 8 latents
language   Chinchilla 1.4 B, frozen; here Pythia      Pythia 410 M                   the suite's own, 1.9 M
blocks     in front of each of 24 layers              of every fourth of 24 layers   of each of 4 layers
losses     M3W 1, ALIGN .2, LTIP .2, VTP .03          pages 1, pairs .2              pages 1, pairs 1
batch      not found; here 256                        128                            48
seen       500 k steps                                1 M                            48 k
optimiser  AdamW, lr to 1e-4 in 5 k steps, then       lr 3e-4, cosine                lr 2e-3, Muon, cosine
           constant, wd .1; here cosine to zero

make eval-flamingo evaluates on the pages. TEST=.data/scenes-tiny compares it with the other models on the data set that they share.
"""

from __future__ import annotations

from dataclasses import replace

from models.flamingo import FlamingoConfig
from recipes.claims.claim import Arm, Cell, Claim, with_model
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe

SHARED = (
    (".data/pages-tiny", ".data/scenes-tiny"),
    (".data/pages-small", ".data/scenes-small"),
)
EYES = Prerequisite("vision", "clip", data=SHARED)

PRESETS = {
    "tiny": Recipe(
        model=FlamingoConfig.tiny(),
        optim=Optim(lr=2e-3, warmup=2_400, muon=True),
        budget=48_000,
        batch=48,
        prerequisites=(EYES, Prerequisite("language_model", "lm", data=SHARED)),
        tokenizer="language_model",
        data=".data/pages-tiny",
    ),
    "small": Recipe(
        model=FlamingoConfig.small(),
        optim=Optim(lr=3e-4, weight_decay=0.1, warmup=50_000),
        budget=1_000_000,
        batch=128,
        prerequisites=(EYES,),
        tokenizer="EleutherAI/pythia-410m",
        data=".data/pages-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=FlamingoConfig.paper(),
        optim=Optim(lr=1e-4, weight_decay=0.1, warmup=5_000 * 256),
        budget=500_000 * 256,
        batch=256,
        tokenizer="EleutherAI/pythia-1.4b",
        workers=8,
    ),
}


def brief(recipe: AnyRecipe) -> AnyRecipe:
    """A third of the samples."""
    stage = recipe.schedule[0]
    return replace(recipe, budget=stage.budget // 3)


def without_pages(recipe: AnyRecipe) -> AnyRecipe:
    return with_model(pages=0.0)(recipe)


def tuned(recipe: AnyRecipe) -> AnyRecipe:
    return with_model(tune_language=True)(recipe)


CLAIMS = (
    Claim(
        name="pairs-in-context-help",
        sentence="The more pairs of picture and text come before, the better the next text.",
        paper="figure 2 and table 1: COCO CIDEr of the 80 B model 84.3, 103.2 and 113.8 with 0, 4 and 32 shots",
        base=brief,
        arms=(
            Arm("four pairs"),
            Arm("two pairs", metric=Cell("pages", "place 2", "pages")),
            Arm("no pair", metric=Cell("pages", "place 0", "pages")),
            Arm("last picture only", metric=Cell("pages", "last picture only", "pages")),
        ),
        metric=Cell("pages", "place 4", "pages"),
        note="accuracy on pages with a hidden rule instead of captions of photos",
    ),
    Claim(
        name="gates-and-last-picture-help",
        sentence="Tanh gates, and texts that see only the last picture, are better than no gates and texts that see all pictures before.",
        paper="table 3, mean of five tasks with 4 shots, 3 B: 70.7; without gates 66.5; all pictures 63.5",
        base=brief,
        arms=(Arm("as in the paper"), Arm("no gates", with_model(gated=False)), Arm("all pictures", with_model(all_pictures=True))),
        metric=Cell("pages", "place 4", "pages"),
    ),
    Claim(
        name="pages-matter",
        sentence="Without pages of several pictures in training, a model learns little from pairs in context.",
        paper="table 3, the same mean: 70.7; without M3W 53.4",
        base=brief,
        arms=(Arm("with pages"), Arm("without", without_pages)),
        metric=Cell("pages", "place 4", "pages"),
    ),
    Claim(
        name="frozen-language-model",
        sentence="A frozen language model is better than a tuned one.",
        paper="table 3, the same mean: 70.7; fine-tuned 62.7, from scratch 57.8",
        base=brief,
        arms=(Arm("frozen"), Arm("fine-tuned", tuned)),
        metric=Cell("pages", "place 4", "pages"),
    ),
    Claim(
        name="perceiver-against-mlp",
        sentence="The Perceiver resampler is better than an MLP.",
        paper="table 3, the same mean: 70.7; MLP 66.6",
        base=brief,
        arms=(Arm("perceiver"), Arm("MLP", with_model(bridge="mlp"))),
        metric=Cell("pages", "place 4", "pages"),
    ),
)
