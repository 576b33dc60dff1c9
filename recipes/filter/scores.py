"""Graded filters, which keep a share of the pool: CLIP score, and the controls that a filter is measured by, chance and the truth."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from torch import nn

import models
from data.fields import require
from data.sample import Sample
from eval import EvalError
from eval.adapters.scorers import EmbeddingScorer, Subject
from recipes.filter.filters import Cut, Verdict

TRUTH = "noise"  # in a sample's extra: what is wrong with it (data/scenes/pool.py)
CLEAN = "clean"


class CLIPScore:
    """DataComp's CLIP score filter: the cosine similarity of picture and caption, by any dual encoder; the mean over a sample's captions.

    A model that was trained on the pool has seen its wrong captions, and may have learned some of them by heart.
    """

    def __init__(self, model: nn.Module, name: str, cut: Cut) -> None:
        if Subject(model).embeddings is None:
            raise EvalError(f"{name}: {type(model).__name__} embeds no pictures and texts; expected a CLIP or another dual encoder")
        self.model, self.name, self.cut = model, name, cut
        self.found = array("f")

    def see(self, samples: Sequence[Sample]) -> None:
        scorer = EmbeddingScorer(self.model)  # a new one, or it would remember every picture
        rows = [row for row, sample in enumerate(samples) for _ in sample.captions]
        scores = scorer.pairs([samples[row].image for row in rows], [text for sample in samples for text in sample.captions])
        self.found.extend(np.bincount(rows, scores, len(samples)) / np.bincount(rows, minlength=len(samples)))

    def verdict(self) -> Verdict:
        found = self.cut.verdict(np.array(self.found, np.float32))
        found.about["clip"] = self.name
        return found


class Random:
    """The control of every filter: a random subset of its size."""

    def __init__(self, cut: Cut, seed: int) -> None:
        require(0 <= seed < 1 << 32, "seed", seed, f"0 to {(1 << 32) - 1:,}")
        self.cut, self.seed, self.count = cut, seed, 0

    def see(self, samples: Sequence[Sample]) -> None:
        self.count += len(samples)

    def verdict(self) -> Verdict:
        found = self.cut.verdict(np.random.default_rng(self.seed).random(self.count))
        found.about["seed"] = self.seed
        return found


class Truth:
    """What the best filter would keep: the clean samples of a pool that knows them."""

    def __init__(self) -> None:
        self.clean = array("b")

    def see(self, samples: Sequence[Sample]) -> None:
        unknown = [sample.key for sample in samples if TRUTH not in sample.extra]
        if unknown:
            raise EvalError(f"{unknown[0]} has no {TRUTH!r} in its extra, so the truth is not known: expected a pool, as DATA=pool")
        self.clean.extend(sample.extra[TRUTH] == CLEAN for sample in samples)

    def verdict(self) -> Verdict:
        clean = np.array(self.clean)
        return Verdict(clean > 0, clean, "clean samples")


def load_clip(spec: str, device: str) -> nn.Module:
    """Of a run folder, or published weights. Raises FileNotFoundError, ValueError or ConnectionError where there is none."""
    return models.load(spec, device).requires_grad_(False)
