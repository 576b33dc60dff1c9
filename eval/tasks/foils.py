"""Compositionality: does a picture's true caption score higher than a hard negative that differs in one word, or only in word order?

Accuracy per kind of foil and per family (replace_attribute, swap_attribute). A tie counts one half. Several foils of one
picture are one cluster of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.sample import Foil, Sample
from eval.base.capabilities import Images, Scorer
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source

ORDER = 30
HEADLINE = (r"swap_attribute|swap.*", r"swap_relation")

FAMILIES = ("replace_attribute", "swap_attribute")


def plan(source: Source) -> list[Foils]:
    tasks = [Foils(split, [sample for sample in source.samples(split) if sample.foils]) for split in source.evaluated]
    return [task for task in tasks if task.samples]


@dataclass
class Foils:
    split: str
    samples: Sequence[Sample]
    name: ClassVar[str] = "foils"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Scorer
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"

    def __post_init__(self) -> None:
        kinds = [foil.kind for sample in self.samples for foil in sample.foils]
        counted = {name: sum(name in _measures_of(kind) for kind in kinds) for name in (*FAMILIES, *sorted(set(kinds)))}
        self.measures: Sequence[Measure] = [Measure(name, f"{count} foils") for name, count in counted.items() if count]

    def settings(self) -> dict[str, Any]:
        return {"version": 1}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for sample in self.samples for foil in sample.foils for text in (foil.caption, foil.foil)))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        pictures = [images[row] for row in rows for _ in self.samples[row].foils]
        foils = [foil for row in rows for foil in self.samples[row].foils]
        true, false = np.split(scorer.pairs(pictures * 2, [foil.caption for foil in foils] + [foil.foil for foil in foils]), 2)
        records = iter([_record(*triple) for triple in zip(foils, true.tolist(), false.tolist(), strict=True)])
        return [[next(records) for _ in self.samples[row].foils] for row in rows]

    def chance(self) -> list[list[Record]]:
        return [[_record(foil, 0.0, 0.0) for foil in sample.foils] for sample in self.samples]


def _record(foil: Foil, true: float, false: float) -> Record:
    right = 1.0 if true > false else 0.5 if true == false else 0.0
    return {"caption": foil.caption, "foil": foil.foil, "scores": [true, false]} | dict.fromkeys(_measures_of(foil.kind), right)


def _measures_of(kind: str) -> list[str]:
    """A foil counts for its kind, and for its family if that has another name."""
    return list(dict.fromkeys([family for family in FAMILIES if kind.startswith(family)] + [kind]))
