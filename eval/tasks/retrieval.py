"""Retrieval both ways: recall@1, 5, 10 of the right text for an image and of the right image for a text.

A candidate text is listed once, however many images it belongs to, and is right for each of them; each distinct text is
one query. Tied candidates count with the probability that a random order would show a right one, so a model that gives
everything one score is exactly at chance. Recall depends on the gallery, so its size is part of the metric's name: the first
500 images with captions, in key order, and on the main split all of them where there are more. A model that has embeddings and a
score of its own has two rows: by its embeddings, and with their best candidates re-ranked by its score (eval/adapters/rerank.py), where
only the first caption of an image is a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.sample import Sample
from eval.base.capabilities import Images, Ranker
from eval.base.metrics import expected_recall, ranks
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source

ORDER = 20
HEADLINE = (r"i2t R@1\b.*",)

GALLERY = 500
DEPTHS = (1, 5, 10)


def plan(source: Source) -> list[Retrieval]:
    tasks = []
    for split in source.evaluated:
        captioned = [sample for sample in source.samples(split) if sample.captions]
        if captioned:
            tasks.append(Retrieval(split, captioned[:GALLERY]))
        if len(captioned) > GALLERY and split == source.primary:
            tasks.append(Retrieval(split, captioned, part="full"))
    return tasks


@dataclass
class Retrieval:
    split: str
    samples: Sequence[Sample]
    part: str = ""
    name: ClassVar[str] = "retrieval"
    gallery: ClassVar[bool] = True
    needs: ClassVar[type] = Ranker
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"

    def __post_init__(self) -> None:
        self._texts = list(dict.fromkeys(text for sample in self.samples for text in sample.captions))
        number = {text: column for column, text in enumerate(self._texts)}
        self.right = np.zeros((len(self.samples), len(self._texts)), bool)  # [I, T]: whether the text belongs to the image
        self.owned: list[list[int]] = []  # each text is one query, recorded with its first image
        taken: set[int] = set()
        for row, sample in enumerate(self.samples):
            columns = list(dict.fromkeys(number[text] for text in sample.captions))
            self.right[row, columns] = True
            self.owned.append([column for column in columns if column not in taken])
            taken.update(columns)
        size = len(self.samples)
        note = f"gallery {size} images, {len(self._texts)} captions"
        self.measures: Sequence[Measure] = [Measure(f"{way} R@{k} ({size})", note) for k in DEPTHS for way in ("i2t", "t2i")]

    def settings(self) -> dict[str, Any]:
        return {"version": 1}

    def texts(self) -> list[str]:
        return self._texts

    def ask(self, scorer: Ranker, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        owned = [self.owned[row][: scorer.queries] for row in rows]
        queries = [column for columns in owned for column in columns]
        to_text = ranks(scorer.matrix([images[row] for row in rows], self._texts), self.right[list(rows)])  # [R, 3]
        to_image = np.zeros((0, 3), np.int64)
        if queries:
            to_image = ranks(scorer.by_text(images, [self._texts[column] for column in queries]), self.right[:, queries].T)
        return self._records(owned, to_text, to_image)

    def chance(self) -> list[list[Record]]:
        queries = [column for columns in self.owned for column in columns]
        images, texts = self.right.shape
        to_text = np.array([(0, texts, count) for count in self.right.sum(axis=1)])
        to_image = np.array([(0, images, count) for count in self.right.sum(axis=0)[queries]])
        return self._records(self.owned, to_text, to_image)

    def _records(self, owned: Sequence[Sequence[int]], to_text: np.ndarray, to_image: np.ndarray) -> list[list[Record]]:
        """An image's records: itself as the query, then those of its captions that are queries, `owned`."""
        i2t, t2i = self._recalls("i2t", to_text), iter(self._recalls("t2i", to_image))
        return [
            [{"query": "image"} | found, *({"query": self._texts[column]} | next(t2i) for column in columns)]
            for columns, found in zip(owned, i2t, strict=True)
        ]

    def _recalls(self, way: str, places: np.ndarray) -> list[Record]:
        recalls = {f"{way} R@{k} ({len(self.samples)})": expected_recall(places, k) for k in DEPTHS}
        return [
            {"above, tied, right": [int(number) for number in place]} | {name: float(values[query]) for name, values in recalls.items()}
            for query, place in enumerate(places)
        ]
