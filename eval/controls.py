"""What keeps a table honest: what one scores without looking, without training, with the wrong pictures, and with the truth.

Chance is not here: each task computes its own exactly, from the answers of one who cannot see (`Task.blind`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import models
from data.sample import Sample
from data.scenes.language import agreement
from eval.capabilities import Images, PairScorer, Texts


def derangement(n: int, seed: int = 0) -> list[int]:
    """A random permutation of range(n) that leaves nothing in its place (one cycle through all). Needs n >= 2."""
    if n < 2:
        raise ValueError(f"cannot derange {n} item(s): images can only be exchanged among at least two samples")
    order = np.random.default_rng(seed).permutation(n)
    where = np.empty(n, np.int64)
    where[order] = np.roll(order, -1)
    return [int(i) for i in where]


def oracle(samples: Sequence[Sample], batch_size: int = 4096) -> PairScorer:
    """A scorer that knows the truth about scenes: the share of a caption's claims that hold for the picture.

    It recognises a picture by its array, so it must be shown the very arrays of `samples`. Where it errs, the captions of
    the data set do not tell its pictures apart: it is the ceiling.
    """
    known = {id(sample.image): sample for sample in samples}

    def score(images: Images, texts: Texts) -> list[float]:
        return [agreement(text, known[id(image)]) for image, text in zip(images, texts, strict=True)]

    return PairScorer(score, "truth", batch_size)


def has_oracle(samples: Sequence[Sample]) -> bool:
    """Whether the truth about every picture is known in the terms of `data.scenes`."""
    return all(sample.objects and "relations" in sample.extra and "texture" in sample.extra for sample in samples)


def untrained(folder: Path, device: str, seed: int = 0) -> nn.Module:
    """The model of a run folder, freshly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # constructors draw from the global generator; it is given back as it was
        return models.load(folder, device, weights=False)
