"""Work is shared between processes: every part is answered once, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from eval.harness.share import Board, helpers

CPU = torch.device("cpu")
Advance = Callable[[float], None]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Three threads: two helpers."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def share(board: Board, answer: Callable[[int, Advance], None], device: torch.device = CPU) -> list[int]:
    """What this process has answered."""
    ours: list[int] = []
    with helpers(board, answer, device):
        while (taken := board.take()) is not None:
            for unit in taken:
                answer(unit, lambda _: None)
                ours.append(unit)
    return ours


def test_parts_are_taken_in_their_order() -> None:
    board = Board([2, 1, 3])
    assert board.take() == range(2)
    assert board.ahead(0) == [1, 2, 3, 4, 5]
    assert board.take() == range(2, 3)
    assert board.ahead(1) == [3, 4, 5]
    assert board.take() == range(3, 6)
    assert board.take() is board.take() is None
    assert board.ahead(3) == [4, 5]


def test_every_unit_is_answered_once(tmp_path: Path) -> None:
    board = Board([1, 4, 2, 1, 3, 1])

    def answer(unit: int, _: Advance) -> None:
        with (tmp_path / str(unit)).open("x") as file:  # a second answer is an error
            file.write(str(os.getpid()))
        time.sleep(0.05)

    ours = share(board, answer)
    who = {int(path.name): int(path.read_text()) for path in tmp_path.iterdir()}
    assert sorted(who) == list(range(12))
    assert {unit for unit, process in who.items() if process == os.getpid()} == set(ours)
    assert len(set(who.values())) == 3
    for part in ({1, 2, 3, 4}, {5, 6}, {8, 9, 10}):
        assert len({who[unit] for unit in part}) == 1  # a part stays in one process, with its caches
    assert torch.get_num_threads() == 3


def test_a_helper_that_fails_or_is_killed_is_waited_for(tmp_path: Path) -> None:
    parent = os.getpid()

    def answer(unit: int, _: Advance) -> None:
        if os.getpid() != parent:
            try:
                (tmp_path / "failed").mkdir()
            except FileExistsError:  # the other helper has failed
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("no space left on device")
        while taken.sum() < 3:
            time.sleep(0.02)
        (tmp_path / str(unit)).touch()

    board = Board([1, 1, 1])
    taken = board._taken  # the helpers take one part each
    ours = share(board, answer)
    assert len(ours) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"failed", str(ours[0])}  # the harness answers what has no finished records


def test_an_error_here_ends_the_helpers(tmp_path: Path) -> None:
    board = Board([1, 1, 1])

    def answer(unit: int, _: Advance) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    def interrupted() -> None:
        with helpers(board, answer, CPU):
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.02)
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 30
    for process in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process.name), 0)


@pytest.mark.parametrize(("threads_here", "device"), [(1, CPU), (3, torch.device("cuda"))])
def test_there_are_no_helpers_with_one_thread_or_on_a_gpu(threads_here: int, device: torch.device) -> None:
    torch.set_num_threads(threads_here)
    board = Board([1, 1, 1])
    assert share(board, lambda unit, advance: None, device) == [0, 1, 2]
    assert board.processes == 1
