"""Measure ASIF's accuracy with changed settings or additional anchors, for its claims; the run itself is not modified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
from eval.harness.source import from_shards
from models.shared.device import resolve_device
from recipes.claims.claim import Measured
from recipes.claims.measures.zero_shot import recognised
from recipes.train.recipe import AnyRecipe

TARGET, TEMPLATES = "colour+shape", ("a {size} {fill} {colour} {shape}",)


def recognises(split: str = "test", *, k: int = 0, p: float = 0.0, added: int = 0) -> Measured:
    """Zero-shot accuracy of colour and shape together, for any model with embeddings. For ASIF, `k` and `p` override its settings (0: no
    change), and `added` pairs of the split's first half become additional anchors. Splits other than test are evaluated on their second
    half."""
    how = [f"k = {k}"] * (k > 0) + [f"p = {p:g}"] * (p > 0) + [f"{added} pairs of it added"] * (added > 0)

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        samples = from_shards(recipe.data).samples(split)
        if split != "test":
            spare, samples = samples[: len(samples) // 2], samples[len(samples) // 2 :]
            told = [sample for sample in spare if sample.captions][:added]
            if added:
                model.add([sample.image for sample in told], [sample.captions[0] for sample in told])
        if k or p:
            model.config = replace(model.config, k=k or model.config.k, p=p or model.config.p)
        return recognised(model, samples, TARGET, TEMPLATES)

    return Measured(", ".join([f"zero-shot {TARGET}, {split}, one prompt", *how]), measure)
