"""Run items in processes of their own, within a time limit, and keep every result in one file.

A crash, a hang or an exhausted memory costs only the item that it happened in. The file is written whenever an item has something new, so
a run that is cut off loses nothing; the next one goes on with what is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from data.files import FileError, read_json, write_json

Json = dict[str, Any]
SCHEMA = 1
GRACE = 15.0  # seconds between asking a process to stop and killing it: a training saves a checkpoint
TAIL = 1500  # characters of the output of an item that failed
DONE = ("ok", "failed")  # not run again on the same code and device
FORKED = "forked subprocess"  # CUDA's complaint if it was initialised before the fork


class Unable(Exception):
    """Raised by an item that cannot run here, with the reason."""


Save = Callable[[Json], None]
"""Called by an item with what it has found so far"""


@dataclass(frozen=True)
class Item:
    """A piece of work: `work(save, *arguments)` in a process of its own, which returns its result."""

    name: str
    work: Callable[..., Json]
    arguments: tuple[Any, ...] = ()
    seconds: float = 30.0
    """what it is expected to take: it starts only if so much is left"""
    limit: float = 120.0
    """seconds after which it is stopped"""


Results = Mapping[str, Json]


@dataclass(frozen=True)
class Stage:
    name: str
    items: Callable[[Results], Sequence[Item]]
    """from the results so far, when the stage begins"""
    parallel: int = 1


@dataclass
class Book:
    """The result file: items by name, each with its origin (commit, date, hardware, versions)."""

    path: Path
    origin: Json
    again: Sequence[str] = ()
    """names of items that are run although they have been"""
    about: Json = field(default_factory=dict)
    """further fields of the file"""
    items: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            kept = read_json(self.path, "Remove it, or choose another --out")
            if kept.get("schema") != SCHEMA or not isinstance(kept.get("items"), dict):
                raise FileError(f"{self.path}: not a result file of recipes.gpu, schema {SCHEMA}. Remove it, or choose another --out")
            self.items = kept["items"]

    def missing(self, name: str) -> bool:
        kept = self.items.get(name)
        if kept is None or name in self.again:
            return True
        same = all(kept.get(what) == self.origin[what] for what in ("commit", "hardware"))
        return not same or kept["status"] not in DONE

    def write(self, name: str, status: str, result: Json) -> None:
        """Atomic. An item that did not run does not replace an earlier result."""
        if status == "no time" and name in self.items:
            return
        self.items[name] = {"status": status, **result, **self.origin}
        write_json(self.path, {"schema": SCHEMA, **self.about, "items": self.items})


def run(
    stages: Sequence[Stage],
    book: Book,
    *,
    seconds: float,
    logs: Path,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: print(line, flush=True),
    preload: Sequence[str] = (),
    method: str = "forkserver",
) -> None:
    """Run what is missing, stage by stage, for at most `seconds`. `only` names items or stages. `preload` names modules that processes
    share, imported once. An item that finds CUDA unusable after a fork is run again, and all further ones, in processes started anew."""
    deadline = time.monotonic() + seconds
    starter = _Starter(method, preload)
    running: list[_Running] = []
    try:
        for stage in stages:
            waiting = [each for each in stage.items(book.items) if book.missing(each.name)]
            waiting = [each for each in waiting if not only or {each.name, stage.name} & set(only)]
            while waiting or running:
                while waiting and len(running) < stage.parallel:
                    item, left = waiting.pop(0), deadline - time.monotonic()
                    if left < min(item.seconds, item.limit):
                        book.write(item.name, "no time", {"why": f"about {item.seconds:,.0f} s needed, {max(0, left):,.0f} s left"})
                        say(f"{item.name}: no time, about {item.seconds:,.0f} s needed")
                    else:
                        running.append(_Running(item, starter.context, logs, min(item.limit, left), stage.parallel))
                if running:
                    wait([each.process.sentinel for each in running], timeout=0.2)
                for each in list(running):
                    if (partial := each.partial()) is not None:
                        book.write(each.item.name, "running", partial)
                    if (ended := each.ended()) is None:
                        continue
                    running.remove(each)
                    status, result = ended
                    if FORKED in result.get("error", "") and starter.start_anew():
                        waiting.insert(0, each.item)
                        continue
                    book.write(each.item.name, status, result)
                    say(f"{each.item.name}: {status}, {result['seconds']:.0f} s{_why(result)}, {deadline - time.monotonic():,.0f} s left")
    finally:
        for each in running:
            each.kill()


def _why(result: Json) -> str:
    said = str(result.get("error") or result.get("why") or "").strip().splitlines()
    return f" ({said[-1][:160]})" if said else ""


class _Starter:
    """How processes start: forked from one that has imported the libraries, which saves every item seconds; or anew."""

    def __init__(self, method: str, preload: Sequence[str]) -> None:
        self.context: BaseContext = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload([*preload])

    def start_anew(self) -> bool:
        """From now on. False if it is so already."""
        if self.context.get_start_method() == "spawn":
            return False
        self.context = multiprocessing.get_context("spawn")
        return True


class _Running:
    """The process of an item, its files, and its end."""

    def __init__(self, item: Item, context: Any, logs: Path, limit: float, parallel: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        name = item.name.replace(" ", "-").replace("/", "-")
        self.item, self.log, self.found = item, logs / f"{name}.log", logs / f"{name}.json"
        self.found.unlink(missing_ok=True)
        self.limit, self.seen, self.stopped = limit, 0, False
        threads = max(1, (os.cpu_count() or 1) // parallel)
        self.process = context.Process(target=_child, args=(item.work, item.arguments, self.found, self.log, threads))
        self.process.start()  # the first one waits until the libraries are imported
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def partial(self) -> Json | None:
        """What is new since the last call, while the item runs."""
        try:
            changed = self.found.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if changed == self.seen:
            return None
        self.seen = changed
        return dict(read_json(self.found, "")["result"])

    def ended(self) -> tuple[str, Json] | None:
        """Status and result, once the process has ended. Stops it at its limit."""
        if self.process.is_alive():
            if self.seconds > self.limit + GRACE:
                self._signal(signal.SIGKILL)
            elif self.seconds > self.limit and not self.stopped:
                self.stopped = True
                self._signal(signal.SIGTERM)
            return None
        self._signal(signal.SIGKILL)  # what it has left running
        self.process.join()
        kept = read_json(self.found, "") if self.found.exists() else {}
        result: Json = {**kept.get("result", {}), "seconds": self.seconds}
        if self.stopped:
            return "timed out", result | {"why": f"stopped after {self.limit:,.0f} s"}
        if "status" in kept:
            return kept["status"], result
        code = self.process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
        tail = self.log.read_text(errors="replace")[-TAIL:] if self.log.exists() else ""
        return "failed", result | {"error": f"{tail}\n{how}".strip()}

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.join()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)  # its loader and compiler processes too
        except (ProcessLookupError, PermissionError):  # not its own group yet, or gone
            if self.process.is_alive():
                os.kill(self.process.pid, number)


def _child(work: Callable[..., Json], arguments: tuple[Any, ...], found: Path, log: Path, threads: int) -> None:
    os.setsid()
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    if "OMP_NUM_THREADS" not in os.environ:
        import torch  # not above: whoever schedules needs none

        torch.set_num_threads(threads)
    kept: Json = {}

    def save(result: Json) -> None:
        kept.update(result)
        write_json(found, {"result": kept})

    try:
        save(work(save, *arguments))
        status = "failed" if kept.get("failures") else "ok"
    except Unable as error:
        status, kept["why"] = "unable", str(error)
    except BaseException as error:
        traceback.print_exc()
        status, kept["error"] = "failed", "".join(traceback.format_exception(error))[-TAIL:]
    write_json(found, {"result": kept, "status": status})
