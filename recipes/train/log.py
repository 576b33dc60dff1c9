"""Log a training run: train.jsonl, a progress bar on a terminal or plain lines elsewhere, and wandb on request."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data.files import append_text, read_text, write_text
from eval.base.console import plain_console
from eval.base.heartbeat import Pace, heartbeat, news, remaining
from recipes.train.recipe import AnyRecipe

Part = TypeVar("Part", bound=Sized)


class Reporter:
    """Writes the logs on rank 0; on other ranks all methods do nothing."""

    def __init__(self, folder: Path, recipe: AnyRecipe, *, step: int, samples: int, active: bool) -> None:
        self.active = active
        if not active:
            return
        self.path = folder / "train.jsonl"
        self.wandb = _wandb(folder, recipe) if recipe.log.wandb != "off" else None
        _cut_after(self.path, step)
        console = plain_console(stderr=True)
        self.name, self.samples, self.total, self.status, self.pace = folder.name, samples, recipe.samples, "", Pace(recipe.samples)
        self.preparing = "no step yet"
        self.plain = not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=self.plain,
        )
        self.task = self.bar.add_task(folder.name, total=recipe.samples, completed=samples, status="getting ready")
        self.bar.start()
        self.heart = ExitStack()  # prints a line if steps are slow, or before the first step
        self.heart.enter_context(heartbeat(lambda: self.plain_line() if self.plain else ""))
        atexit.register(self.bar.stop)  # otherwise an error would leave the terminal without a cursor

    def line(self, record: dict[str, Any]) -> None:
        """Log one measured step."""
        if not self.active:
            return
        self._write(record)
        speed = f"{record['samples_per_s']:,.0f} samples/s  wait {record['data_wait_share']:.0%}  {record['memory_mb']:,.0f} MB"
        status = f"loss {record['loss']:.3f}  {speed}" if "loss" in record else speed
        if record["drops"]:
            status += f"  dropped {sum(record['drops'].values())}"
        self.status = status
        self.bar.update(self.task, completed=record["samples"], status=status)
        if self.plain:
            news(self.plain_line())
        if self.wandb is not None:
            flat = {f"{group}/{name}": value for group in ("terms", "drops") for name, value in record.get(group, {}).items()}
            self.wandb.log({**{k: v for k, v in record.items() if isinstance(v, (int, float))}, **flat}, step=record["step"])

    def at(self, samples: int) -> None:
        """Record progress after every step, to estimate the remaining time."""
        if self.active:
            self.samples = samples
            self.pace.at(samples)

    def counting(self, doing: str, parts: Iterable[Part], total: int | None) -> Iterator[Part]:
        """The parts, each of several samples. While they are used before the first step, progress shows how many samples are done and,
        if their `total` is known, when all will be."""
        if not self.active:
            yield from parts
            return
        done, pace = 0, Pace(total or 0)
        pace.at(done)
        try:
            for part in parts:
                yield part
                done += len(part)
                pace.at(done)
                of = f" of {total:,} samples, {remaining(pace.left)}" if total else " samples"
                self._prepares(f"{doing}: {done:,}{of}")
        finally:
            self._prepares("no step yet")

    def _prepares(self, what: str) -> None:
        self.preparing = what
        if not self.pace.seen:
            self.bar.update(self.task, status=f"getting ready, {what}")

    def plain_line(self) -> str:
        """clip-tiny-s0   12 %  23,040 of 192,000 samples  loss 1.212  62 samples/s ...  about 45 min left"""
        if not self.pace.seen:
            return f"{self.name}: getting ready, {self.preparing}"
        share = f"{100 * self.samples // max(1, self.total):>3} %  {self.samples:,} of {self.total:,} samples"
        return "  ".join(filter(None, [self.name, share, self.status, remaining(self.pace.left)]))

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Log an event: start, resume, stage, save, validate, warning or end."""
        if not self.active:
            return
        self._write({"event": kind, "message": message, **fields})
        if kind not in ("save", "validate"):
            self.bar.console.print(message, style="yellow" if kind == "warning" else None, soft_wrap=True)

    def close(self) -> None:
        if self.active:
            self.heart.close()
            self.bar.stop()
            if self.wandb is not None:
                self.wandb.finish()

    def _write(self, record: dict[str, Any]) -> None:
        append_text(self.path, json.dumps(record) + "\n")


def _cut_after(path: Path, step: int) -> None:
    """Remove lines that were written after the last checkpoint of a killed run: these steps are repeated."""
    if not path.exists():
        return
    kept = []
    for line in read_text(path, "Remove it, and train again: the run goes on from its checkpoint").splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue  # incomplete line from the moment when the process was killed
    write_text(path, "".join(kept))


def _wandb(folder: Path, recipe: AnyRecipe) -> Any:
    """Raises ValueError where wandb cannot begin: without a key, or a network."""
    import wandb

    try:
        return wandb.init(
            project=recipe.log.project,
            name=folder.name,
            id=f"{folder.name}-{int((folder / 'recipe.json').stat().st_mtime)}",  # another run if a folder is trained anew
            resume="allow",
            dir=folder,
            mode="offline" if recipe.log.wandb == "offline" else "online",
            config=asdict(recipe),
        )
    except wandb.Error as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"log.wandb is {recipe.log.wandb!r}, and wandb says: {why}. Without a key: --log.wandb offline") from error
