"""Memorisation: are a model's captions its own, or recited from training?

Each caption is looked up, word for word, among those of the training split. *verbatim*: it is found there. That alone is no fault,
since simple true captions are: *references verbatim* is the share of the pictures' own references that are found there, too, and the
oracle's row that of the canonical captions. *verbatim elsewhere*: it is found there and does not belong to this picture: it is false
where the truth is known, otherwise not among the references. *similarity* to the nearest training caption: the words and pairs of
neighbouring words that two captions share, 2 |a & b| / (|a| + |b|), 1 for identical ones. *duplicates*: another picture has the
same caption. "Chance" is a model that recites training captions without looking.

The training split is that of the evaluated data set; a model trained on another one matches it only by coincidence.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from data.sample import Sample
from data.scenes.language import agreement
from eval.base.capabilities import Captioner, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source
from eval.scenes.oracle import has_truth
from eval.tasks.captioning import described

ORDER = 80
HEADLINE: tuple[str, ...] = ()

TRAIN_SAMPLES = 20_000  # pictures whose captions are read: seconds; all of them at the smallest preset
CHUNK = 32  # captions compared with the whole training split at once


def plan(source: Source) -> list[Memorisation]:
    if "train" not in source.streams or "train" in source.evaluated or not any(each.captions for each in source.beginning("train", 20)):
        return []
    train = Training(source)
    return [Memorisation(split, samples, train) for split, samples in described(source).items()]


@dataclass(eq=False)
class Training:
    """The training captions of a data set, read when first needed."""

    source: Source

    def identity(self) -> str:
        shards = self.source.shards.get("train")
        return shards.hash if shards and shards.hash else hashlib.sha256("\n".join(self.known).encode()).hexdigest()

    @cached_property
    def known(self) -> dict[str, str]:
        """Plain words -> a caption of these words."""
        return {plain(caption): caption for caption in self.source.captions("train", TRAIN_SAMPLES)}

    def nearest(self, captions: Sequence[str]) -> list[tuple[str, float]]:
        """For each of these plain captions the most similar training caption and its similarity; an exact match has 1."""
        found = {caption: (self.known[caption], 1.0) for caption in captions if caption in self.known}
        others = list(dict.fromkeys(caption for caption in captions if caption not in found))
        for start in range(0, len(others), CHUNK):
            chunk = others[start : start + CHUNK]
            vectorizer, known = self._counted
            shared = np.asarray((vectorizer.transform(chunk) @ known.T).todense(), np.float64)  # [C, training captions]
            sizes = np.array([len(grams(caption)) for caption in chunk])
            similarity = 2 * shared / (sizes[:, None] + self._sizes[None, :]).clip(min=1)
            for caption, row, best in zip(chunk, similarity, similarity.argmax(axis=1), strict=True):
                found[caption] = (self._captions[int(best)], float(row[best]))
        return [found[caption] for caption in captions]

    @cached_property
    def _captions(self) -> list[str]:
        return list(self.known.values())

    @cached_property
    def _counted(self) -> tuple[CountVectorizer, csr_matrix]:
        """The vectorizer fitted to the training captions, and its counts of them."""
        vectorizer = CountVectorizer(analyzer=grams, binary=True, dtype=np.float32)
        return vectorizer, vectorizer.fit_transform(self.known)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.asarray(self._counted[1].sum(axis=1), np.float64).ravel()


@dataclass
class Memorisation:
    split: str
    samples: Sequence[Sample]
    train: Training
    part: str = ""
    name: ClassVar[str] = "memorisation"
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Captioner
    needed_method: ClassVar[str] = "caption"

    def __post_init__(self) -> None:
        self.truthful = has_truth(self.samples)
        where = f"among the captions of the first {TRAIN_SAMPLES:,} training pictures"
        elsewhere = "and false here" if self.truthful else "and no reference here"
        self.measures: Sequence[Measure] = [
            Measure("verbatim", where, better="neither"),
            Measure("verbatim elsewhere", f"{where}, {elsewhere}", better="lower"),
            Measure("similarity", "to the nearest training caption", better="neither"),
            Measure("duplicates", f"another of {len(self.samples)} pictures has the same caption", better="neither"),
            Measure("references verbatim", "true captions among those of training, the same for all models", better="neither"),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "train": self.train.identity(), "pictures": TRAIN_SAMPLES}

    def texts(self) -> list[str]:
        return []

    def ask(self, captioner: Captioner, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        captions = captioner.captions([images[row] for row in rows])
        nearest = self.train.nearest([plain(caption) for caption in captions])
        return [[self._record(self.samples[row], *each)] for row, each in zip(rows, zip(captions, nearest, strict=True), strict=True)]

    def chance(self) -> list[list[Record]]:
        return [[{"verbatim": 1.0, "similarity": 1.0}] for _ in self.samples]

    def grade(self, records: list[Record]) -> list[Record]:
        counts = Counter(plain(record["caption"]) for record in records)
        return [record | {"duplicates": float(counts[plain(record["caption"])] > 1)} for record in records]

    def _record(self, sample: Sample, caption: str, nearest: tuple[str, float]) -> Record:
        verbatim = plain(caption) in self.train.known
        references = [plain(reference) for reference in sample.captions]
        true = agreement(caption, sample) == 1 if self.truthful else plain(caption) in references
        return {
            "caption": caption,
            "nearest": nearest[0],
            "verbatim": float(verbatim),
            "verbatim elsewhere": float(verbatim and not true),
            "similarity": nearest[1],
            "references verbatim": sum(reference in self.train.known for reference in references) / len(references),
        }


def plain(caption: str) -> str:
    """Its words in lower case: tokenizers do not keep spaces and capitals."""
    return " ".join(re.findall(r"\w+", caption.lower()))


def grams(caption: str) -> set[str]:
    """The words of a plain caption and its pairs of neighbouring words."""
    words = caption.split()
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}
