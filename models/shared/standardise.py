"""Standardisation of a frozen encoder's features by those of some training samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from data.sample import Sample

SAMPLES = 1024  # training samples whose features give mean and deviation


class Standardise(nn.Module):
    """Features `[..., width]` with mean 0 and standard deviation 1 in each dimension; unchanged until `standardise` is called."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    def standardise(self, features: Tensor) -> None:
        """Use mean and standard deviation of these features `[N, width]`. A dimension that never changes is only centred."""
        deviation = features.std(dim=0, correction=0)
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(deviation.where(deviation > 1e-6, 1.0))


def some_samples(batches: Iterable[Sequence[Sample]]) -> list[Sample]:
    """Every fourth of the first training samples, `SAMPLES` or a few more if there are as many."""
    found: list[Sample] = []
    for batch in batches:
        found += batch[::4]
        if len(found) >= SAMPLES:
            break
    return found
