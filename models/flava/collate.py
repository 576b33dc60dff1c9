"""Collate FLAVA's batches from the same samples: pairs, images only, texts only and questions, with masks and mismatched pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from data.fields import require
from data.sample import Sample
from models.contract import IGNORE_INDEX
from models.shared.images import ImageTransform, inside_boxes
from models.shared.masking import TokenMasking, block_mask
from models.shared.matching import draw_foil
from models.shared.text import Tokenizer

PAIR, IMAGE, TEXT, QUESTION = 0, 1, 2, 3


@dataclass(frozen=True)
class Mixture:
    """The composition of a batch. The paper samples one data set per step (section 3.3: pairs .70, images .15, texts .15); here every
    batch has all three in these proportions, so that every step has all losses."""

    pictures: float = 0.15
    texts: float = 0.15
    questions: float = 0.0
    mismatched: float = 0.0  # of the pairs: those that get another caption, for the matching loss
    hard: float = 0.0  # of the pairs: those that get a foil if they mismatch, and the foil's caption if they match
    swaps: float = 0.5  # of the foils: those that exchange words, where a picture has both kinds

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(0 <= value <= 1, f"mixture.{field.name}", value, "a share from 0 to 1")
        alone = self.pictures + self.texts + self.questions
        require(alone <= 1 + 1e-9, "mixture.pictures + texts + questions", alone, "at most 1; the others are pairs")

    def kinds(self, size: int) -> Tensor:
        """PAIR, IMAGE, TEXT or QUESTION for each of `size` samples: the same on every rank and in every step."""
        wanted: list[int] = []
        for kind, share in ((IMAGE, self.pictures), (TEXT, self.texts), (QUESTION, self.questions)):
            wanted += [kind] * min(round(share * size), size - len(wanted))  # halves of an odd number are both rounded up
        return torch.tensor([PAIR] * (size - len(wanted)) + wanted)


@dataclass(frozen=True)
class MaskedCollate:
    transform: ImageTransform
    tokenizer: Tokenizer
    context: int
    side: int  # patches per side of a picture
    patches: int  # masked ones
    masking: TokenMasking
    mask: int  # id of the mask token
    mixture: Mixture
    answers: tuple[str, ...] = ()

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`; "objects" bool `[B, 1, S, S]`, inside of their boxes; "ids", "masked_ids", "labels" `[B, T]`;
        "patches" bool `[B, N]`, the masked ones; "kind" `[B]`; "match" bool `[B]`; "answer" `[B]`, `IGNORE_INDEX` without a question.
        Without a generator (validation) captions are the first ones and everything is drawn with seed 0."""
        draw = rng or np.random.default_rng(0)
        texts = [sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples]
        kind, match = self.mixture.kinds(len(samples)), torch.ones(len(samples), dtype=torch.bool)
        pairs = int((kind == PAIR).sum())
        mismatched = draw.permutation(pairs)[: round(self.mixture.mismatched * pairs)].tolist() if pairs > 1 else []
        captions = texts[:pairs]
        for row in range(pairs):
            texts[row], false = self._true_and_false(samples[row], row, captions, draw)
            if row in mismatched and false is not None:
                texts[row], match[row] = false, False
        answer = torch.full((len(samples),), IGNORE_INDEX)
        for row in (kind == QUESTION).nonzero()[:, 0].tolist():
            if asked := samples[row].questions:
                question = asked[int(draw.integers(len(asked)))]
                texts[row] = question.question
                answer[row] = self.answers.index(question.answer) if question.answer in self.answers else IGNORE_INDEX
        ids, masked, labels = self.masking(self.tokenizer, texts, self.context, mask=self.mask, rng=draw)
        patches = np.stack([block_mask(self.side, self.patches, draw).reshape(-1) for _ in samples])
        seed = draw.integers(2**63)  # the boxes are cropped as the pictures are
        crops = [None, None] if rng is None else [np.random.default_rng(seed) for _ in range(2)]
        return {
            "pixels": self.transform([sample.image for sample in samples], crops[0]),
            "objects": self.transform(inside_boxes(samples), crops[1])[:, :1] > 127,
            "ids": ids,
            "masked_ids": masked,
            "labels": labels,
            "patches": torch.from_numpy(patches),
            "kind": kind,
            "match": match,
            "answer": answer,
        }

    def _true_and_false(self, sample: Sample, row: int, captions: list[str], rng: np.random.Generator) -> tuple[str, str | None]:
        """A text that is true of the sample and one that is false: a caption and its foil, or two captions of the batch. The false
        one is None if all others are true of the sample, too."""
        if rng.random() < self.mixture.hard and (foil := draw_foil(sample, rng, swaps=self.mixture.swaps)):
            return foil.caption, foil.foil
        others = [caption for caption in captions if caption not in sample.captions]
        return captions[row], others[int(rng.integers(len(others)))] if others else None
