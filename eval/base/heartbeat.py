"""Report the progress of a long job in plain lines, where a progress bar is not possible: output to a file, over ssh, in CI.

    with heartbeat(lambda: f"evaluating: {done} of {total}, {remaining(seconds)}"):
        ...

Prints to stderr at least every EVERY seconds, even during a call that takes minutes. Jobs can be nested: the innermost one reports.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 20.0  # maximum seconds without output
LEAST = 10.0  # minimum seconds between two lines of `news`
WINDOW = 200  # number of recent steps used to measure speed

_lock = threading.Lock()
_jobs: list[Callable[[], str]] = []
_quiet_since = -math.inf


def _forget() -> None:
    """In a forked process there is no thread that reports, and another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _jobs.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def heartbeat(describe: Callable[[], str]) -> Iterator[None]:
    """Print what `describe` returns whenever nothing has been printed for EVERY seconds; "" prints nothing."""
    global _quiet_since
    done = threading.Event()
    with _lock:
        _jobs.append(describe)
        if len(_jobs) == 1:
            _quiet_since = time.monotonic()
            threading.Thread(target=_beat, args=(done,), daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            if describe in _jobs:
                del _jobs[_jobs.index(describe) :]  # with inner jobs that an error left open
        done.set()


def news(text: str) -> None:
    """Print a line unless another one was printed within the last LEAST seconds."""
    if time.monotonic() - _quiet_since >= LEAST:
        _say(text)


def _beat(done: threading.Event) -> None:
    while not done.wait(max(0.01, _quiet_since + EVERY - time.monotonic())):
        if time.monotonic() - _quiet_since >= EVERY:
            with _lock:
                text = _jobs[-1]() if _jobs else ""
            _say(text)


def _say(text: str) -> None:
    global _quiet_since
    _quiet_since = time.monotonic()
    if text:
        print(text, file=sys.stderr, flush=True)


class Pace:
    """Estimates the remaining time of a job from the speed of its last steps, if units take about the same time."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.seen: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # when, units done

    def at(self, done: float) -> None:
        self.seen.append((time.monotonic(), done))

    @property
    def left(self) -> float | None:
        """Estimated remaining seconds; None before the second step."""
        if len(self.seen) < 2 or self.seen[-1][1] <= self.seen[0][1]:
            return None
        (start, first), (now, last) = self.seen[0], self.seen[-1]
        return (self.total - last) * (now - start) / (last - first)


def remaining(seconds: float | None) -> str:
    """about 12 min left"""
    if seconds is None:
        return "remaining time unknown"
    if seconds < 60:
        return f"about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 100 else f"about {minutes // 60} h {minutes % 60:02} min left"
