"""The process in a distributed run: rank, device, and collective operations."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from models.shared.device import multiplies_bf16, resolve_device

LIMIT: timedelta | None = None  # of waiting for a message; None: torch's own, 10 minutes between GPUs and 30 between CPUs


@dataclass(frozen=True)
class Process:
    """Rank and device of this process."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def find(cls, device: str) -> Process:
        """Initialise from torchrun's environment; without it, the only process. `device` is an argument of `resolve_device`; under
        torchrun each process uses its own GPU."""
        found = resolve_device(device)
        if "WORLD_SIZE" not in os.environ:
            return cls(0, 1, found)
        if found.type == "cuda":
            found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(found)
        # torchrun keeps its store when it restarts the ranks of a machine, with the addresses of those that have ended. On several machines
        # the ranks do not know how often; recipes/train.slurm tells torchrun to begin with another store.
        store, rank, world = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else ""
        backend = "nccl" if found.type == "cuda" else "gloo"
        own = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=LIMIT)
        return cls(rank, world, found)

    def autocast(self, precision: str) -> Any:
        if precision == "auto":
            precision = "bf16" if multiplies_bf16(self.device) else "fp32"
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def any(self, flag: bool) -> bool:
        """True on all ranks if `flag` is true on any, so that all leave the loop at the same step."""
        if self.world == 1:
            return flag
        votes = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(votes)
        return bool(votes)

    def gather(self, value: Any) -> list[Any]:
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Average scalars over ranks."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world).tolist(), strict=True))

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


class Votes:
    """What any rank wants, so that all do it at the same step."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.earlier: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set on any rank; all ranks must call it. Between GPUs the answer is that of the call before, because
        the host would have to wait for its own."""
        if self.process.world == 1:
            return list(flags)
        votes = torch.stack([torch.full((), float(flag), device=self.process.device) for flag in flags])
        dist.all_reduce(votes)
        if votes.device.type == "cpu":
            return votes.bool().tolist()
        answer = torch.empty(len(flags), pin_memory=True)
        answer.copy_(votes, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        earlier, self.earlier = self.earlier, (answer, done)
        if earlier is None:
            return [False] * len(flags)
        earlier[1].synchronize()
        found = earlier[0].bool().tolist()
        if any(found):
            self.earlier = None  # asked before anyone knew
        return found


def peer_lost(error: RuntimeError) -> bool:
    """Whether an operation of all ranks failed because another one has ended, or does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def unaware(seconds: float) -> list[int]:
    """To be called by every rank that has lost another: those that do not call it within so many seconds, as far as can be known."""
    try:
        store, world = dist.distributed_c10d._get_default_store(), dist.get_world_size()
        store.set(f"lost {dist.get_rank()}", "")
        time.sleep(seconds)
        return [rank for rank in range(world) if not store.check([f"lost {rank}"])]
    except (RuntimeError, ValueError):  # whoever keeps the store is gone, too
        return []


def peak_memory_mb() -> float:
    if torch.cuda.is_initialized():  # not is_available: the run may use the CPU of a CUDA machine
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
