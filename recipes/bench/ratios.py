"""Speed as ratios: contestants run in turn, and each repetition gives one ratio of their seconds to ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
