"""The layout of texts and conversations about a picture for the language model (section 3).

    stage 1   [start] image caption \\n
    stage 2   [start] ###Human: <Img> image </Img> request ###Assistant: reply### ###Human: request ###Assistant: reply###

(without blanks around the signs). Only the assistant's replies are learned, with the sign that ends them. The words between two
images or replies are tokenised together, as the language model would read them in one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from models.contract import IGNORE_INDEX
from models.shared.prefix import SOFT, right_padded
from models.shared.text import LONGEST, Tokenizer

HUMAN, ASSISTANT, END_OF_TURN = "###Human: ", " ###Assistant:", "###"
OPEN, CLOSE = "<Img>", "</Img> "  # plain text, no tokens of their own
END_OF_CAPTION = "\n"


class Turn(NamedTuple):
    request: str
    reply: str


class Row(NamedTuple):
    """One sequence: ids, with `SOFT` in the places of the image's vectors; and labels, `IGNORE_INDEX` where nothing is learned."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Template:
    tokenizer: Tokenizer
    places: int  # vectors that an image becomes
    context: int  # most tokens of a request, and of a target; the end sign comes on top

    def caption(self, text: str) -> Row:
        return _row([self.before_caption()], [self._target(text, END_OF_CAPTION)])

    def before_caption(self) -> list[int]:
        return [*self._start(), *self._part(None)]

    def conversation(self, turns: Sequence[Turn]) -> Row:
        asked = [self._asked(turn.request, first=number == 0) for number, turn in enumerate(turns)]
        return _row(asked, [self._target(turn.reply, END_OF_TURN) for turn in turns])

    def before_reply(self, turns: Sequence[Turn], request: str) -> list[int]:
        """The conversation so far and one more request: the prompt of the assistant's reply."""
        return [*self.conversation(turns).ids, *self._asked(request, first=not turns)]

    def interleaved(self, parts: Sequence[object]) -> list[int]:
        """Texts and images (everything that is not a string), in any order."""
        return [*self._start(), *(token for part in parts for token in self._part(part))]

    def end_of(self, sign: str) -> list[int]:
        """The tokens of an end sign. The first of them ends a text."""
        return self._after(sign)

    def _asked(self, request: str, *, first: bool) -> list[int]:
        tokens = self._text(request)
        words = request[:LONGEST] if len(tokens) < self.context else self.tokenizer.decode(tokens)
        if not first:
            return self._after(f"{HUMAN}{words}{ASSISTANT}")
        return [*self._start(), *self.tokenizer.encode(HUMAN + OPEN), *self._part(None), *self._after(f"{CLOSE}{words}{ASSISTANT}")]

    def _target(self, text: str, sign: str) -> list[int]:
        return [*self._text(text), *self._after(sign)]

    def _part(self, part: object) -> list[int]:
        return self.tokenizer.encode(part[:LONGEST])[: self.context] if isinstance(part, str) else [SOFT] * self.places

    def _text(self, text: str) -> list[int]:
        """Tokens of a text after a blank, whether or not the tokenizer puts one before the first word."""
        return self._after(f" {text[:LONGEST]}")[: self.context] if text else []

    def _after(self, text: str) -> list[int]:
        """Tokens of a text that something precedes: with a blank between them only if it begins with one."""
        return self.tokenizer.encode(f"a{text}")[len(self.tokenizer.encode("a")) :]

    def _start(self) -> list[int]:
        return [] if self.tokenizer.start is None else [self.tokenizer.start]


def laid_out(rows: Sequence[Row]) -> dict[str, Tensor]:
    """ "ids" and "labels" `[N, T]`, padded on the right."""
    return {"ids": right_padded([row.ids for row in rows]), "labels": right_padded([row.labels for row in rows], IGNORE_INDEX)}


def _row(prompts: Sequence[list[int]], targets: Sequence[list[int]]) -> Row:
    """Parts that are only read, each with the target that follows it."""
    ids, labels = [], []
    for before, after in zip(prompts, targets, strict=True):
        ids += [*before, *after]
        labels += [*[IGNORE_INDEX] * len(before), *after]
    return Row(ids, labels)
