"""The attacks. Each yields one line for every input: what was tried, and the fault that it found ("" for none)."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import models
from data.loader import in_order
from data.shards import find
from eval import EvalError
from eval.compare import compare
from eval.report.page import html
from eval.report.plain import markdown, table_csv
from eval.report.report import build
from eval.report.results import read_runs
from recipes.train import checkpoint
from recipes.train.folder import CHECKPOINT, finished
from recipes.train.loop import train
from recipes.train.pages import page
from recipes.train.watch import Watch
from tests.eval import fakes
from tests.eval.fake_runs import write_run
from tests.recipes.test_contract import PAGES
from tests.recipes.test_train import same_weights
from tests.stress.child import Outcome, run, start

Found = Iterator[tuple[str, str]]
PARTS = ("recipe.json", "cost.json", "train.jsonl", "eval/scenes-tiny/eval.json", "eval/scenes-tiny/showcase.json")
PARTS += ("eval/scenes-tiny/zeroshot.test.model.jsonl", "eval/scenes-tiny/pope.test.model.jsonl")
MODEL = ("model.json", "tokenizer.json", "model.safetensors", "recipe.json", "cost.json", CHECKPOINT)
ODD: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 10**400, [], {}, [[None]], {"a": {"b": 1}}]
ODD += ["", "text", "\x1b[31m<b>", "../.."]


@dataclass(frozen=True)
class Ground:
    """`data`, a small data set; `runs`, trainings of it that nobody disturbs; `room`, for what is attacked."""

    data: Path
    runs: Path
    room: Path
    chance: random.Random

    def place(self, name: str) -> Path:
        """An empty place."""
        path = self.room / name
        shutil.rmtree(path, ignore_errors=True)
        return path


# ------------------------------------------------------------------------------------------------------------- kills


def killed_trainings(ground: Ground) -> Found:
    """SIGKILL in every stage of every page, after some step; resumed, the weights are those of an undisturbed training."""
    for name in PAGES:
        recipe, whole = page(name).PRESETS["tiny"], ground.runs / f"{name}-tiny-s0"
        once = run(partial(train, recipe, whole, "tiny", ground.runs, page=name), 600)
        if not finished(whole):
            yield f"{name}, undisturbed", f"it does not train: {once.said}"
            continue
        before = 0
        for stage in recipe.schedule:
            steps = stage.budget // stage.batch
            last = before + ground.chance.randint(1, steps)
            before += steps
            folder = ground.place("killed")
            first = run(partial(_train_until, recipe, folder, name, ground, last), 600)
            fault = "" if first.kind == "killed" else f"not killed but {first.kind}: {first.said}"
            fault = fault or _same_after_resuming(recipe, folder, name, ground, whole)
            yield f"{name}, {stage.name}, step {last}", fault


def _train_until(recipe: Any, folder: Path, name: str, ground: Ground, last: int) -> None:
    """Checkpoints are due after a step, or not, as chance has it."""
    chance, undisturbed = random.Random(last), Watch.step

    def step(self: Watch, *arguments: Any) -> None:
        undisturbed(self, *arguments)
        if self.progress.step == last and self.report.active:
            os.kill(os.getpid(), signal.SIGKILL)

    Watch.step = step  # type: ignore[method-assign]  # in this process alone
    Watch.due_to_save = lambda self: chance.random() < 0.5  # type: ignore[method-assign]
    train(recipe, folder, "tiny", ground.runs, page=name)


def _same_after_resuming(recipe: Any, folder: Path, name: str, ground: Ground, whole: Path) -> str:
    again = run(partial(train, recipe, folder, "tiny", ground.runs, page=name), 600)
    if again.kind != "done" or not finished(folder):
        return f"not resumed: {again.said}"
    if left := list(folder.rglob("*.partial")):
        return f"{left[0].name} is left behind"
    return "" if same_weights(whole, folder) else "other weights than without the kill"


def killed_comparisons(ground: Ground) -> Found:
    """SIGKILL in the report, at any moment: each of its files is the old one or the new one, whole."""
    runs, out = ground.place("compared"), ground.place("report")
    for model in ("clip", "coca"):
        write_run(runs, model, samples=20)
    before = _reports(runs, out)
    write_run(runs, "siglip", samples=20)
    after = _reports(runs, ground.place("report-new"))
    for _ in range(40):
        for name, text in before.items():
            (out / name).write_bytes(text)
        seconds = ground.chance.uniform(0.05, 3)
        run(partial(compare, runs=runs, out=out), 120, kill_after=seconds)
        torn = [name for name in before if (out / name).read_bytes() not in (before[name], after[name])]
        fault = f"{torn[0]} is neither the old nor the new one" if torn else ""
        if not fault and _reports(runs, out) != after:
            fault = "after the kill the report is another"
        yield f"killed after {seconds:.2f} s", fault


def _reports(runs: Path, out: Path) -> dict[str, bytes]:
    run(partial(compare, runs=runs, out=out), 120)
    return {path.name: path.read_bytes() for path in sorted(out.glob("report.*"))}


# --------------------------------------------------------------------------------------------------------- mutations


def mutated_tars(ground: Ground) -> Found:
    """Broken shards are read to their end or refused in a sentence, within seconds and without much memory."""
    (shard, *_) = sorted((ground.data / "val").glob("*.tar"))
    folder = ground.place("tars")
    folder.mkdir(parents=True)
    for number in count():
        (folder / "00000.tar").write_bytes(mutated(shard.read_bytes(), ground.chance))
        yield f"tar {number}", _short_of_memory(partial(_read_all, folder)).fault


def _read_all(folder: Path) -> int:
    return sum(len(batch) for batch in in_order(find(folder, "train"), batch_size=16, max_drop_share=1.0))


def mutated_results(ground: Ground) -> Found:
    """A broken run is left out of the report or loses a part of it; the run beside it keeps its row."""
    sound, runs = ground.place("sound"), ground.place("broken")
    for model in ("clip", "coca"):
        write_run(sound, model, samples=8)
    for number in count():
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(sound, runs)
        path = runs / "coca-tiny-s0" / ground.chance.choice(PARTS)
        content = path.read_bytes()
        path.write_bytes(altered(content, ground.chance) if ground.chance.random() < 0.7 else mutated(content, ground.chance))
        yield f"{path.name} {number}", _short_of_memory(partial(_report, runs, whole=number % 8 == 0), 60).fault


def _report(runs: Path, *, whole: bool) -> None:
    try:
        report = build(read_runs(runs), (), None, runs / "claims")
    except EvalError as error:
        if "differs between runs" in str(error):  # other data or prompts: refused, and rightly
            return
        raise AssertionError(f"one run ends the report: {error}") from error
    if "clip" not in {row.page for dataset in report.datasets for row in dataset.rows}:
        raise AssertionError(f"the run beside it has no row: {report.faults}")
    for render in (markdown, table_csv, html) if whole else (markdown, table_csv):
        render(report)


def mutated_models(ground: Ground) -> Found:
    """A run folder with a broken file is loaded or refused in a sentence; the training that goes on there likewise."""
    recipe, whole = page("clip").PRESETS["tiny"], ground.runs / "clip-tiny-s0"
    run(partial(train, recipe, whole, "tiny", ground.runs, page="clip"), 600)
    folder = ground.place("model")
    for number in count():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = folder / ground.chance.choice(MODEL)
        content = path.read_bytes()
        structured = path.suffix == ".json" and ground.chance.random() < 0.7
        path.write_bytes(altered(content, ground.chance) if structured else mutated(content, ground.chance))
        attack = partial(checkpoint.read_progress, path) if path.name == CHECKPOINT else partial(models.load, folder)
        if path.name in ("recipe.json", "cost.json"):
            attack = partial(train, recipe, folder, "tiny", ground.runs, page="clip")
        yield f"{path.name} {number}", _short_of_memory(attack).fault


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Cut, emptied, with bytes or blocks changed, repeated, swapped or put in."""
    if not content:
        return b"\x00" * 100
    start, size = chance.randrange(len(content)), chance.choice((1, 8, 512, 4096))
    block = content[start : start + size]
    ways: list[Callable[[], bytes]] = [
        lambda: content[:start],
        lambda: b"",
        lambda: content[:start] + chance.randbytes(len(block)) + content[start + size :],
        lambda: content[:start] + content[start + size :],
        lambda: content[:start] + block * 3 + content[start + size :],
        lambda: content[:start] + b"\xff" * size + content[start:],
        lambda: content[start:] + content[:start],
        lambda: b"\x00" * len(content),
        lambda: chance.randbytes(2000),
    ]
    return chance.choice(ways)()


def altered(content: bytes, chance: random.Random) -> bytes:
    """JSON, or lines of it, in which some value is another, or gone."""
    lines = content.splitlines() if content.count(b"\n{") > 1 and content.startswith(b"{") else [content]
    number = chance.randrange(len(lines))
    value = json.loads(lines[number])
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        if chance.random() < 0.2:
            del inner[key]
        else:
            inner[key] = chance.choice(ODD)
        break
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def _short_of_memory(attack: Callable[[], object], seconds: float = 30) -> Outcome:
    """In a process that may not take more than a few GB."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        attack()

    return run(limited, seconds)


# -------------------------------------------------------------------------------------------------------- two at once


def two_at_once(ground: Ground) -> Found:
    """Two trainings, evaluations or reports in one place at one time leave what one of them leaves."""
    recipe, whole = page("clip").PRESETS["tiny"], ground.runs / "clip-tiny-s0"
    run(partial(train, recipe, whole, "tiny", ground.runs, page="clip"), 600)
    runs = ground.place("compared")
    for model in ("clip", "coca"):
        write_run(runs, model, samples=20)
    alone = _reports(runs, ground.place("report-alone"))
    _evaluate(ground.place("evaluated-alone"))
    for number in range(20):
        folder = ground.place("trained-twice")
        attack = partial(train, recipe, folder, "tiny", ground.runs, page="clip")
        fault = _both(attack, attack) or ("" if same_weights(whole, folder) else "other weights than of one training")
        yield f"trainings {number}", fault

        out = ground.place("evaluated-twice")
        yield (
            f"evaluations {number}",
            _both(partial(_evaluate, out), partial(_evaluate, out)) or _unlike(ground.room / "evaluated-alone", out),
        )

        out = ground.place("report-twice")
        fault = _both(partial(compare, runs=runs, out=out), partial(compare, runs=runs, out=out))
        same = {path.name: path.read_bytes() for path in sorted(out.glob("report.*"))} == alone
        yield f"reports {number}", fault or ("" if same else "another report than of one command")


def _both(one: Callable[[], object], other: Callable[[], object]) -> str:
    children = [start(one, 300), start(other, 300)]
    outcomes = [child.outcome() for child in children]
    return "; ".join(outcome.said for outcome in outcomes if outcome.kind != "done")


def _evaluate(out: Path) -> None:
    fakes.run(fakes.noisy(), {"test": fakes.captioned(40)}, out, batch_size=7)


def _unlike(one: Path, other: Path) -> str:
    for path in sorted(one.rglob("*.jsonl")):
        if path.read_bytes() != (other / path.relative_to(one)).read_bytes():
            return f"{path.name} is another than of one evaluation"
    return ""


# -------------------------------------------------------------------------------------------------------------- disks


def full_and_read_only_disks(ground: Ground) -> Found:
    """What cannot be written is named in a sentence, and with room again the work goes on to the same end."""
    recipe, whole = page("clip").PRESETS["tiny"], ground.runs / "clip-tiny-s0"
    run(partial(train, recipe, whole, "tiny", ground.runs, page="clip"), 600)
    size = (whole / CHECKPOINT).stat().st_size
    runs = ground.place("compared")
    write_run(runs, "clip", samples=20)
    for _ in range(10):
        for limit in (0, 40, 3000, size // 3, size - 1000):
            folder = ground.place("full")
            attack = partial(train, recipe, folder, "tiny", ground.runs, page="clip")
            fault = _named(_with_files_of(limit, attack), folder)
            yield f"training, files of {limit} bytes", fault or _same_after_resuming(recipe, folder, "clip", ground, whole)
            yield (
                f"report, files of {limit % 4096} bytes",
                _named(_with_files_of(limit % 4096, partial(compare, runs=runs, out=ground.place("full"))), None),
            )
            out = ground.place("full")
            fault = _named(_with_files_of(limit % 2000, partial(_evaluate, out)), out)
            run(partial(_evaluate, out))
            _evaluate(ground.place("evaluated-alone"))
            yield f"evaluation, files of {limit % 2000} bytes", fault or _unlike(ground.room / "evaluated-alone", out)
        for kind, options in (("full disk", ["size=64k"]), ("read-only disk", ["size=64k", "ro"])):
            with mounted(ground.place("disk"), options) as folder:
                for what, attack in (
                    ("training", partial(train, recipe, folder / "run", "tiny", ground.runs, page="clip")),
                    ("evaluation", partial(_evaluate, folder / "run")),
                    ("report", partial(_compared, runs, folder / "out")),
                ):
                    if folder.is_mount() and (what != "evaluation" or "ro" in options):
                        yield f"{what} on a {kind}", _named(run(attack, 300), folder)


def _compared(runs: Path, out: Path) -> None:
    """Raises OSError where the command says, by its status, that it could not write."""
    if compare(runs=runs, out=out):
        raise OSError(f"{out} cannot be written")


def _with_files_of(most: int, attack: Callable[[], object]) -> Outcome:
    """In a process that cannot write larger files: the system refuses that as it refuses to write to a full disk."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        attack()

    return run(limited, 300)


def _named(outcome: Outcome, folder: Path | None) -> str:
    if outcome.kind == "refused" and folder and str(folder) not in outcome.said:
        return f"the sentence names no file of the place: {outcome.said}"
    return outcome.fault


@contextmanager
def mounted(folder: Path, options: list[str]) -> Iterator[Path]:
    """A small file system in memory, where this user may mount one; else an ordinary folder."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    there = os.getuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if there:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)


ATTACKS = (mutated_results, two_at_once, full_and_read_only_disks, killed_trainings, mutated_models, killed_comparisons, mutated_tars)
