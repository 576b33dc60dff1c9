"""SIGKILL in the middle of trainings, evaluations and reports."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import eval.compare as comparing
from eval.base import records
from recipes.train.folder import CHECKPOINT
from recipes.train.pages import page
from recipes.train.watch import Watch
from tests.recipes.test_contract import PAGES
from tests.stress.child import run
from tests.stress.ground import Found, Ground, evaluate, report, reported, same_after_resuming, train_page, unlike

MOMENTS = ("after step", "before the checkpoint of step", "after the checkpoint of step")
REPORT = [(comparing, "read_runs", 1), (comparing, "build", 1), (comparing.plain, "terminal", 1), (comparing.plain, "markdown", 1)]
REPORT += [(comparing.plain, "table_csv", 1), (comparing.page, "html", 1)]
REPORT += [(os, name, call) for call in (1, 2, 3) for name in ("fsync", "replace")]


def killed_trainings(ground: Ground) -> Found:
    """In each stage of every page, in one run after the other; at the end the weights are those of an undisturbed training."""
    pages = ground.chance.sample(PAGES, len(PAGES))
    stages, killed = sum(len(page(name).PRESETS["tiny"].schedule) for name in pages), 0
    for name in pages:
        folder, before = ground.place("killed"), 0
        if fault := ground.trained(name)[1]:
            yield f"{name}, undisturbed", fault
            continue
        schedule = page(name).PRESETS["tiny"].schedule
        for stage in schedule:
            steps = stage.budget // stage.batch
            step, moment = before + ground.chance.randint(1, steps), ground.chance.choice(MOMENTS)
            before += steps
            outcome = run(partial(_train_until, ground, name, folder, step, moment), 600)
            killed += outcome.kind == "killed"
            ground.note = f"in {killed} of {stages} stages of {len(pages)} pages"
            fault = "" if outcome.kind == "killed" else f"not killed but {outcome.kind}: {outcome.said}"
            if stage is schedule[-1]:
                fault = fault or same_after_resuming(ground, name, folder)
            yield f"{name}, {stage.name}, {moment} {step}", fault


def _train_until(ground: Ground, name: str, folder: Path, last: int, moment: str) -> None:
    """Until SIGKILL at a moment of step `last`, or at the next checkpoint. Others are written or not, as chance has it."""
    chance, reached = random.Random(last), False
    step, replace = Watch.step, os.replace

    def step_and_die(self: Watch, *arguments: Any) -> None:
        nonlocal reached
        step(self, *arguments)
        reached = self.progress.step >= last and self.report.active
        if reached and moment == "after step":
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_and_die(source: Path, target: Path) -> None:
        dies = reached and Path(target) == folder / CHECKPOINT
        if dies and moment.startswith("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    Watch.step = step_and_die  # type: ignore[method-assign]  # in this process alone
    Watch.due_to_save = lambda self: chance.random() < 0.5  # type: ignore[method-assign]
    os.replace = replace_and_die  # type: ignore[assignment]
    train_page(ground, name, folder)


def killed_evaluations(ground: Ground) -> Found:
    """At any of the writes; continued, the records are those of an undisturbed evaluation."""
    whole, writes = ground.evaluated(), 40
    while True:
        out = ground.place("evaluated")
        call, name = ground.chance.randint(1, writes), ground.chance.choice(("append_text", "write_text"))
        outcome = run(partial(_dies_at, records, name, call, partial(evaluate, out)))
        if outcome.kind == "done":  # it writes less often than that
            writes = max(2, call - 1)
            continue
        run(partial(evaluate, out))
        yield f"{name} {call}", outcome.fault or unlike(whole, out)


def killed_comparisons(ground: Ground) -> Found:
    """At each step of the report, then ten times at any: each of its files is the old one or the new one, whole."""
    out = ground.place("report")
    before = reported(ground.compared("clip", "coca"), out)
    runs = ground.compared("clip", "coca", "siglip")
    after = reported(runs, ground.place("report-new"))
    for number, (module, name, call) in enumerate(ground.chance.sample(REPORT, len(REPORT)), start=1):
        _write(out, before)
        outcome = run(partial(_dies_at, module, name, call, partial(report, runs, out)))
        ground.note = f"at {number} of {len(REPORT)} steps"
        fault = "" if outcome.kind == "killed" else f"not killed but {outcome.kind}: {outcome.said}"
        yield f"at {name} {call}", fault or _torn(out, before, after)
    yield "after all of them", "" if reported(runs, out) == after else "the report is another"
    for _ in range(10):
        _write(out, before)
        seconds = ground.chance.uniform(0.05, 6)
        run(partial(report, runs, out), 120, kill_after=seconds)
        yield f"after {seconds:.2f} s", _torn(out, before, after)


def _write(out: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (out / name).write_bytes(content)


def _torn(out: Path, before: dict[str, bytes], after: dict[str, bytes]) -> str:
    torn = [name for name in before if (out / name).read_bytes() not in (before[name], after[name])]
    return f"{torn[0]} is neither the old nor the new one" if torn else ""


def _dies_at(module: Any, name: str, call: int, attack: Callable[[], object]) -> None:
    """SIGKILL in the place of a call of a function: the `call`-th."""
    calls, undisturbed = count(1), getattr(module, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return undisturbed(*arguments, **options)

    setattr(module, name, dying)  # in this process alone
    attack()
