"""Show the progress and estimated end of an evaluation, as a bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from eval.base.heartbeat import heartbeat, news, remaining
from eval.base.task import Task
from eval.harness.ask import Variant
from eval.harness.share import Board

TICKS = 1000  # resolution of the bar


@dataclass(frozen=True)
class Unit:
    """One task on one variant."""

    label: str
    kind: tuple[str, bool]  # (task, is it the oracle): units of the same kind take about the same time per sample
    samples: int  # 0 if it will not be evaluated


def unit_of(task: Task, variant: Variant, shifts: Sequence[str]) -> Unit:
    able = variant.subject.able(task.needs, gallery=task.gallery) if variant.subject else []
    asked = len(able) > variant.other_adapter and not (variant.primary_only and task.split in shifts)
    label = " ".join(filter(None, [task.name, task.part, f"{task.split}:", variant.name]))
    return Unit(label, (task.name, variant.name == "oracle"), min(len(task.samples), variant.most or len(task.samples)) if asked else 0)


class Outlook:
    """Estimates the remaining time from the seconds per sample of each kind of unit so far; kinds without a measurement use the mean of
    the others."""

    def __init__(self, name: str, units: Sequence[Unit], console: Console, board: Board) -> None:
        self.name, self.units, self.console, self.board = name, list(units), console, board
        self.number, self.doing, self.done, self.fresh = -1, "", 0.0, 0.0
        self.seconds: dict[tuple[str, bool], float] = {}
        self.samples: dict[tuple[str, bool], float] = {}
        self.began = self.since = time.monotonic()
        self.bar: Progress | None = None
        self.most = 0.0  # share that was shown

    @contextmanager
    def shown(self) -> Iterator[None]:
        with heartbeat(self.line if self.plain else lambda: ""):
            if self.plain:
                yield
                return
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[left]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as self.bar:
                self.bar.add_task(self.name, total=TICKS, left="")
                yield

    @property
    def plain(self) -> bool:
        return not self.console.is_terminal

    def begin(self, number: int) -> None:
        """Start a unit."""
        self._settle()
        self.number = number
        self.doing, self.done, self.fresh, self.since = self.units[self.number].label, 0.0, -1.0, time.monotonic()
        self._show()

    def advance(self, samples: float) -> None:
        """Count finished samples of the current unit. The first call counts those from an earlier evaluation, which took no time."""
        self.done += samples
        self.fresh = 0.0 if self.fresh < 0 else self.fresh + samples
        self._show()

    def finish(self, doing: str) -> None:
        """All units are done; `doing` describes the remaining work."""
        self._settle()
        self.number, self.doing, self.done = len(self.units), doing, 0.0
        self._show()

    @property
    def left(self) -> float | None:
        """Estimated remaining seconds; None before the first sample."""
        seconds, samples = dict(self.seconds), dict(self.samples)
        now = self.units[self.number] if 0 <= self.number < len(self.units) else None
        if now and self.fresh > 0:
            seconds[now.kind] = seconds.get(now.kind, 0.0) + time.monotonic() - self.since
            samples[now.kind] = samples.get(now.kind, 0.0) + self.fresh
        if not any(samples.values()):
            return None if self.number < len(self.units) else 0.0
        mean = sum(seconds.values()) / sum(samples.values())
        later = self.board.ahead(self.number) if now else ()
        ahead = [(self.units[number].kind, float(self.units[number].samples)) for number in later]
        ahead += [(now.kind, max(0.0, now.samples - self.done))] if now else []
        return sum(count * (seconds[kind] / samples[kind] if samples.get(kind) else mean) for kind, count in ahead) / self.board.processes

    @property
    def share(self) -> float:
        spent, left = time.monotonic() - self.began, self.left
        return 0.0 if left is None else spent / max(1e-9, spent + left)

    def _forward(self) -> float:
        """The share, or what was shown before: an estimate that grows would let it run backwards."""
        self.most = max(self.most, self.share)
        return self.most

    def line(self) -> str:
        """clip-tiny-s0   34 %  vqa test: shuffled images, 120 of 300  about 2 min left"""
        parts = [self.name, f"{int(100 * self._forward()):>3} %", self.doing]
        if 0 <= self.number < len(self.units) and self.done:
            parts[-1] += f", {self.done:,.0f} samples"
        return "  ".join([*parts, remaining(self.left)])

    def _settle(self) -> None:
        if 0 <= self.number < len(self.units) and self.fresh > 0:
            kind = self.units[self.number].kind
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.monotonic() - self.since
            self.samples[kind] = self.samples.get(kind, 0.0) + self.fresh
        self.fresh = 0.0

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=TICKS * self._forward(), description=self.doing, left=remaining(self.left))
        elif self.plain and not self.console.quiet:
            news(self.line())
