"""Documents and tasks as sequences of tokens, and CM3's rearrangement of them (Aghajanyan et al., 2022, arXiv 2201.07520).

A document is `<start> text <break> picture <end>`. The causally masked objective cuts spans out, leaves `<mask>` in their place,
and appends `<infill>` and the span for each, in order: the model then writes the span knowing both sides of it. A document
whose whole text is cut out, `<start> <mask> <break> picture <infill> text <end>`, is captioning; its picture is drawn without knowing any
text, which is the unconditional half of classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Kind(IntEnum):
    """The role of a token in the loss."""

    NOTHING = 0  # padding
    PROMPT = 1  # text before a picture, and <start>
    WRITTEN = 2  # text that follows a picture, or fills a gap
    DRAWN = 3  # picture that follows a text
    UNCONDITIONAL = 4  # picture whose text is cut out, or before an instruction's answer


@dataclass(frozen=True)
class Vocabulary:
    """Ids: text, then the three marks, then image tokens."""

    text: int
    images: int

    @property
    def break_(self) -> int:
        return self.text

    @property
    def mask(self) -> int:
        return self.text + 1

    @property
    def infill(self) -> int:
        return self.text + 2

    @property
    def image(self) -> slice:
        """The ids of image tokens."""
        return slice(self.text + 3, self.text + 3 + self.images)

    @property
    def size(self) -> int:
        return self.image.stop


@dataclass(frozen=True)
class Frame:
    """Positions of a document's tokens if every document takes a frame of the same `length`, whether it fills it or not.

    Then a picture's cell has one position, however long the text before it is, and a span that is cut out keeps its position:
    small models learn to draw much sooner. Regions: start, text, break, picture, break, answer or second picture.
    """

    text: int
    cells: int

    @property
    def picture(self) -> int:
        return 2 + self.text

    @property
    def answer(self) -> int:
        return self.picture + self.cells + 1

    @property
    def length(self) -> int:
        return self.answer + max(self.text, self.cells) + 1


class Token(NamedTuple):
    id: int  # below 0: cell -1 - id of the sample's pictures, one after another; it becomes an image token once they are tokenised
    place: int
    kind: Kind


@dataclass
class Builder:
    """Makes sequences; texts are cut to the frame."""

    vocabulary: Vocabulary
    frame: Frame
    start: int
    end: int

    def document(self, text: Sequence[int], spans: Sequence[tuple[int, int]] = (), *, drawn: Kind = Kind.DRAWN) -> list[Token]:
        """`<start> text <break> picture <end>` with these spans `[first, stop)` of `text <break> picture` cut out and appended.

        Raises ValueError when a span crosses the break, is empty, or overlaps the one before it.
        """
        text = text[: self.frame.text]
        body = [*self._text(text, 1, Kind.PROMPT), self._break(1 + self.frame.text), *self._cells(0, drawn)]
        return [Token(self.start, 0, Kind.PROMPT), *self._rearranged(body, len(text), spans), self._end()]

    def answered(self, prompt: Sequence[int], answer: Sequence[int] | None = None) -> list[Token]:
        """`<start> prompt <break> picture <break> answer <end>`: captioning, questions, and any other instruction that is answered in
        words. Without an answer: the prompt up to where it begins."""
        asked = self._asked(prompt)
        return asked if answer is None else [*asked, *self._text(answer[: self.frame.text], self.frame.answer, Kind.WRITTEN), self._end()]

    def edited(self, prompt: Sequence[int], *, whole: bool = True) -> list[Token]:
        """`<start> prompt <break> picture <break> second picture <end>`, or (not `whole`) the prompt up to where the second begins."""
        return [*self._asked(prompt), *self._cells(1, Kind.DRAWN), self._end()] if whole else self._asked(prompt)

    def captioning(self) -> list[Token]:
        """The prompt `<start> <mask> <break> picture <infill>`."""
        return self.document([self.end], [(0, 1)], drawn=Kind.UNCONDITIONAL)[:-2]

    def drawing(self, text: Sequence[int] | None) -> list[Token]:
        """The prompt `<start> text <break>`; without a text `<start> <mask> <break>`."""
        if text is None:
            return self.captioning()[:3]
        return self.document(text)[: -self.frame.cells - 1]

    def _asked(self, prompt: Sequence[int]) -> list[Token]:
        text = self._text(prompt[: self.frame.text], 1, Kind.PROMPT)
        breaks = self._break(1 + self.frame.text), self._break(self.frame.answer - 1)
        return [Token(self.start, 0, Kind.PROMPT), *text, breaks[0], *self._cells(0, Kind.UNCONDITIONAL), breaks[1]]

    def _rearranged(self, body: list[Token], break_at: int, spans: Sequence[tuple[int, int]]) -> list[Token]:
        kept: list[Token] = []
        moved: list[Token] = []
        done = 0
        for first, stop in spans:
            if not done <= first < stop <= len(body) or first <= break_at < stop:
                raise ValueError(
                    f"span {first}..{stop} of a document of {len(body)} tokens with its <break> at {break_at}: spans must be in order, "
                    "not empty, not overlapping, and on one side of the <break>"
                )
            kept += [*body[done:first], Token(self.vocabulary.mask, body[first].place, Kind.PROMPT)]
            moved += [Token(self.vocabulary.infill, body[first].place, Kind.PROMPT)]
            moved += [Token(id_, place, Kind.WRITTEN if id_ >= 0 else Kind.DRAWN) for id_, place, _ in body[first:stop]]
            done = stop
        return [*kept, *body[done:], *moved]

    def _text(self, ids: Sequence[int], place: int, kind: Kind) -> list[Token]:
        return [Token(id_, place + index, kind) for index, id_ in enumerate(ids)]

    def _cells(self, picture: int, kind: Kind) -> tuple[Token, ...]:
        return _cells(self.frame, picture, kind)

    def _break(self, place: int) -> Token:
        return Token(self.vocabulary.break_, place, Kind.PROMPT)

    def _end(self) -> Token:
        return Token(self.end, self.frame.length - 1, Kind.WRITTEN)


@cache
def _cells(frame: Frame, picture: int, kind: Kind) -> tuple[Token, ...]:
    """Placeholders of a picture's tokens, the same in all sequences."""
    first = frame.answer if picture else frame.picture
    return tuple(Token(-1 - picture * frame.cells - cell, first + cell, kind) for cell in range(frame.cells))


def random_spans(text: int, cells: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """CM3's random spans: their number is Poisson with mean 1, at least 1 and at most 16; each span has uniform ends on one side of the
    break. `text` and `cells` are the lengths of the two sides."""
    wanted = int(np.clip(rng.poisson(1.0), 1, 16))
    spans: list[tuple[int, int]] = []
    for _ in range(wanted):
        side = 0 if rng.random() * (text + cells) < text else text + 1
        length = text if side == 0 else cells
        first, last = sorted(int(end) for end in rng.integers(length, size=2))
        span = (side + first, side + last + 1)
        if all(span[1] <= other[0] or other[1] <= span[0] for other in spans):
            spans.append(span)
    return sorted(spans)


def stack(rows: Sequence[Sequence[Token]], *, pad: int) -> dict[str, Tensor]:
    """`ids`, `places` and `kinds`, int64 `[B, T]`, padded at the end."""
    table = np.zeros((3, len(rows), max(map(len, rows))), np.int64)
    table[0] = pad
    for index, row in enumerate(rows):
        table[:, index, : len(row)] = np.array(row, np.int64).T
    ids, places, kinds = torch.from_numpy(table)
    return {"ids": ids, "places": places, "kinds": kinds}
