"""Measure in how many directions the image embeddings of a model spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import models
from eval.adapters.scorers import Subject
from eval.harness.source import from_shards
from models.shared.device import resolve_device
from recipes.claims.claim import ClaimError, Measured
from recipes.train.recipe import AnyRecipe


def directions(share: float = 0.99, split: str = "test") -> Measured:
    """The number of eigenvalues of the embeddings' covariance that together hold `share` of it (CLOOB, arXiv 2110.11316)."""

    def measure(folder: Path, recipe: AnyRecipe) -> float:
        features = Subject(models.load(folder, str(resolve_device(recipe.device)))).embeddings
        if features is None:
            raise ClaimError(f"{folder}: its model has no embeddings, whose directions could be counted")
        return needed(features.features([sample.image for sample in from_shards(recipe.data).samples(split)]), share)

    return Measured(f"eigenvalues that hold {share:.0%} of the covariance of image embeddings, {split}", measure)


def needed(rows: np.ndarray, share: float) -> float:
    """How many of the largest eigenvalues of the covariance of rows `[N, D]` sum to at least `share` of all."""
    values = np.linalg.eigvalsh(np.cov(rows.astype(np.float64), rowvar=False))[::-1].clip(min=0)
    return float(1 + np.searchsorted(values.cumsum() / values.sum(), share))
