"""Winoground (Thrush et al. 2022): two pictures, two captions with the same words; which caption belongs to which picture?

s(C, I) is the score of a caption and a picture; C0 is true of I0, and C1 of I1 (their equations 1-3):
*text*: each picture prefers its caption, s(C0, I0) > s(C1, I0) and s(C1, I1) > s(C0, I1); *image*: each caption prefers its
picture, s(C0, I0) > s(C0, I1) and s(C1, I1) > s(C1, I0); *group*: both. Chance is 1/4, 1/4 and 1/6, that of four scores in random
order. As in the paper a tie is wrong: a model that cannot distinguish the captions of a pair gets 0, not 1/2 as for a foil. So does
a model that prefers one caption, or one picture, in every combination: a score below chance means that the model misses the swap.

Used on every split whose samples name their partners (`extra["pair"]`), such as the split "pairs" of the embedded data. A pair is
recorded with its first member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.sample import Sample
from eval.base.capabilities import Images, Scorer
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, together

ORDER = 40
HEADLINE = (r"group",)

PAIRS = "pairs"  # a split that only this task uses
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


def plan(source: Source) -> list[Winoground]:
    splits = dict.fromkeys([*source.evaluated, *([PAIRS] if PAIRS in source.streams else [])])
    return [task for split in splits if (task := bound(split, source.samples(split)))]


def bound(split: str, samples: Sequence[Sample]) -> Winoground | None:
    """The task on the complete pairs among these samples; None without any."""
    captioned = [sample for sample in samples if sample.captions]
    couples = [group for group in together(captioned) if len(group) == 2]
    if not couples:
        return None
    rows = sorted(row for couple in couples for row in couple)
    alone = sum("pair" in sample.extra for sample in samples) - len(rows)
    return Winoground(split, [captioned[row] for row in rows], f"; {alone} samples without their partner left out" if alone else "")


@dataclass
class Winoground:
    """All samples are members of complete pairs."""

    split: str
    samples: Sequence[Sample]
    left_out: str = ""
    name: ClassVar[str] = "winoground"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Scorer
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"
    below_chance: ClassVar[str] = (
        "A pair counts when all its comparisons are right and none is a tie: a model that misses the swap is far below chance."
    )

    def __post_init__(self) -> None:
        self.partner = {group[0]: group[1] for group in together(self.samples)}
        kinds = [self._kind(row) for row in self.partner]
        listed = ["", *sorted(set(kinds) - {""})] if len(set(kinds)) > 1 else [""]
        self.measures: Sequence[Measure] = [
            Measure(_measure(score, kind), f"{kinds.count(kind) if kind else len(kinds)} pairs{self.left_out}")
            for kind in listed
            for score in CHANCE
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(sample.captions[0] for sample in self.samples))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        asked = [(row, self.partner[row]) for row in rows if row in self.partner]
        shown = [images[picture] for first, second in asked for picture in (first, first, second, second)]
        said = [self.samples[caption].captions[0] for first, second in asked for caption in (first, second, first, second)]
        scores = iter(scorer.pairs(shown, said).tolist() if asked else ())
        records = {first: self._record(first, *(next(scores) for _ in range(4))) for first, _ in asked}
        return [[records[row]] if row in records else [] for row in rows]

    def chance(self) -> list[list[Record]]:
        return [[self._fields(row, CHANCE)] if row in self.partner else [] for row in range(len(self.samples))]

    def _record(self, row: int, s00: float, s10: float, s01: float, s11: float) -> Record:
        """`s10` is the score of the second caption with the first picture."""
        text, image = s00 > s10 and s11 > s01, s00 > s01 and s11 > s10
        pair = [self.samples[member] for member in (row, self.partner[row])]
        about = {"captions": [sample.captions[0] for sample in pair], "partner": pair[1].key, "scores": [[s00, s01], [s10, s11]]}
        return about | self._fields(row, {"text": float(text), "image": float(image), "group": float(text and image)})

    def _fields(self, row: int, scores: dict[str, float]) -> Record:
        """A pair counts in all, and for its kind."""
        return {_measure(name, kind): value for kind in {"", self._kind(row)} for name, value in sorted(scores.items())}

    def _kind(self, row: int) -> str:
        return str(self.samples[row].extra.get("kind", ""))


def _measure(score: str, kind: str) -> str:
    return f"{score} {kind}" if kind else score
