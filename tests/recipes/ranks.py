"""Two ranks without two processes: threads of one, which meet at every collective that an objective calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import models.shared.distributed


class Meeting:
    """What models/shared/distributed.py uses of torch.distributed, for threads."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.mine = world, threading.Barrier(world, timeout=60), threading.local()
        self.slots: list[Any] = [None] * world

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return hasattr(self.mine, "rank")

    def get_world_size(self) -> int:
        return self.world

    def get_rank(self) -> int:
        return self.mine.rank

    def all_gather(self, rows: list[Tensor], x: Tensor) -> None:
        for row, theirs in zip(rows, self._exchange(x), strict=True):
            row.copy_(theirs)

    isend, irecv = "isend", "irecv"

    class P2POp(NamedTuple):
        what: str
        tensor: Tensor
        peer: int

    def batch_isend_irecv(self, operations: list[P2POp]) -> list[Any]:
        """One tensor to a rank, one from a rank."""
        sent, received = operations
        received.tensor.copy_(self._exchange(sent.tensor)[received.peer])
        return []

    def all_reduce(self, x: Tensor) -> None:
        x.copy_(torch.stack(self._exchange(x)).sum(dim=0))

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self.slots[self.mine.rank] = x.detach().clone()
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


def on_ranks(patch: pytest.MonkeyPatch, work: Callable[[int], Any], world: int = 2) -> list[Any]:
    """`work(rank)` on every rank at once. What one raises is raised."""
    meeting = Meeting(world)
    found: list[Any] = [None] * world

    def run(rank: int) -> None:
        meeting.mine.rank = rank
        try:
            found[rank] = work(rank)
        except BaseException as error:
            found[rank] = error
            meeting.barrier.abort()

    with patch.context() as one:
        one.setattr(models.shared.distributed, "dist", meeting)
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for each in sorted(
        (each for each in found if isinstance(each, BaseException)), key=lambda e: isinstance(e, threading.BrokenBarrierError)
    ):
        raise each
    return found
