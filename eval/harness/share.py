"""Share the work of an evaluation between processes.

On a CPU, small models run faster in two processes with one thread each than in one process with two threads. The work comes in parts: all
tasks of a variant on a split, which share encodings, captions and drawings. Each process takes the next part of the list, which begins
with the largest. Helpers are forks and so have the model and the data already. What they answer is in files of records, so nothing needs
to be sent, and an interrupted evaluation resumes as always.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import torch

MOST = 4  # processes


class Board:
    """Which parts are taken, and how long each unit took, in memory that all processes share."""

    def __init__(self, parts: Sequence[int]) -> None:
        """`parts` are the numbers of units of each part."""
        self.starts = np.cumsum([0, *parts])
        self.seconds: np.ndarray = np.frombuffer(mmap.mmap(-1, 8 * max(1, sum(parts))), np.float64)
        self.processes = 1
        self._taken: np.ndarray = np.frombuffer(mmap.mmap(-1, max(1, len(parts))), np.uint8)
        self._count = len(parts)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the board

    def ahead(self, unit: int) -> list[int]:
        """Units that nobody has begun with: the rest of this unit's part, and the parts that are not taken. `unit` is -1 at the start."""
        here = np.searchsorted(self.starts, unit, side="right") - 1
        parts = [part for part in range(self._count) if part == here or not self._taken[part]]
        return [number for part in parts for number in range(self.starts[part], self.starts[part + 1]) if part != here or number > unit]

    def take(self) -> range | None:
        """Take the first open part and return its units; None if all are taken."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # released if a process dies
        try:
            for part in range(self._count):
                if not self._taken[part]:
                    self._taken[part] = 1
                    return range(self.starts[part], self.starts[part + 1])
            return None
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


@contextmanager
def helpers(board: Board, answer: Callable[[int, Callable[[float], None]], None], device: torch.device) -> Iterator[None]:
    """Let helpers answer units while the block runs, and wait for them at its end; `answer(unit, advance)` writes the unit's records.

    There are none on a GPU, with a single thread, or where a process cannot be forked safely. An error ends a helper and leaves the rest
    of its part undone: this process then answers it, or meets the same error.
    """
    threads = torch.get_num_threads()
    forks: list[int] = []
    if device.type == "cpu" and sys.platform == "linux":
        for _ in range(min(threads, MOST, board._count) - 1):
            with warnings.catch_warnings():  # python warns of locks that other threads hold; a helper uses none of theirs
                warnings.simplefilter("ignore", DeprecationWarning)
                forks.append(os.fork())
            if not forks[-1]:
                _help(board, answer)
    board.processes = 1 + len(forks)
    torch.set_num_threads(threads - len(forks))
    try:
        yield
        while forks:
            os.waitpid(forks[-1], 0)
            forks.pop()
    finally:
        torch.set_num_threads(threads)
        for process in forks:
            os.kill(process, signal.SIGTERM)
            os.waitpid(process, 0)


def _help(board: Board, answer: Callable[[int, Callable[[float], None]], None]) -> NoReturn:
    """Answer parts until none is open, or the parent has gone; then end this process."""
    parent = os.getppid()

    def advance(_: float) -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the parent says the same
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library's threads do not exist in a fork, and it would say so
        torch.set_num_threads(1)  # nor do those of OpenMP
        while (units := board.take()) is not None:
            for unit in units:
                answer(unit, advance)
    finally:
        os._exit(0)
