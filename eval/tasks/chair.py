"""CHAIR, the hallucination rate of captions (Rohrbach et al. 2018, arXiv:1809.02156, section 2.2).

CHAIR-i is the share of mentioned objects that are not present, CHAIR-s the share of captions that mention such an object. An
object is present when it is annotated or a reference mentions it, as in the paper. In scenes an object is a shape with its stated
colour ("red star"); elsewhere it is a name or one of its synonyms, see `eval.captions.objects`. A caption that mentions nothing
scores perfectly, so we also report recall: the share of present objects that are mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.sample import Sample
from data.scenes.language import parse
from eval.base.capabilities import Captioner, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.captions.objects import hallucinated, mentioned, vocabulary
from eval.harness.source import Source
from eval.scenes.oracle import has_truth
from eval.tasks.captioning import described

ORDER = 60
HEADLINE = (r"CHAIR-i",)


def plan(source: Source) -> list[CHAIR]:
    asked = {split: [sample for sample in samples if sample.objects] for split, samples in described(source).items()}
    names = sorted({thing.name for samples in asked.values() for sample in samples for thing in sample.objects})
    return [CHAIR(split, samples, names) for split, samples in asked.items() if samples]


@dataclass
class CHAIR:
    split: str
    samples: Sequence[Sample]
    names: Sequence[str]  # of all objects in the data set
    part: str = ""
    name: ClassVar[str] = "chair"
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Captioner
    needed_method: ClassVar[str] = "caption"

    def __post_init__(self) -> None:
        self.scenes = has_truth(self.samples)
        self.words = {} if self.scenes else vocabulary(self.names)
        silent = "no caption mentions an object"
        self.measures: Sequence[Measure] = [
            Measure("CHAIR-i", "objects mentioned that are not there", weight="mentions", better="lower", missing=silent),
            Measure("CHAIR-s", "captions that mention one", better="lower"),
            Measure("recall", "objects there that are mentioned", weight="there"),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1 if self.scenes else 2, "words": sorted([" ".join(words), name] for words, name in self.words.items())}

    def texts(self) -> list[str]:
        return []

    def ask(self, captioner: Captioner, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        captions = captioner.captions([images[row] for row in rows])
        return [[self.record(caption, self.samples[row])] for caption, row in zip(captions, rows, strict=True)]

    def chance(self) -> list[list[Record]]:
        return []

    def record(self, caption: str, sample: Sample) -> Record:
        """The objects that a caption mentions, those of them that are not present, and the fields of the measures."""
        mentions = self._mentions(caption)
        if self.scenes:
            there = {f"{thing.attributes['colour']} {thing.name}" for thing in sample.objects}
            wrong = hallucinated(mentions, there | {thing.name for thing in sample.objects})
        else:
            there = {thing.name.lower() for thing in sample.objects}
            wrong = hallucinated(mentions, there.union(*map(self._mentions, sample.captions)))
        record: Record = {"caption": caption, "image_id": sample.extra.get("id", sample.key), "mentioned": mentions, "hallucinated": wrong}
        record |= {"CHAIR-i": len(wrong), "mentions": len(mentions), "CHAIR-s": float(bool(wrong))}
        return record | {"recall": len(there & set(mentions)), "there": len(there)}

    def _mentions(self, caption: str) -> list[str]:
        if self.scenes:
            return [" ".join(each[name] for name in ("colour", "shape") if name in each) for each in parse(caption).objects]
        return mentioned(caption, self.words)
