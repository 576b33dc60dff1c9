"""Collate samples into batches of image-caption pairs; runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data.sample import Sample
from models.shared.images import ImageTransform
from models.shared.text import Tokenizer, layout


@dataclass(frozen=True)
class PairCollate:
    """Returns uint8 pixels `[B, 3, S, S]` and token ids `[B, T]`, where T is `context` if `fixed_length`, else the longest caption."""

    transform: ImageTransform
    tokenizer: Tokenizer
    context: int
    fixed_length: bool = False

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """With a generator, use a random caption and a random crop; without, the first caption and the centre crop."""
        ids = self.captions(samples, rng)  # the generator draws captions first, then crops
        return {"pixels": self.images([sample.image for sample in samples], rng), "ids": ids}

    def captions(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Tensor:
        return self.texts([sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples])

    def images(self, images: Sequence[np.ndarray], rng: np.random.Generator | None = None) -> Tensor:
        return self.transform(images, rng)

    def texts(self, texts: Sequence[str]) -> Tensor:
        return layout(self.tokenizer, texts, self.context, fixed=self.fixed_length)
