"""Referring expressions: the box of the object that a phrase names (RefCOCO: Yu et al. 2016, 1608.00272, section 5.2).

An object is asked for by the phrases that people wrote for it or, in data without such, by its colour, if it has one, and its name ("the
red star"), if no other object of the picture has both. A box counts
as right if it overlaps the true one by more than half (intersection over union). A reply without a box is wrong and has no overlap.

Chance is the best constant box: of the true boxes of 500 training pictures, in shares of the picture's sides, the one that is right for
most of them; without a training split those of the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.objects import Box, overlap, referring
from data.sample import Sample
from eval.base.capabilities import Images, Locator
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread

ORDER = 95
HEADLINE = (r"accuracy",)

PICTURES, SHIFTED_PICTURES, TRAIN_SAMPLES = 300, 150, 500
ENOUGH = 0.5  # intersection over union
EVERYTHING: Box = (0.0, 0.0, 1.0, 1.0)


def plan(source: Source) -> list[Referring]:
    tasks, constant = [], None
    for split in source.evaluated:
        samples = [sample for sample in source.samples(split) if referring(sample)]
        samples = spread(samples, SHIFTED_PICTURES if split in source.shifts else PICTURES)
        if samples:
            constant = constant or best_constant(_training(source) or samples)
            tasks.append(Referring(split, samples, constant))
    return tasks


def _training(source: Source) -> list[Sample]:
    if "train" not in source.streams or "train" in source.evaluated:
        return []
    found = source.beginning("train", min(TRAIN_SAMPLES, source.limit or TRAIN_SAMPLES))
    return [sample for sample in found if referring(sample)]


def best_constant(samples: Sequence[Sample]) -> Box:
    """In shares of a picture's sides: the true box that overlaps most true boxes by more than half, the first of several."""
    boxes = np.array([_shares(thing.box, sample) for sample in samples for _, thing in referring(sample)])  # [N, 4]
    if not len(boxes):
        return EVERYTHING
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = (high - low).clip(min=0).prod(axis=-1)  # [N, N]
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=-1)
    right = both > ENOUGH * (areas[:, None] + areas[None] - both)
    left, top, right_side, bottom = boxes[int(right.sum(axis=1).argmax())].tolist()
    return left, top, right_side, bottom


def _shares(box: Box, sample: Sample) -> Box:
    height, width = sample.image.shape[:2]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


@dataclass
class Referring:
    split: str
    samples: Sequence[Sample]
    constant: Box
    name: ClassVar[str] = "referring"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Locator
    needed_method: ClassVar[str] = "locate"

    def __post_init__(self) -> None:
        named = [referring(sample) for sample in self.samples]
        self.phrases = [[phrase for phrase, _ in each] for each in named]
        self.things = [[thing for _, thing in each] for each in named]
        note = f"{sum(map(len, self.things))} objects"
        self.measures: Sequence[Measure] = [
            Measure("accuracy", f"{note}; overlap above {ENOUGH:g}"),
            Measure("overlap", "mean intersection over union"),
            Measure("no box", "replies without a box", better="lower"),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "constant": [round(value, 6) for value in self.constant]}

    def texts(self) -> list[str]:
        return []

    def ask(self, subject: Locator, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        pictures = [images[row] for row in rows for _ in self.things[row]]
        found = iter(subject.boxes(pictures, [phrase for row in rows for phrase in self.phrases[row]]))
        asked = (zip(self.phrases[row], self.things[row], strict=True) for row in rows)
        return [[_record(phrase, thing.box, next(found)) for phrase, thing in each] for each in asked]

    def chance(self) -> list[list[Record]]:
        return [
            [_record(phrase, thing.box, self._constant(sample)) for phrase, thing in zip(phrases, things, strict=True)]
            for sample, phrases, things in zip(self.samples, self.phrases, self.things, strict=True)
        ]

    def _constant(self, sample: Sample) -> Box:
        height, width = sample.image.shape[:2]
        left, top, right, bottom = self.constant
        return left * width, top * height, right * width, bottom * height


def _record(phrase: str, true: Box, found: Box | None) -> Record:
    shared = 0.0 if found is None else overlap(found, true)
    about: Record = {"phrase": phrase, "truth": list(true), "box": None if found is None else list(found)}
    return about | {"accuracy": float(shared > ENOUGH), "overlap": shared, "no box": float(found is None)}
