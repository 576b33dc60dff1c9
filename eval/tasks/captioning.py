"""Captioning: the standard metrics against all references, the content of captions against the truth, and their variety.

500 pictures of the main split and half as many of each shift: generation is costly, and the intervals are already
narrower than the difference between two seeds. For the embedded data, whose truth is known, captions are parsed and every
object, attribute, count and relation is checked. Other data, whose metrics are far above 0 without a look at the picture, have
controls that need no captioner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from data.sample import Sample
from eval.base.capabilities import Captioner, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.captions.baselines import NEAREST, TrainingCaptions
from eval.captions.java import meteor, why_no_meteor, why_no_spice
from eval.captions.scores import ORDERS, TOO_FEW, Corpus, whole
from eval.captions.tokens import tokeniser
from eval.harness.source import Source, spread
from eval.judges.clipscore import NO_CLIP
from eval.scenes.content import content, measures
from eval.scenes.oracle import has_truth

ORDER = 50
HEADLINE = (r"CIDEr-D", r"object F1")

PRIMARY = 500
SHIFTED = 250
READ = 20_000  # training pictures whose captions the controls are made of
NO_TRAIN = "the data set has no captions of training pictures"
ONE_EACH = "needs at least two images with several captions each"


def described(source: Source) -> dict[str, list[Sample]]:
    """The samples of each split to be captioned, the same for every task, so that each picture is captioned once."""
    splits = {split: [sample for sample in source.samples(split) if sample.captions] for split in source.evaluated}
    return {split: spread(found, PRIMARY if split == source.primary else SHIFTED) for split, found in splits.items() if found}


def plan(source: Source) -> list[Captioning]:
    return [Captioning(split, samples) for split, samples in described(source).items()]


@dataclass
class Captioning:
    split: str
    samples: Sequence[Sample]
    part: str = ""
    name: ClassVar[str] = "captioning"
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Captioner
    needed_method: ClassVar[str] = "caption"

    def __post_init__(self) -> None:
        self.truthful = has_truth(self.samples)
        self.measures: Sequence[Measure] = [
            Measure("CIDEr-D", f"{len(self.samples)} pictures; {tokeniser()}", missing=TOO_FEW, unit="score"),
            *(Measure(f"BLEU-{n}", tokeniser(), whole=whole(f"BLEU-{n}")) for n in reversed(ORDERS)),
            Measure("ROUGE-L", tokeniser()),
            Measure("METEOR", tokeniser(), missing=why_no_meteor(), whole=whole("METEOR")),
            Measure("SPICE", tokeniser(), missing=why_no_spice()),
            *(measures() if self.truthful else []),
            Measure("unique captions", "different captions by number of captions", better="neither"),
            Measure("words", "tokens of a caption", unit="score", better="neither"),
            Measure("repeated 4-grams", "in one caption", weight="4-grams", missing="no caption has four words", better="lower"),
        ]

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus([sample.captions for sample in self.samples])

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "tokeniser": tokeniser(), "METEOR": not why_no_meteor(), "SPICE": not why_no_spice()}

    def texts(self) -> list[str]:
        return []

    def begin(self) -> None:
        """Let METEOR load its dictionaries while captions are written."""
        if not why_no_meteor():
            meteor()

    def ask(self, captioner: Captioner, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        captions = captioner.captions([images[row] for row in rows])
        return [[{"caption": caption}] for caption in captions]

    def grade(self, records: list[Record]) -> list[Record]:
        row_of = {sample.key: row for row, sample in enumerate(self.samples)}
        rows = [row_of[record["key"]] for record in records]
        captions = [record["caption"] for record in records]
        graded = [record | scores for record, scores in zip(records, self.corpus.score(captions, rows), strict=True)]
        if self.truthful:
            graded = [record | content(record["caption"], self.samples[row]) for record, row in zip(graded, rows, strict=True)]
        times = Counter(captions)
        return [record | {"unique captions": 1 / times[record["caption"]]} | _fluency(record["tokens"].split()) for record in graded]

    def controls(self, source: Source) -> dict[str, list[Record] | str]:
        """What real pictures get without a captioner (eval/captions/baselines.py), and the last annotator against the others."""
        if self.truthful:
            return {}
        images = [sample.image for sample in self.samples]
        known = TrainingCaptions(source.captions("train", READ) if "train" in source.streams else [])
        found: dict[str, list[Record] | str] = dict.fromkeys(
            ("constant sentence", "nearest training caption", f"consensus of {NEAREST}"), NO_TRAIN
        )
        if known.captions:
            found["constant sentence"] = self._said([known.constant()] * len(images))
            found["nearest training caption"] = self._said(known.nearest(source.clip, images)) if source.clip else NO_CLIP
            found[f"consensus of {NEAREST}"] = self._said(known.consensus(source.clip, images)) if source.clip else NO_CLIP
        several = [sample for sample in self.samples if len(sample.captions) > 1]
        found["one annotator"] = ONE_EACH
        if len(several) > 1:
            others = Captioning(self.split, [replace(sample, captions=sample.captions[:-1]) for sample in several])
            found["one annotator"] = others._said([sample.captions[-1] for sample in several])
        return found

    def _said(self, captions: Sequence[str]) -> list[Record]:
        """Graded records of a caption for each picture."""
        both = zip(self.samples, captions, strict=True)
        return self.grade([{"i": i, "key": sample.key, "caption": caption} for i, (sample, caption) in enumerate(both)])

    def chance(self) -> list[list[Record]]:
        return []


def _fluency(tokens: Sequence[str]) -> Record:
    grams = [tuple(tokens[start : start + 4]) for start in range(len(tokens) - 3)]
    return {"words": len(tokens), "4-grams": len(grams), "repeated 4-grams": len(grams) - len(set(grams))}
