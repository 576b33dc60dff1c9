"""Measure MAGIC's captions with any weights of its search, for its claims and for `make tune-magic`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import models
from data.sample import Sample
from eval.captions.tokens import tokenise
from eval.harness.controls import exchanged
from eval.harness.source import from_shards, spread
from eval.judges.clipscore import NO_CLIP, NamedCLIP, clip_beside, named_clip
from eval.scenes.content import content
from eval.scenes.oracle import has_truth
from models.shared.device import resolve_device
from recipes.claims.claim import ClaimError, Measurement
from recipes.train.recipe import AnyRecipe

What = Literal["object F1", "CLIPScore", "repeated words"]
PICTURES = 400
BATCH = 100


@dataclass(frozen=True)
class Captioned:
    """A metric of captions for evenly spaced test images, generated with the run's search settings and `changes`."""

    what: What
    changes: tuple[tuple[str, Any], ...] = ()
    shuffled: bool = False
    """caption another sample's picture"""

    @property
    def about(self) -> str:
        changed = "".join(f", {name} {value}" for name, value in self.changes)
        return f"{self.what} of {PICTURES} captions, test{changed}{', shuffled pictures' if self.shuffled else ''}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return ()

    def measure(self, folder: Path, recipe: AnyRecipe, dataset: str) -> Measurement:
        device = str(resolve_device(recipe.device))
        model: Any = models.load(folder, device)
        samples = pictures(recipe.data, "test", PICTURES)
        judge = judge_of(folder, device) if self.what == "CLIPScore" else None
        shown = [samples[row] for row in exchanged(samples)] if self.shuffled else samples
        captions = write(model, shown, replace(model.config.search, **dict(self.changes)))
        found = scores(self.what, captions, samples, judge)
        value = sum(total for total, _ in found) / max(1e-9, sum(count for _, count in found))
        return Measurement(value, {sample.key: pair for sample, pair in zip(samples, found, strict=True)})


def captioned(what: What, *, shuffled: bool = False, **changes: Any) -> Captioned:
    return Captioned(what, tuple(changes.items()), shuffled)


def pictures(data: str, split: str, most: int) -> list[Sample]:
    """At most `most` evenly spaced samples with captions from a split of the embedded data set. Raises ClaimError for other data."""
    found = spread([sample for sample in from_shards(data).samples(split) if sample.captions], most)
    if not has_truth(found):
        raise ClaimError(f"{data}: the objects in a caption can be verified only on the embedded data set")
    return found


def judge_of(folder: Path, device: str) -> NamedCLIP:
    """The CLIP model used for CLIPScore: that of seed 0 next to the run. For seed 0 it is also the one that guides MAGIC."""
    path = clip_beside(folder)
    if path is None:
        raise ClaimError(f"{folder}: {NO_CLIP}")
    return named_clip(str(path), device)


def write(model: Any, samples: Sequence[Sample], how: Any) -> list[str]:
    images = [sample.image for sample in samples]
    return [text for start in range(0, len(images), BATCH) for text in model.caption(images[start : start + BATCH], how=how)]


def scores(what: What, captions: Sequence[str], samples: Sequence[Sample], judge: NamedCLIP | None) -> list[tuple[float, float]]:
    """A (sum, count) pair for each caption; the metric is the ratio of the totals."""
    if what == "object F1":
        said = [content(caption, sample) for caption, sample in zip(captions, samples, strict=True)]
        return [(record[what], record["objects said and there"]) for record in said]
    if what == "CLIPScore":
        assert judge is not None
        return [(float(fit), 1.0) for fit in judge.clip_score([sample.image for sample in samples], captions)]
    words = [text.split() for text in tokenise(captions)]
    return [(float(len(each) - len(set(each))), float(len(each))) for each in words]
