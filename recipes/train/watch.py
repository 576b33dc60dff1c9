"""Monitor a training run: timing, logged averages, warnings about bad losses, and signals that stop the run."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.loader import Loader
from models.contract import Losses
from recipes.train.distributed import Process, peak_memory_mb
from recipes.train.log import Reporter
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Stage

NON_FINITE_STEPS = 10  # consecutive steps before the run is aborted


@dataclass(frozen=True)
class _Step:
    """What is kept of a step until its numbers are read."""

    number: int
    norm: Tensor
    names: list[str]
    terms: Tensor
    lr: float


class Watch:
    """Measures time, logs steps, warns about losses that stay at chance, and aborts if gradients are no longer finite."""

    def __init__(self, recipe: AnyRecipe, stage: Stage, report: Reporter, progress: Progress, process: Process) -> None:
        self.recipe, self.stage, self.report, self.progress, self.process = recipe, stage, report, progress, process
        self.started = time.monotonic() - progress.seconds
        self.saved = self.logged = time.monotonic()
        self.waited = 0.0
        self.samples_logged = progress.samples
        self.non_finite = 0
        self.unread: list[_Step] = []
        self.warned: set[str] = set()
        self.recent: dict[str, float] = {}

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def due_to_save(self) -> bool:
        return time.monotonic() - self.saved > 60 * self.recipe.save_minutes

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """What happens here takes no time of the training's."""
        start = time.monotonic()
        yield
        spent = time.monotonic() - start
        self.started, self.logged = self.started + spent, self.logged + spent

    def step(self, losses: Losses, norm: Tensor, lr: float, loader: Loader) -> None:
        """Log the step if it is due, and check that the loss is finite: at once on a CPU; on a GPU only when a step is logged, since
        reading a number makes the host wait for the device."""
        self.report.at(self.progress.samples)
        due = not self.progress.step % self.recipe.log.every or self.progress.in_stage >= self.stage.budget
        if losses.terms:
            terms = torch.stack([term.detach() for term in losses.terms.values()])
            self.unread.append(_Step(self.progress.step, norm, list(losses.terms), terms, lr))
            if due or norm.device.type == "cpu":
                self._guard_numbers()
        if not due:
            return
        learned: dict[str, Any] = {}
        if losses.terms:
            values = self.process.mean({"total": losses.total, **losses.terms})
            chance = {name: float(value) for name, value in losses.chance.items()}
            learned = {"loss": values["total"], "terms": values, "chance": chance, "lr": lr, "grad_norm": float(norm)}
        drops = sum(map(Counter, self.process.gather(dict(loader.drops))), Counter[str]())
        now = time.monotonic()
        elapsed = max(1e-9, now - self.logged)
        self.report.line(
            {
                "step": self.progress.step,
                "samples": self.progress.samples,
                "stage": self.stage.name,
                **learned,
                "samples_per_s": (self.progress.samples - self.samples_logged) / elapsed,
                "data_wait_share": self.waited / elapsed,
                "memory_mb": peak_memory_mb(),
                "seconds": self.seconds(),
                "epoch": loader.epoch,
                "drops": dict(drops),
            }
        )
        self.logged, self.waited, self.samples_logged = now, 0.0, self.progress.samples
        if losses.terms:
            self._guard_chance(values, chance)

    def _guard_chance(self, values: dict[str, float], chance: dict[str, float]) -> None:
        for name, at_chance in chance.items():
            self.recent[name] = 0.7 * self.recent.get(name, values[name]) + 0.3 * values[name]
            seen = self.progress.in_stage
            late = seen > 0.15 * self.stage.budget and seen >= 100 * self.stage.batch
            if late and name not in self.warned and self.recent[name] > 0.97 * at_chance:
                self.warned.add(name)
                found = f"loss '{name}' is still at chance ({self.recent[name]:.3f}, chance {at_chance:.3f})"
                advice = "check that captions match their images (`make check-data`) and that the learning rate is suitable"
                self.report.event("warning", f"{found} after {seen:,} samples: {advice}", step=self.progress.step)

    def _guard_numbers(self) -> None:
        unread, self.unread = self.unread, []
        norms = torch.stack([step.norm for step in unread]).tolist()
        for step, norm in zip(unread, norms, strict=True):
            if math.isfinite(norm):
                self.non_finite = 0
                continue
            self.non_finite += 1
            terms = dict(zip(step.names, step.terms.tolist(), strict=True))
            said = f"step {step.number}: gradient norm {norm}, losses {terms}; step skipped"
            self.report.event("warning", said, step=step.number)
            if self.non_finite >= NON_FINITE_STEPS:
                raise FloatingPointError(
                    f"{NON_FINITE_STEPS} consecutive steps without finite gradients, last losses {terms} at learning rate {step.lr:.2e}. "
                    "Try a lower --optim.lr or --precision fp32; the last checkpoint is from an earlier step"
                )


class Signals:
    """Catches the first SIGTERM or SIGINT and records it until the step is complete; a second signal is not caught."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def release(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signal = number
        self.release()
