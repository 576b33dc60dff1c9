"""Helpers for distributed objectives: gather rows with gradients, and exact means over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather(x: Tensor) -> Tensor:
    """Gather rows `[b, ...]` from all ranks to `[world * b, ...]`, with gradients from every rank's loss. Returns x in a single process."""
    return _Gather.apply(x) if ranks() > 1 else x


def mean_of_all(totals: Tensor, counts: Tensor) -> Tensor:
    """sum(totals) / sum(counts) over the samples of all ranks, both `[b]`; 0 if all counts are zero.

    Each rank returns its own contribution times the number of ranks, so that averaging values and gradients over ranks gives
    the exact mean even if counts differ between ranks.
    """
    everywhere = gather(counts)
    return totals.sum() * (len(everywhere) / len(counts)) / everywhere.sum().clamp(min=1)


def pass_on(x: Tensor) -> Tensor:
    """Send a tensor to the next rank, and return the one of the previous rank. Without gradients."""
    world, place, received = dist.get_world_size(), dist.get_rank(), torch.empty_like(x)
    there, here = dist.P2POp(dist.isend, x.contiguous(), (place + 1) % world), dist.P2POp(dist.irecv, received, (place - 1) % world)
    for work in dist.batch_isend_irecv([there, here]):
        work.wait()
    return received


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
        dist.all_reduce(grad)  # the losses of all ranks depend on these rows
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
