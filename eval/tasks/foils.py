"""Compositionality: does a picture's true caption score higher than a hard negative that differs in one word, or only in word order?

Accuracy per kind of foil and per family (replace_attribute, swap_attribute). A tie counts one half. Several foils of one
picture are one cluster of the bootstrap.

ARO is scored as published (eval/base/aro.py): VG-Relation and VG-Attribution are macro averages, Precision@1 (order) asks whether a
caption scores above all of its shuffles. The mean over single foils, which is another number, is called "pairwise".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.sample import Foil, Sample
from eval.base import aro
from eval.base.capabilities import Images, Scorer
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source

ORDER = 30
HEADLINE = (r"swap_attribute|swap.*", r"swap_relation", r"VG-Relation", r"VG-Attribution", r"Precision@1 \(order\)")

FAMILIES = ("replace_attribute", "swap_attribute")
MACRO = {aro.RELATION: "VG-Relation", aro.ATTRIBUTION: "VG-Attribution"}
NO_GROUP = {aro.RELATION: "no relation that counts", aro.ATTRIBUTION: f"no pair of attributes has {aro.FEWEST_CASES} cases"}
PRECISION = "Precision@1 (order)"


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
    below_chance: ClassVar[str] = (
        "Both texts have nearly the same words: a preference for one wording, such as the more common word, loses all foils of that kind."
    )

    def __post_init__(self) -> None:
        kinds = self._kinds = [foil.kind for sample in self.samples for foil in sample.foils]
        counted = {name: sum(name in _measures_of(kind) for kind in kinds) for name in (*FAMILIES, *sorted(set(map(_pairwise, kinds))))}
        single = [Measure(name, f"{count} foils") for name, count in counted.items() if count]
        self.weights = {kind: aro.macro_weights(self.samples, kind) for kind in MACRO if kind in kinds}
        self.measures: Sequence[Measure] = [*self._published(kinds), *single]

    def _published(self, kinds: Collection[str]) -> list[Measure]:
        """ARO's measures."""
        found = []
        for kind, weights in self.weights.items():
            note = f"macro average over {len(weights)} {'relations' if kind == aro.RELATION else 'pairs of attributes'}"
            found.append(Measure(MACRO[kind], note, weight=f"{MACRO[kind]} weight", missing=NO_GROUP[kind]))
        return found + ([Measure(PRECISION, "captions that score above all of their shuffles")] if aro.ORDER in kinds else [])

    def settings(self) -> dict[str, Any]:
        return {"version": 2, "weights": self.weights} if set(self._kinds) & {*MACRO, aro.ORDER} else {"version": 1}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for sample in self.samples for foil in sample.foils for text in (foil.caption, foil.foil)))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        pictures = [images[row] for row in rows for _ in self.samples[row].foils]
        foils = [foil for row in rows for foil in self.samples[row].foils]
        true, false = np.split(scorer.pairs(pictures * 2, [foil.caption for foil in foils] + [foil.foil for foil in foils]), 2)
        scores = iter(zip(true.tolist(), false.tolist(), strict=True))
        return [self._records(self.samples[row], [next(scores) for _ in self.samples[row].foils]) for row in rows]

    def chance(self) -> list[list[Record]]:
        """That of a model that scores all texts alike."""
        return [self._records(sample, [(0.0, 0.0)] * len(sample.foils)) for sample in self.samples]

    def _records(self, sample: Sample, scores: Sequence[tuple[float, float]]) -> list[Record]:
        """One for each foil; the first shuffle of a caption also has the caption's Precision@1."""
        records = [_record(foil, true, false) for foil, (true, false) in zip(sample.foils, scores, strict=True)]
        shuffles: dict[str, dict[str, Record]] = {}
        for foil, record in zip(sample.foils, records, strict=True):
            if foil.kind == aro.ORDER:
                shuffles.setdefault(foil.caption, {}).setdefault(foil.foil, record)
            if weight := self.weights.get(foil.kind, {}).get(aro.group_of(sample, foil.kind)):
                name = MACRO[foil.kind]
                record |= {name: weight * record[_pairwise(foil.kind)], f"{name} weight": weight}
        for of_caption in shuffles.values():
            first, *_ = own = list(of_caption.values())
            first[PRECISION] = _precision([record["scores"] for record in own])
        return records


def _precision(scores: Sequence[Sequence[float]]) -> float:
    """Whether a caption is first among its shuffles, from (its score, the shuffle's score); if it ties, the share of orders in which
    it is."""
    if any(true < false for true, false in scores):
        return 0.0
    return 1 / (1 + sum(true == false for true, false in scores))


def _record(foil: Foil, true: float, false: float) -> Record:
    right = 1.0 if true > false else 0.5 if true == false else 0.0
    return {"caption": foil.caption, "foil": foil.foil, "scores": [true, false]} | dict.fromkeys(_measures_of(foil.kind), right)


def _measures_of(kind: str) -> list[str]:
    """A foil counts for its kind, and for its family if that has another name."""
    return list(dict.fromkeys([family for family in FAMILIES if kind.startswith(family)] + [_pairwise(kind)]))


def _pairwise(kind: str) -> str:
    """ARO's kinds under a name of our own: the published measures are others."""
    return f"{kind} (pairwise)" if kind in MACRO or kind == aro.ORDER else kind
