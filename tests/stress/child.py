"""One attack in a process of its own, forked so that nothing has to be imported again, and really killed where it is to be."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from data.shards import DataError
from eval import EvalError

REFUSALS = (DataError, EvalError, OSError, ValueError, FloatingPointError)  # what the commands turn into a sentence
SENTENCE = 600  # characters at most


@dataclass(frozen=True)
class Outcome:
    """`kind`: "done", "refused" (with its sentence), "killed" (as wanted) or "fault"."""

    kind: str
    said: str = ""

    @property
    def fault(self) -> str:
        return self.said if self.kind == "fault" else ""


@dataclass
class Child:
    process: int
    pipe: int
    until: float
    killed: bool = False

    def outcome(self, kill_after: float | None = None) -> Outcome:
        """Wait for the end; send SIGKILL after `kill_after` seconds."""
        if kill_after is not None and not select.select([self.pipe], [], [], kill_after)[0]:
            self.killed = True
            os.kill(self.process, signal.SIGKILL)
        left = max(0.0, self.until - time.monotonic())
        late = not select.select([self.pipe], [], [], left)[0]
        if late:
            os.kill(self.process, signal.SIGKILL)
        said = b""
        while block := os.read(self.pipe, 1 << 16):
            said += block
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        kind, _, text = said.decode(errors="replace").partition("\n")
        if late:
            return Outcome("fault", "it hung")
        if os.WIFSIGNALED(status):
            ours = os.WTERMSIG(status) == signal.SIGKILL  # by us, or by itself where the attack says so
            return Outcome("killed" if ours else "fault", f"signal {os.WTERMSIG(status)}")
        return Outcome(kind or "fault", text or "no word of its end" * (not kind))


def start(attack: Callable[[], object], seconds: float = 120.0) -> Child:
    """Fork a process that runs `attack`, and has `seconds` for it."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return Child(process, reading, time.monotonic() + seconds)
    os.close(reading)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    # A runner of tests has files of its own in their place, which count as files that may not grow.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(stream, mode, closefd=False) for stream, mode in enumerate("rww"))
    faulthandler.disable()
    try:
        attack()
        said = "done\n"
    except REFUSALS as error:
        sentence = str(error)
        whole = 0 < len(sentence) <= SENTENCE and "Traceback" not in sentence
        said = f"refused\n{sentence}" if whole else f"fault\n{type(error).__name__} without a sentence: {sentence[:SENTENCE]!r}"
    except BaseException:
        said = "fault\n" + traceback.format_exc()[-1500:]
    os.write(writing, said.encode(errors="replace"))
    os._exit(0)


def run(attack: Callable[[], object], seconds: float = 120.0, kill_after: float | None = None) -> Outcome:
    return start(attack, seconds).outcome(kill_after)


def short_of_memory(attack: Callable[[], object], seconds: float = 30) -> Outcome:
    """In a process that may not take more than a few GB."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        attack()

    return run(limited, seconds)
