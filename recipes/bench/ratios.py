"""Speed as ratios: contestants run in turn, and each repetition gives one ratio of their seconds to ours."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from data.shards import Split
from recipes.train.distributed import Process


@dataclass(frozen=True)
class Setting:
    """Sizes of one benchmark: image and text towers of `width` and `depth`, 64 px in patches of 8."""

    width: int = 256
    depth: int = 6
    batch: int = 32
    draw_batch: int = 64
    draw_depth: int = 4  # the tiny CM3leon's
    anchors: int = 5_000
    loader_batch: int = 128
    loader_batches: int = 30
    image: int = 64
    repeats: int = 7


QUICK = Setting(width=128, depth=2, batch=16, draw_depth=2, loader_batches=8, repeats=3)


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given: `function(bench)` returns rows. Each file here lists its own as `BENCHES`, name -> function."""

    setting: Setting
    split: Split
    """the training split of a data set"""
    process: Process
    workers: int = 2
    """of the streaming loaders, theirs and ours"""


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    theirs: str
    shapes: str
    alike: str  # "fp32" or "bf16": both sides do the same work in it; "" where each does what it does by default
    ratios: tuple[float, ...]  # theirs' seconds / ours, one per repetition
    our_rates: tuple[float, ...]  # samples per second
    their_rates: tuple[float, ...]
    bound: dict[str, float]  # what ours takes its time for, see `bound`


@dataclass(frozen=True)
class Timed:
    runs: Mapping[str, Callable[[], object]]
    seconds: dict[str, list[float]]  # of every run


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int) -> Timed:
    """Each contestant in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repeats + 1):
        for name, run in contestants.items():
            took = _seconds(run)
            if repetition:
                seconds[name].append(took)
    return Timed(contestants, seconds)


def row_of(what: str, ours: str, theirs: str, shapes: str, timed: Timed, samples: int, alike: str) -> Row:
    mine, other = timed.seconds[ours], timed.seconds[theirs]
    return Row(
        what=what,
        ours=ours,
        theirs=theirs,
        shapes=shapes,
        alike=alike,
        ratios=tuple(b / a for a, b in zip(mine, other, strict=True)),
        our_rates=tuple(samples / s for s in mine),
        their_rates=tuple(samples / s for s in other),
        bound=bound(timed.runs[ours], statistics.median(mine)),
    )


def bound(run: Callable[[], object], seconds: float) -> dict[str, float]:
    """Shares of the time of a run that takes `seconds`: in matrix "products" and convolutions, in other kernels, which wait for the
    "memory", and outside of kernels, in "python" and what it calls. "peak": the share that the products would need at the speed of the
    largest square product, measured now.
    """
    with _Flops() as flops:
        run()
    at_peak = sum(count / _peak(device, dtype) for (device, dtype), count in flops.counts.items())
    places = {torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_initialized() else [])}
    with torch.profiler.profile(activities=places) as profile:
        whole = _seconds(run)
    spent = {True: 0.0, False: 0.0}
    for event in profile.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            spent[event.key.endswith(PRODUCTS)] += 1e-6 * (event.self_device_time_total or event.self_cpu_time_total)
    products, memory = (min(1.0, spent[kind] / whole) for kind in (True, False))
    return {"peak": at_peak / seconds, "products": products, "memory": memory, "python": max(0.0, 1 - products - memory)}


CPU_ATTENTION = (  # forward and backward
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
PRODUCTS = ("mm", "_for_cpu", "_for_cpu_backward", "_convolution", "convolution_backward", "flash_attention", "efficient_attention")


class _Flops(TorchDispatchMode):
    """FLOPs of products by device and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[torch.device, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind, first = func.overloadpacket, next((each for each in args if isinstance(each, Tensor)), None)
        if first is None:
            return out
        if kind in CPU_ATTENTION:  # which torch does not count
            queries, keys = args[kind is CPU_ATTENTION[1] :][:2]
            self.counts[first.device, first.dtype] += (10 if kind is CPU_ATTENTION[1] else 4) * queries.numel() * keys.shape[2]
        elif kind in flop_registry:
            self.counts[first.device, first.dtype] += flop_registry[kind](*args, **(kwargs or {}), out_val=out)
        return out


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large square product, the fastest of some."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(4))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
