"""CM3leon (arXiv 2309.02591)."""

from __future__ import annotations

from models.cm3leon import CM3leonConfig
from recipes.recipe import Optim, Prerequisite, Recipe, Stage

NEEDS = (Prerequisite("image_tokenizer", "vq"), Prerequisite("retriever", "clip"))

PRESETS = {
    "tiny": Recipe(
        model=CM3leonConfig.tiny(),
        stages=(
            Stage("pretraining", Optim(lr=1.5e-3, warmup=3_200), budget=192_000, batch=32),
            Stage("tuning", Optim(lr=5e-4, warmup=1_600), budget=32_000, batch=32),
        ),
        prerequisites=NEEDS,
        tokenizer="retriever",
    ),
}
