"""MaskVLM (arXiv 2208.02131).

make train-maskvlm                            2 CPU cores; trains its image encoder first (make train-clip)
make train-maskvlm PRESET=small               one CUDA GPU
torchrun --nproc-per-node 16 -m recipes.train maskvlm paper --data SHARDS     fetches an image encoder of ImageNet and RoBERTa

           paper (section 4.1)                        small                   tiny
data       COCO, VG, SBU, CC3M: 4 M pairs             scenes-small            scenes-tiny, 20 k pictures
encoders   ViT-B/16 and RoBERTa-base, pretrained      12 x 384 from CLIP,     3 x 160 from CLIP,
                                                      6 x 384                 2 x 128
cross      3 + 3 blocks of 768, image decoder 3       3 + 3 x 384, 3          2 + 2 x 128, 1
masked     60 % of patches, 30 % of tokens            the same                the same
batch      512                                        1,024                   64
seen       50 epochs = 200 M                          6.4 M                   32 k, after CLIP's 192 k
then       fine-tuned for retrieval                   -                       22 k, contrast and matching
optimiser  AdamW, wd 0.05, lr 3e-4, encoders 1e-5,    lr 1e-3                 Muon, lr 1e-3, then 5e-4
           5 epochs of warm-up, cosine
"""

from __future__ import annotations

from dataclasses import replace

from models.maskvlm import MaskVLMConfig
from recipes.claims.claim import Arm, Cell, Change, Claim
from recipes.claims.measures.masked import filled_in, words_found
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

ENCODER = (Prerequisite("image_encoder", "clip"),)

PRESETS = {
    "tiny": Recipe(
        model=MaskVLMConfig.tiny(),
        stages=(
            Stage("pretraining", Optim(lr=1e-3, warmup=4_800, muon=True), budget=32_000, batch=64),
            Stage("retrieval", Optim(lr=5e-4, warmup=3_200, muon=True), budget=22_400, batch=64),
        ),
        prerequisites=ENCODER,
    ),
    "small": Recipe(
        model=MaskVLMConfig.small(),
        optim=Optim(lr=1e-3, warmup=500_000),
        budget=6_400_000,
        batch=1024,
        prerequisites=ENCODER,
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=MaskVLMConfig.paper(),
        optim=Optim(lr=3e-4, warmup=5 * 4_000_000),
        budget=50 * 4_000_000,
        batch=512,
        tokenizer="roberta-base",
        workers=8,
    ),
}


def brief(recipe: AnyRecipe) -> AnyRecipe:
    """Only the pretraining stage, with three fifths of its samples and half of its warm-up."""
    stage = recipe.schedule[0]
    optim = replace(stage.optim, warmup=stage.optim.warmup // 2)
    return replace(recipe, stages=(replace(stage, budget=stage.budget * 3 // 5, optim=optim),))


def _few(recipe: AnyRecipe) -> AnyRecipe:
    """`brief`, on a tenth of the embedded data's 20 shards."""
    return replace(brief(recipe), shards=2)


def _without(*terms: str) -> Change:
    return lambda recipe: replace(recipe, model=replace(recipe.model, weights=replace(recipe.model.weights, **dict.fromkeys(terms, 0.0))))


def _hide_both(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, model=replace(recipe.model, hide_both=True))


JOINT = Arm("pixels and words")
RECALL = Cell("retrieval", "i2t R@1 (500)")

CLAIMS = (
    Claim(
        name="joint-masking",
        sentence="Reconstructing pixels and words, each given the other, gives better retrieval than only words, or neither.",
        paper="section 4, from memory: joint conditional masking improves retrieval over masking only words, after the same pretraining",
        base=brief,
        arms=(JOINT, Arm("words alone", _without("mim")), Arm("neither", _without("mim", "mlm"))),
        metric=RECALL,
    ),
    Claim(
        name="limited-data",
        sentence="Reconstructing pixels and words also improves retrieval if there is little data.",
        paper="section 4.3, from memory: the advantage over contrastive and matching losses grows as the training data shrink",
        base=_few,
        arms=(JOINT, Arm("neither", _without("mim", "mlm"))),
        metric=RECALL,
        note="a tenth of the images, all of which its image encoder has seen as part of CLIP; compare with joint-masking",
    ),
    Claim(
        name="whole-other-modality",
        sentence="A model trained to predict masked words from unmasked images predicts them better than one trained with masked images.",
        paper="section 3.2: each modality is reconstructed from itself, masked, and the other one, unmasked",
        base=brief,
        arms=(JOINT, Arm("both hidden", _hide_both)),
        metric=words_found(),
        note="both are evaluated with unmasked images",
    ),
    Claim(
        name="the-text-helps-to-paint",
        sentence="Masked parts of objects are reconstructed better given the caption than given another caption or none.",
        paper="qualitative examples: reconstructions given the text show the objects that it names",
        arms=(
            Arm("own caption", metric=filled_in("objects", "own caption")),
            Arm("another caption", metric=filled_in("objects", "another caption")),
            Arm("no text", metric=filled_in("objects", "no text")),
        ),
        metric=filled_in("objects", "own caption"),
        better="lower",
    ),
)
