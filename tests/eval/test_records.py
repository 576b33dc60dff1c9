"""Records on disk: what is finished is what was written, and one evaluation at a time writes there."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.files import FileError, locked
from eval.base.records import RecordFile

HEADER = {"task": "toy", "subject": "w"}
KEYS = [f"k{i}" for i in range(12)]


def answers(first: int, last: int, value: float = 1.0) -> list[dict[str, Any]]:
    """Two for every sample, which may be the same."""
    return [{"i": i, "key": KEYS[i], "right": value} for i in range(first, last) for _ in range(2)]


def opened(path: Path) -> RecordFile:
    return RecordFile(path, HEADER, KEYS, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished file."""
    file = opened(tmp_path / "toy.jsonl")
    for first in range(0, 12, 4):
        file.append(answers(first, first + 4))
    file.finish()
    return tmp_path / "toy.jsonl"


def test_a_finished_file_is_used_as_it_is(path: Path) -> None:
    content = path.read_bytes()
    file = opened(path)
    assert (file.finished, file.answered, file.done) == (True, 12, answers(0, 12))
    assert path.read_bytes() == content


def swapped(lines: list[str]) -> list[str]:
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


CHANGES: list[Callable[[list[str]], list[str]]] = [
    lambda lines: [*lines[:-1], *lines[1:]],  # two processes, one after another
    lambda lines: [*lines[:9], *lines[1:]],  # two processes, the second from the first batch on
    lambda lines: [*lines[:5], lines[5], *lines[5:]],  # the same line twice
    lambda lines: [*lines[:5], *lines[6:]],  # a line is gone
    swapped,
    lambda lines: [lines[0], *reversed(lines[1:-1]), lines[-1]],
    lambda lines: [lines[0].replace("1", "2"), *lines[1:]] if "1" in lines[0] else [*lines[:2], lines[2].replace("1.0", "0.0"), *lines[3:]],
    lambda lines: [*lines[:3], json.dumps({"i": "2", "key": "k2"}), *lines[4:]],
    lambda lines: [*lines[:3], json.dumps({"i": 99, "key": "k2"}), *lines[4:]],
    lambda lines: [*lines[:3], json.dumps({"i": 3, "key": "k2"}), *lines[4:]],
]


@pytest.mark.parametrize("change", CHANGES)
def test_records_that_were_not_finished_like_that_are_asked_again(
    change: Callable[[list[str]], list[str]], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
    file = opened(path)
    assert (file.finished, file.answered, file.done) == (False, 0, [])
    assert str(path) in capsys.readouterr().err


def test_an_older_file_without_its_hash_is_used_if_it_ascends(path: Path) -> None:
    lines = path.read_text().splitlines()[:-1]
    end = json.dumps({"header": "end"})
    path.write_text("\n".join([*lines, end]) + "\n")
    assert opened(path).finished
    path.write_text("\n".join([*lines, *lines[1:], end]) + "\n")
    assert not opened(path).finished


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_an_unfinished_file_goes_on_at_its_last_whole_batch(share: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    file = opened(path)
    assert file.answered % 4 == 0
    for first in range(file.answered, 12, 4):
        file.append(answers(first, first + 4))
    file.finish()
    assert path.read_bytes() == whole


def test_a_folder_in_the_place_of_records_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy.jsonl").mkdir()
    with pytest.raises(FileError, match=r"toy\.jsonl is not a file"):
        opened(tmp_path / "toy.jsonl")


def test_the_second_waits_for_the_first_and_a_killed_one_holds_nobody_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[str] = []

    def second() -> None:
        with locked(tmp_path / "run", "the run is taken: waiting"):
            events.append("second")

    with locked(tmp_path / "run", "never said"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        events.append("first")
    thread.join(5)
    assert events == ["first", "second"]
    assert capsys.readouterr().err == "the run is taken: waiting\n"
    if not (child := os.fork()):
        with locked(tmp_path / "run", ""):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    second()
    assert events[-1] == "second"
