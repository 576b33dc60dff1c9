"""The items of `make gpu`, in order, and the reduced versions for a rehearsal on a CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recipes.bench.__main__ import found as benches
from recipes.bench.ratios import Setting
from recipes.gpu.checks import check
from recipes.gpu.machine import data, machine
from recipes.gpu.pace import pace
from recipes.gpu.schedule import Item, Results, Stage
from recipes.gpu.short import learns, pages
from recipes.gpu.versus import LARGE, REHEARSED, versus
from recipes.gpu.whole import trainings_that_fit


@dataclass(frozen=True)
class Sizes:
    """A run's sizes; the defaults are a GPU's."""

    device: str = "cuda"
    preset: str = "small"
    backend: str = "inductor"
    peak_seconds: float = 6.0
    pace_seconds: float = 15.0
    pace_batch: int | None = None
    train: int = 200_000
    """samples of the data set for whole trainings"""
    others: int = 5_000
    measured: int = 16_000
    """samples of the data set for steady steps: held in memory within seconds"""
    parallel: int = 5
    bench: Setting = LARGE
    evaluated: int | None = None
    steps: int | None = None
    least: float | None = None
    """seconds that a training is expected to take, instead of an estimate"""
    trainings: int | None = None
    """at most so many"""


REHEARSAL = Sizes(
    device="cpu",
    preset="tiny",
    backend="eager",
    peak_seconds=0.3,
    pace_seconds=0.2,
    pace_batch=8,
    train=300,
    others=40,
    measured=300,
    parallel=max(1, (os.cpu_count() or 1) // 2),
    evaluated=4,
    steps=2,
    least=20.0,
    trainings=2,
    bench=REHEARSED,
)


def plan(sizes: Sizes, work: Path, published: Path | None) -> list[Stage]:
    """The stages. `work` is the folder for data and runs; finished trainings are published in `published`."""
    scenes, lock = work / "scenes", work / "lock"
    small = str(scenes / sizes.preset)
    tiny, measured = str(scenes / "checks"), str(scenes / "measured")
    lock.mkdir(parents=True, exist_ok=True)
    scenes.mkdir(parents=True, exist_ok=True)

    def first(results: Results) -> list[Item]:
        return [
            Item("machine", machine, (sizes.device, sizes.peak_seconds), seconds=20),
            Item("data for checks", data, (tiny, "tiny", 300, 40), seconds=10),
        ]

    def checks(results: Results) -> list[Item]:
        runs = str(work / "checks")
        generated = [
            Item("data for steady steps", data, (measured, sizes.preset, sizes.measured, 0), seconds=30, limit=180),
            Item("data for trainings", data, (small, sizes.preset, sizes.train, sizes.others), seconds=60, limit=400),
        ]
        each = [
            Item(f"check {name}", check, (name, sizes.device, tiny, runs, sizes.backend), seconds=30, limit=180) for name in pages("tiny")
        ]
        return [*generated, *each]

    def steady(results: Results) -> list[Item]:
        how = (sizes.preset, sizes.device, measured, sizes.pace_seconds, sizes.pace_batch, str(lock))
        names = [name for name in pages(sizes.preset) if learns(name)]
        return [Item(f"pace {name}", pace, (name, *how), seconds=sizes.pace_seconds + 15, limit=180) for name in names]

    def ratios(results: Results) -> list[Item]:
        how = (sizes.bench, sizes.device, measured, str(lock))
        return [Item(f"versus {name}", versus, (name, *how), seconds=30, limit=150) for name in benches()]

    def trainings(results: Results) -> list[Item]:
        runs = work / "runs"
        to = str(published) if published else ""
        arguments = (sizes.device, str(runs), to, sizes.evaluated, sizes.steps)
        return trainings_that_fit(results, sizes.preset, small, arguments, runs, least=sizes.least)[: sizes.trainings]

    return [
        Stage("machine", first),
        Stage("check", checks, sizes.parallel),
        Stage("pace", steady, min(2, sizes.parallel)),
        Stage("versus", ratios, min(2, sizes.parallel)),
        Stage("train", trainings, min(3, sizes.parallel)),
    ]
