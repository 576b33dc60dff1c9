"""For objectives across ranks: rows of all ranks, and exact means."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, own rows differentiable from every rank's loss. `[b, ...]` -> `[world * b, ...]`; x itself when alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


def mean_of_all(totals: Tensor, counts: Tensor) -> Tensor:
    """sum(totals) / sum(counts) over the samples of all ranks, `[b]` each; 0 when nothing was counted.

    A rank's own value is its share times the number of ranks, so that the mean over ranks, and of their gradients, is exact
    whatever the counts of each.
    """
    everywhere = gather(counts)
    return totals.sum() * (len(everywhere) / len(counts)) / everywhere.sum().clamp(min=1)


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        grad = grad.contiguous()
        dist.all_reduce(grad)  # every rank's loss has a share in these rows
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
