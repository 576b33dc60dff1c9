"""Share of named objects that a model locates: those whose predicted box overlaps the true one by more than half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from eval.harness.source import from_shards
from models.shared.boxes import overlap
from models.shared.device import resolve_device
from models.shared.instructions import named, unique
from recipes.claims.claim import ClaimError, Measured
from recipes.train.recipe import AnyRecipe

BATCH = 64
PICTURES = 500
ENOUGH = 0.5  # intersection over union, as for RefCOCO


def located() -> Measured:
    """One value per object of the test images that has a name of its own. A reply without a box is wrong."""

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        samples = from_shards(recipe.data).samples("test")[:PICTURES]
        asked = [(f"{sample.key}/{number}", sample, thing) for sample in samples for number, thing in enumerate(unique(sample.objects))]
        if not asked:
            raise ClaimError(f"{recipe.data}: no test image has an object with a box and a name of its own")
        found = {}
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            boxes = model.locate([sample.image for _, sample, _ in batch], [f"the {named(thing)}" for _, _, thing in batch])
            for (key, _, thing), box in zip(batch, boxes, strict=True):
                found[key] = float(box is not None and overlap(box, thing.box) > ENOUGH)
        return found

    return Measured("objects located, IoU above .5, test", measure)
