"""FLAVA (arXiv 2112.04482).

make train-flava                              2 CPU cores; trains a coarse image tokenizer and the image encoder that
                                              it starts from (make train-classifier) first
make train-flava PRESET=small                 one CUDA GPU
torchrun --nproc-per-node 64 -m recipes.train flava paper --data SHARDS       fetches DINO's image encoder and BERT's tokenizer

           paper (section 3)                          small                   tiny
data       PMD 70 M pairs .70, ImageNet-1k .15,       scenes-small, in the    scenes-tiny, in the
           CCNews and BookCorpus .15                  same shares             same shares
encoders   12 x 768, 12 x 768, fusion 6 x 768         12 x 384, 6 x 256, 4    3 x 160, 2 x 128, 2
targets    DALL-E's 8,192 codes, 14 x 14              1,024 codes, 16 x 16    125 codes, 8 x 8
first      DINO image encoder, masked text encoder    1 M images or texts     8 k, image encoder
                                                                              trained on labels
seen       1.2 G                                      6.4 M                   62 k
then       VQAv2, fine-tuned                          1 M                     26 k
batch      8,192                                      1,024                   128, then 64
optimiser  AdamW, lr 1e-3, wd 0.1, betas .9 .999,     the same lr and wd      Muon, lr 1e-3, wd 0.05
           10 k steps of warm-up, cosine
"""

from __future__ import annotations

from dataclasses import replace

from models.flava import FLAVAConfig
from recipes.claims.claim import Arm, Cell, Claim
from recipes.claims.measures.masked import words_found
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite, Recipe, Stage

CODES = Prerequisite("image_tokenizer", "vq")
COARSE = Prerequisite("image_tokenizer", "vq", "coarse")  # 125 codes, where CM3leon draws with 1,000
ENCODER = Prerequisite("image_encoder", "classifier")

PRESETS = {
    "tiny": Recipe(
        model=FLAVAConfig.tiny(),
        stages=(
            Stage("unimodal", Optim(lr=1.5e-3, warmup=2_000, muon=True), budget=8_000, batch=128),
            Stage("joint", Optim(lr=1e-3, warmup=4_800, muon=True), budget=62_400, batch=64),
            Stage("vqa", Optim(lr=5e-4, warmup=2_000, muon=True), budget=25_600, batch=64),
        ),
        prerequisites=(COARSE, ENCODER),
        tokenizer="train+questions",
    ),
    "small": Recipe(
        model=FLAVAConfig.small(),
        stages=(
            Stage("unimodal", Optim(lr=1e-3, weight_decay=0.1, warmup=100_000), budget=1_000_000, batch=1024),
            Stage("joint", Optim(lr=1e-3, weight_decay=0.1, warmup=500_000), budget=6_400_000, batch=1024),
            Stage("vqa", Optim(lr=3e-4, weight_decay=0.1, warmup=50_000), budget=1_000_000, batch=1024),
        ),
        prerequisites=(CODES,),
        tokenizer="train+questions",
        data=".data/scenes-small",
        workers=8,
        memory_gb=16,
    ),
    "paper": Recipe(
        model=FLAVAConfig.paper(),
        stages=(
            Stage(
                "unimodal", Optim(lr=5e-4, weight_decay=0.1, betas=(0.9, 0.999), warmup=10_000 * 2048), budget=125_000 * 2048, batch=2048
            ),
            Stage("joint", Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999), warmup=10_000 * 8192), budget=150_000 * 8192, batch=8192),
        ),
        prerequisites=(Prerequisite("image_tokenizer", "vq", "paper-112"),),
        tokenizer="bert-base-uncased",
        workers=8,
    ),
}


def brief(recipe: AnyRecipe) -> AnyRecipe:
    """A quarter of the samples and of the warm-up of each stage."""

    def quarter(stage: Stage) -> Stage:
        return replace(stage, budget=stage.budget // 4, optim=replace(stage.optim, warmup=stage.optim.warmup // 4))

    return replace(recipe, stages=tuple(quarter(stage) for stage in recipe.stages))


def _contrastive_only(recipe: AnyRecipe) -> AnyRecipe:
    weights = replace(recipe.model.weights, itm=0.0, mmm_image=0.0, mmm_text=0.0)
    return replace(recipe, model=replace(recipe.model, weights=weights))


def _from_scratch(recipe: AnyRecipe) -> AnyRecipe:
    """Without the pretrained image encoder and without the unimodal stage."""
    needs = tuple(each for each in recipe.prerequisites if each.role != "image_encoder")
    return replace(recipe, prerequisites=needs, stages=recipe.stages[1:])


FULL = Arm("full")

CLAIMS = (
    Claim(
        name="fusion-losses",
        sentence="Masked multimodal modelling and matching give a better multimodal model than the contrastive loss alone.",
        paper="table 4: 69.11 against 66.25, the average of the multimodal tasks",
        base=brief,
        arms=(FULL, Arm("contrast, pictures and texts alone", _contrastive_only)),
        metric=Cell("vqa", "accuracy"),
    ),
    Claim(
        name="unimodal-initialisation",
        sentence="Unimodal pretraining of the encoders, on images and on texts, gives a better multimodal model.",
        paper="table 4: 69.92 with initialisation against 67.32 without, the average of the multimodal tasks",
        base=brief,
        arms=(FULL, Arm("from scratch", _from_scratch)),
        metric=Cell("retrieval", "i2t R@1 (500)"),
        note="supervision by labels replaces DINO's self-supervision",
    ),
    Claim(
        name="words-need-the-picture",
        sentence="The fusion encoder predicts masked words better with the correct image than with another one.",
        paper="section 3.2: masked multimodal modelling reconstructs each modality from both",
        arms=(Arm("own picture", metric=words_found("own")), Arm("another picture", metric=words_found("another"))),
        metric=words_found("own"),
    ),
)
