"""Batches for prefix language modelling: each text is cut into a prefix, which the encoder reads, and the rest, which is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """of the pictures: a question is the prefix, its answer the rest"""
    whole: float = 0.0
    """of the captions: nothing is in the prefix but the picture; all others are cut at a place drawn uniformly"""
    answer_weight: float = 1.0
    """weight of the tokens of answers, which are far fewer than those of captions"""


@dataclass(frozen=True)
class PrefixLMCollate:
    transform: ImageTransform
    tokenizer: Tokenizer
    context: int
    """most tokens of a prefix, and of the rest with its end"""
    mix: Mix

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """ "pixels" uint8 `[B, 3, S, S]`; "prefix" `[B, P]`, ids and `PADDING`; "labels" `[B, L]`, the rest with its end, and
        `IGNORE_INDEX`; "shown" bool `[B]`, whether the prefix contains the picture; "weight" `[B]`, of each token of the rest.

        Without a generator: the first caption, whole, with its picture.
        """
        rows = [self._pair(sample, rng) for sample in samples]
        alone = [] if rng is None else [index for index in range(len(samples)) if rng.random() < self.mix.texts]
        shown = torch.ones(len(samples), dtype=torch.bool)
        if alone and rng is not None:
            for index, text in zip(alone, documents([samples[index] for index in alone], rng), strict=True):
                tokens = self.tokens(text)
                if len(tokens) > 1:  # something to read, and something to predict from it
                    rows[index] = self._cut(tokens, 1 + int(rng.integers(len(tokens) - 1)))
                    shown[index] = False
        prefixes, labels, weights = zip(*rows, strict=True)
        return {
            "pixels": self.transform([sample.image for sample in samples], rng),
            "prefix": right_padded(prefixes),
            "labels": right_padded(labels, IGNORE_INDEX),
            "shown": shown,
            "weight": torch.tensor(weights),
        }

    def question(self, question: str) -> list[int]:
        """The prefix that is answered."""
        return self.tokens(ask(question))

    def rest(self, text: str) -> list[int]:
        """What follows a prefix, in tokens, without its end."""
        return self.tokens(text)[: self.context - 1]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.context]

    def _pair(self, sample: Sample, rng: np.random.Generator | None) -> tuple[list[int], list[int], float]:
        """Prefix, rest and weight: a question and its answer, or a caption that is cut."""
        if rng is not None and sample.questions and rng.random() < self.mix.questions:
            asked = sample.questions[int(rng.integers(len(sample.questions)))]
            return self.question(asked.question), [*self.rest(asked.answer), self.tokenizer.end], self.mix.answer_weight
        caption = sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] if sample.captions else ""
        tokens = self.rest(caption)
        whole = rng is None or rng.random() < self.mix.whole or not tokens
        return self._cut(tokens, 0 if whole or rng is None else int(rng.integers(len(tokens))))

    def _cut(self, tokens: list[int], place: int) -> tuple[list[int], list[int], float]:
        """At least one token is left to predict, beside the end."""
        return tokens[:place], [*tokens[place:][: self.context - 1], self.tokenizer.end], 1.0
