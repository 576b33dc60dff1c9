"""Speed as ratios: contestants run in turn, and each repetition gives one ratio of their seconds to ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

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


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, one of each in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row_of(what: str, ours: str, theirs: str, shapes: str, seconds: dict[str, list[float]], samples: int, alike: str) -> Row:
    mine, other = seconds[ours], seconds[theirs]
    return Row(
        what=what,
        ours=ours,
        theirs=theirs,
        shapes=shapes,
        alike=alike,
        ratios=tuple(b / a for a, b in zip(mine, other, strict=True)),
        our_rates=tuple(samples / s for s in mine),
        their_rates=tuple(samples / s for s in other),
    )
