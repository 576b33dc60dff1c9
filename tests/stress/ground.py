"""Where the attacks take place, and what several of them do and compare."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.compare import compare
from recipes.train.folder import finished
from recipes.train.loop import train
from recipes.train.pages import page
from tests.eval import fakes
from tests.eval.fake_runs import write_run
from tests.recipes.test_train import same_weights
from tests.stress.child import run

# What an attack yields for every input: what was tried, and the fault that it found ("" for none).
Found = Iterator[tuple[str, str]]


@dataclass
class Ground:
    """`data`, a small data set; `runs`, trainings of it that nobody disturbs; `room`, for what is attacked; `note`, what an attack says
    of how far it came."""

    data: Path
    runs: Path
    room: Path
    chance: random.Random
    note: str = ""

    def place(self, name: str) -> Path:
        """An empty place."""
        path = self.room / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def trained(self, name: str) -> tuple[Path, str]:
        """The run of a page that nobody disturbs, and what went wrong with it."""
        folder = self.runs / f"{name}-tiny-s0"
        outcome = run(partial(train_page, self, name, folder), 600)
        return folder, "" if finished(folder) else f"it does not train: {outcome.said}"

    def evaluated(self) -> Path:
        """An evaluation that nobody disturbs."""
        evaluate(out := self.place("evaluated-alone"))
        return out

    def compared(self, *models: str) -> Path:
        """A folder of evaluated runs of models."""
        runs = self.place("compared")
        for model in models:
            write_run(runs, model, samples=20)
        return runs


def train_page(ground: Ground, name: str, folder: Path) -> None:
    train(page(name).PRESETS["tiny"], folder, "tiny", ground.runs, page=name)


def same_after_resuming(ground: Ground, name: str, folder: Path) -> str:
    again = run(partial(train_page, ground, name, folder), 600)
    if again.kind != "done" or not finished(folder):
        return f"not resumed: {again.said}"
    if left := list(folder.rglob("*.partial")):
        return f"{left[0].name} is left behind"
    return "" if same_weights(ground.trained(name)[0], folder) else "other weights than those of a training that nobody disturbed"


def evaluate(out: Path) -> None:
    fakes.run(fakes.noisy(), {"test": fakes.captioned(40)}, out, batch_size=7)


def unlike(one: Path, other: Path) -> str:
    for path in sorted(one.rglob("*.jsonl")):
        if path.read_bytes() != (other / path.relative_to(one)).read_bytes():
            return f"{path.name} is another than of one evaluation that nobody disturbed"
    return ""


def report(runs: Path, out: Path) -> None:
    """Raises OSError where the command says, by its status, that it could not write."""
    if compare(runs=runs, out=out):
        raise OSError(f"{out} cannot be written")


def reported(runs: Path, out: Path) -> dict[str, bytes]:
    """The files of a report that is written now."""
    run(partial(report, runs, out))
    return {path.name: path.read_bytes() for path in sorted(out.glob("report.*"))}
