"""MLP heads with BatchNorm, which SLIP, CLIP-rocket and DeCLIP train beside the towers and drop afterwards."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.shared.distributed import gather


class BatchNorm(nn.Module):
    """BatchNorm1d over the rows of all ranks (SyncBN), so that the gradients are those of the whole batch. It belongs into `objective`: in
    `encode` a micro-batch would have statistics of its own.

    It keeps no running averages: nothing uses a head after training, and validation batches are as large as those of training.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # [b, D]
        centred = x - _mean(x)
        return centred * (_mean(centred.square()) + self.eps).rsqrt() * self.weight + self.bias


def _mean(x: Tensor) -> Tensor:
    """Over the rows of all ranks, `[D]`; each rank has as many."""
    return gather(x.mean(dim=0, keepdim=True)).mean(dim=0)


def projector(*widths: int, normed: bool = False) -> nn.Sequential:
    """Linear layers between these widths, with BatchNorm and ReLU after each but the last; after that one BatchNorm alone if `normed`."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), 2):
        last = number == len(widths)
        layers += [nn.Linear(before, after)]
        layers += [BatchNorm(after)] * (not last or normed) + [nn.ReLU()] * (not last)
    return nn.Sequential(*layers)
