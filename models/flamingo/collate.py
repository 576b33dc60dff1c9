"""Pages as sequences: a picture is one tag, which the text after it belongs to.

    page      [start] <picture 0> text <end> <picture 1> text <end>
    caption   [start] <picture> caption <end>
    question  [start] <picture> question: ... answer: ... <end>      only the answer is learned

The end token ends every text, and stands before every picture (the paper's <EOC>).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from models.contract import IGNORE_INDEX
from models.shared.images import ImageTransform
from models.shared.prefix import SOFT, right_padded
from models.shared.prompts import ask
from models.shared.text import LONGEST, Tokenizer

STATES = "flamingo states"  # key in Sample.extra: the image encoder's states of a sample's pictures, float16 `[P, N, D]`
NOTHING = -1  # the picture of a token that belongs to none


@dataclass
class Row:
    """One sequence: token ids with `SOFT` in the place of pictures, labels, the picture that each token sees (by its number in the
    sequence), and the pictures in the order in which they are read (by their number in the sample)."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)

    def show(self, picture: int) -> None:
        self.pictures.append(picture)
        self.read([SOFT], len(self.pictures) - 1)

    def read(self, tokens: Sequence[int], picture: int, *, learned: bool = False) -> None:
        self.ids += tokens
        self.labels += tokens if learned else [IGNORE_INDEX] * len(tokens)
        self.seen += [picture] * len(tokens)

    def cut(self, length: int) -> None:
        for values in (self.ids, self.labels, self.seen):
            del values[length:]
        del self.pictures[max(1, self.ids.count(SOFT)) :]  # a text may see a picture whose tag is cut off
        self.seen = [min(picture, len(self.pictures) - 1) for picture in self.seen]


@dataclass(frozen=True)
class PageCollate:
    """Collates pages, captions and questions."""

    transform: ImageTransform
    tokenizer: Tokenizer
    context: int  # tokens of a page, or of one text
    pictures: int  # of a page, at most; it ends before the next one
    questions: float  # share of one-picture samples with a question instead of a caption
    pages: float  # share of samples with a page that are read as pages; the others as pairs

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "ids", "labels" and "seen" int64 `[B, T]`; "pictures" `[B]`, their number, and "paged" bool `[B]`; "pixels" uint8
        `[B, P, 3, S, S]`, or "states" float16 `[B, P, N, D]` if the samples have them. Without a generator: pages, and first captions."""
        paged = [bool(sample.page) and (rng is None or rng.random() < self.pages) for sample in samples]
        rows = [self.page(each.page) if as_page else self._pair(each, rng) for each, as_page in zip(samples, paged, strict=True)]
        counts = [len(row.pictures) for row in rows]
        shown = [self._pictures(sample, row.pictures) for sample, row in zip(samples, rows, strict=True)]
        padded = shown[0].new_zeros(len(samples), max(1, *counts), *shown[0].shape[1:])
        for place, pictures in zip(padded, shown, strict=True):
            place[: len(pictures)] = pictures
        return {
            "ids": right_padded([row.ids for row in rows]),
            "labels": right_padded([row.labels for row in rows], IGNORE_INDEX),
            "seen": right_padded([row.seen for row in rows], NOTHING),
            "pictures": torch.tensor(counts),
            "paged": torch.tensor(paged),
            "states" if STATES in samples[0].extra else "pixels": padded,
        }

    def page(self, parts: Sequence[str | int]) -> Row:
        """Of a page that begins with a text every text belongs to the picture after it, otherwise to the one before it (section 3.3; there
        it is drawn at random)."""
        row, ahead = self.begun(), isinstance(parts[0], str)
        total = min(self.pictures, sum(isinstance(part, int) for part in parts))
        for part in parts:
            read = len(row.pictures)
            if isinstance(part, str):
                row.read(self.ended(part), min(read, total - 1) if ahead else read - 1, learned=True)
            elif read < total:
                row.show(part)
            else:
                break
        row.cut(self.context)
        return row

    def pair(self, text: str, question: str | None = None) -> Row:
        """A picture with a caption, or with a question and its answer."""
        row = self.begun()
        row.show(0)
        if question is not None:
            row.read(self.tokens(ask(question)), 0)
        row.read(self.ended(text), 0, learned=True)
        return row

    def begun(self) -> Row:
        row = Row()
        if self.tokenizer.start is not None:
            row.read([self.tokenizer.start], NOTHING)
        return row

    def ended(self, text: str) -> list[int]:
        return [*self.tokens(text), self.tokenizer.end]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.strip("\n")[:LONGEST])[: self.context - 1]

    def _pair(self, sample: Sample, rng: np.random.Generator | None) -> Row:
        if rng is not None and sample.questions and rng.random() < self.questions:
            asked = sample.questions[int(rng.integers(len(sample.questions)))]
            return self.pair(asked.answer, asked.question)
        return self.pair(sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] if sample.captions else "")

    def _pictures(self, sample: Sample, numbers: list[int]) -> Tensor:
        """These pictures of a sample, `[P, ...]`."""
        if STATES in sample.extra:
            return torch.from_numpy(sample.extra[STATES][numbers])
        side = self.transform.size
        return self.transform([sample.images[number] for number in numbers]) if numbers else torch.zeros(0, 3, side, side).byte()
