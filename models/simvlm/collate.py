"""Batches for prefix language modelling: each text is cut into a prefix, which the encoder reads, and the rest, which is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from data.sample import Sample
from models.contract import IGNORE_INDEX, Batch
from models.lm.corpus import documents
from models.shared.images import ImageTransform
from models.shared.prefix import right_padded
from models.shared.prompts import ask
from models.shared.text import LONGEST, Tokenizer


@dataclass(frozen=True)
class Mix:
    """Shares of what a batch is made of."""

    texts: float = 1 / 9
    """documents without their picture; section 4.1 has 512 of them with 4,096 pairs"""
    questions: float = 0.0
    """of the samples: a question is another prefix with the same picture, its answer the rest"""
    whole: float = 0.0
    """of the captions: nothing is in the prefix but the picture; all others are cut at a place drawn uniformly"""
    answer_weight: float = 1.0
    """weight of the tokens of answers, which are far fewer than those of captions"""


class Text(NamedTuple):
    prefix: list[int]
    rest: list[int]
    """with its end"""
    shown: bool
    weight: float


@dataclass(frozen=True)
class PrefixLMCollate:
    transform: ImageTransform
    tokenizer: Tokenizer
    context: int
    """most tokens of a prefix, and of the rest with its end"""
    mix: Mix

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """ "pixels" uint8 `[B, 3, S, S]`, and of K texts of each sample: "prefix" `[B, K, P]`, ids and `PADDING`; "labels" `[B, K, L]`, the
        rest with its end, and `IGNORE_INDEX`; "shown" bool `[B, K]`, whether the prefix contains the picture; "weight" `[B, K]`, of each
        token of the rest. K is 2 if there are questions, else 1; where a sample has no question, there are no labels.

        Without a generator: the first caption, whole, with its picture.
        """
        rows = [self._caption(sample, rng) for sample in samples]
        alone = [] if rng is None else [index for index in range(len(samples)) if rng.random() < self.mix.texts]
        if alone and rng is not None:
            for index, text in zip(alone, documents([samples[index] for index in alone], rng), strict=True):
                tokens = self.tokens(text)
                if len(tokens) > 1:  # something to read, and something to predict from it
                    rows[index] = self._cut(tokens, 1 + int(rng.integers(len(tokens) - 1)), shown=False)
        if self.mix.questions and rng is not None:
            rows = [row for pair in zip(rows, (self._question(sample, rng) for sample in samples), strict=True) for row in pair]
        prefixes, labels, shown, weights = zip(*rows, strict=True)
        texts = {
            "prefix": right_padded(prefixes),
            "labels": right_padded(labels, IGNORE_INDEX),
            "shown": torch.tensor(shown),
            "weight": torch.tensor(weights),
        }
        pixels = self.transform([sample.image for sample in samples], rng)
        return {"pixels": pixels} | {name: each.unflatten(0, (len(samples), -1)) for name, each in texts.items()}

    def question(self, question: str) -> list[int]:
        """The prefix that is answered."""
        return self.tokens(ask(question))

    def rest(self, text: str) -> list[int]:
        """What follows a prefix, in tokens, without its end."""
        return self.tokens(text)[: self.context - 1]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.context]

    def _caption(self, sample: Sample, rng: np.random.Generator | None) -> Text:
        caption = sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] if sample.captions else ""
        tokens = self.rest(caption)
        whole = rng is None or rng.random() < self.mix.whole or not tokens
        return self._cut(tokens, 0 if whole or rng is None else int(rng.integers(len(tokens))))

    def _question(self, sample: Sample, rng: np.random.Generator) -> Text:
        if not sample.questions or rng.random() >= self.mix.questions:
            return Text([], [], True, 0.0)
        asked = sample.questions[int(rng.integers(len(sample.questions)))]
        return Text(self.question(asked.question), [*self.rest(asked.answer), self.tokenizer.end], True, self.mix.answer_weight)

    def _cut(self, tokens: list[int], place: int, *, shown: bool = True) -> Text:
        """At least one token is left to predict, beside the end."""
        return Text(tokens[:place], [*tokens[place:][: self.context - 1], self.tokenizer.end], shown, 1.0)
