"""Conversations about images: their layout in tokens, and the base class of models that reply (MiniGPT-4, LLaVA).

    caption        [start] image caption \n
    conversation   [start] SYSTEM HUMAN OPENING image CLOSING request ASSISTANT reply END HUMAN request ASSISTANT reply END ...

The signs in capitals are a model's own (`Signs`). Only replies are targets, each with the sign that ends it. The words between two images
or replies are tokenised together, as the language model would read them in one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.contract import IGNORE_INDEX
from models.shared.generate import GREEDY, Decoding
from models.shared.images import distinct
from models.shared.prefix import SOFT, continued, right_padded
from models.shared.prefix_model import PrefixModel
from models.shared.prompts import DESCRIBE
from models.shared.text import LONGEST, Tokenizer

END_OF_CAPTION = "\n"
SAMPLED = Decoding(temperature=0.7, top_p=0.9)  # of a chat: greedy replies repeat themselves, "a pink star, a pink star and a pink star"


class Turn(NamedTuple):
    request: str
    reply: str


class Reply(NamedTuple):
    text: str
    ended: bool  # by itself; otherwise it was cut at the limit


class Row(NamedTuple):
    """One sequence: ids, with `SOFT` in the places of the image's vectors; and labels, `IGNORE_INDEX` where nothing is learned."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Signs:
    """The words around requests, replies and images."""

    human: str
    """before a request"""
    assistant: str
    """before a reply"""
    opening: str = ""
    """before the image; "{}" in it is the image's number"""
    closing: str = ""
    """after the image"""
    end: str = ""
    """after a reply; "" is the tokenizer's end token"""
    system: str = ""
    """before the first request"""
    restart: bool = False
    """a start token before every request, not only the first"""


# Vicuna v0's, with MiniGPT-4's marks of an image (section 3.2): plain text, no tokens of their own. The suite's language model knows it.
VICUNA_V0 = Signs("###Human: ", " ###Assistant:", "<Img>", "</Img> ", "###")


@dataclass(frozen=True)
class Template:
    tokenizer: Tokenizer
    places: int  # vectors that an image becomes
    context: int  # most tokens of a request, and of a target; the end sign comes on top
    signs: Signs = VICUNA_V0

    def caption(self, text: str) -> Row:
        return _row([self.before_caption()], [[*self._text(text), *self._after(END_OF_CAPTION)]])

    def before_caption(self) -> list[int]:
        return [*self._start(), *self._part(None)]

    def conversation(self, turns: Sequence[Turn], *, images: int = 1) -> Row:
        """Turns about so many images, which stand before the first request."""
        asked = [self._asked(turn.request, images if number == 0 else None) for number, turn in enumerate(turns)]
        return _row(asked, [[*self._text(turn.reply), *self.end_of_reply] for turn in turns])

    def before_reply(self, turns: Sequence[Turn], request: str, *, images: int = 1) -> list[int]:
        """The conversation so far and one more request: the prompt of the assistant's reply."""
        return [*self.conversation(turns, images=images).ids, *self._asked(request, None if turns else images)]

    def interleaved(self, parts: Sequence[object]) -> list[int]:
        """Texts and images (everything that is not a string), in any order."""
        return [*self._start(), *(token for part in parts for token in self._part(part))]

    @property
    def end_of_reply(self) -> list[int]:
        """The tokens of the sign that ends a reply. The first of them ends it."""
        return self._after(self.signs.end) if self.signs.end else [self.tokenizer.end]

    @property
    def end_of_caption(self) -> list[int]:
        return self._after(END_OF_CAPTION)

    def _asked(self, request: str, images: int | None) -> list[int]:
        """The first request with so many images; without a number a later one."""
        signs, tokens = self.signs, self._text(request)
        words = request[:LONGEST] if len(tokens) < self.context else self.tokenizer.decode(tokens)
        if images is None and signs.restart:
            return [*self._start(), *self.tokenizer.encode(f"{signs.human}{words}{signs.assistant}")]
        if images is None:
            return self._after(f"{signs.human}{words}{signs.assistant}")
        parts = [*self.tokenizer.encode(signs.system + signs.human + (signs.opening.format(1) if images else ""))]  # it keeps its own list
        for image in range(1, images + 1):
            parts += [*self._part(None), *(self._after(signs.closing + signs.opening.format(image + 1)) if image < images else [])]
        return [*self._start(), *parts, *self._after(f"{signs.closing if images else ''}{words}{signs.assistant}")]

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


def packed(groups: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
    """ "ids" and "labels" `[B, K, T]` of up to K rows for each of B images; rows that are missing are all padding."""
    most = max(map(len, groups))
    rows = [row for group in groups for row in [*group, *[Row([], [])] * (most - len(group))]]
    return {name: values.unflatten(0, (len(groups), most)) for name, values in laid_out(rows).items()}


def _row(prompts: Sequence[list[int]], targets: Sequence[list[int]]) -> Row:
    """Parts that are only read, each with the target that follows it."""
    ids, labels = [], []
    for before, after in zip(prompts, targets, strict=True):
        ids += [*before, *after]
        labels += [*[IGNORE_INDEX] * len(before), *after]
    return Row(ids, labels)


class ChatModel(PrefixModel):
    """A model that replies to requests about an image. A subclass sets `template`, and `places` to its number of vectors."""

    template: Template
    score_kind = "likelihood"

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        """Its replies to a request for a description."""
        return [reply.text for reply in self.reply(images, [DESCRIBE[0]] * len(images), how=how)]

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return [reply.text for reply in self.reply(images, questions)]

    @torch.no_grad()
    def reply(
        self,
        images: Sequence[np.ndarray | Sequence[np.ndarray]],
        requests: Sequence[str],
        *,
        before: Sequence[Sequence[Turn]] | None = None,
        how: Decoding = GREEDY,
        template: Template | None = None,
    ) -> list[Reply]:
        """Its reply to each request about an image, or about several or none, after the turns `before` it; in its own template, or in
        another one with the same end of a reply."""
        layout = template or self.template
        shown = [[each] if isinstance(each, np.ndarray) else list(each) for each in images]
        rows = [
            layout.before_reply(turns, request, images=len(some))
            for some, turns, request in zip(shown, before or [()] * len(requests), requests, strict=True)
        ]
        if all(len(some) == 1 for some in shown):
            distinct_images, pictures = distinct([some[0] for some in shown])
            return self.go_on(rows, self.look(distinct_images), how=how, pictures=pictures)
        return self.go_on(rows, self.look([image for some in shown for image in some]).flatten(0, 1), how=how)

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[str | np.ndarray]]) -> list[str]:
        """What follows each prompt of images and texts in any order, up to the end of the line; not a conversation."""
        soft = self.look([part for prompt in prompts for part in prompt if not isinstance(part, str)])
        rows = [self.template.interleaved(prompt) or [self.tokenizer.end] for prompt in prompts]
        return [reply.text for reply in self.go_on(rows, soft, end=self.template.end_of_caption[0])]

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, its end included; without a request, as in the first stage."""
        return self._of_rows(images, [self.template.caption(text) for text in texts])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        pairs = zip(questions, answers, strict=True)
        return self._of_rows(images, [self.template.conversation([Turn(*pair)]) for pair in pairs])

    def _of_rows(self, images: Sequence[np.ndarray], rows: Sequence[Row]) -> Tensor:
        return self.likelihoods(images, **laid_out(rows))

    @torch.no_grad()
    def go_on(
        self,
        rows: Sequence[Sequence[int]],
        soft: Tensor,
        *,
        end: int | None = None,
        how: Decoding = GREEDY,
        pictures: Sequence[int] | None = None,
    ) -> list[Reply]:
        """What follows each of the template's sequences, whose images became `soft` (with `pictures`: of which the i-th sequence shows
        `pictures[i]`), up to the `end` token (default: of the sign that ends a reply), or the language model's own end."""
        if not rows:
            return []
        stop, limit = self.template.end_of_reply[0] if end is None else end, self.config.context
        found = []
        for tokens in continued(self.language, self.tokenizer, rows, soft, limit=limit, end=stop, how=how, pictures=pictures):
            reply = tokens[: tokens.index(self.tokenizer.end)] if self.tokenizer.end in tokens else tokens
            found.append(Reply(self.tokenizer.decode(reply), ended=len(reply) < limit))
        return found
