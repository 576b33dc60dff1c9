from __future__ import annotations

import time
from itertools import count

import pytest

from eval.base import heartbeat as module
from eval.base.heartbeat import Pace, heartbeat, news, remaining


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.1)
    monkeypatch.setattr(module, "LEAST", 0.05)


def test_a_job_that_is_stuck_in_one_call_still_speaks_and_stops_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = count()
    with heartbeat(lambda: f"line {next(numbers)}"):
        time.sleep(0.55)
    spoken = capsys.readouterr().err.splitlines()
    assert 3 <= len(spoken) <= 5
    assert spoken[0] == "line 0"
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_the_innermost_job_speaks_also_after_one_that_was_left_open(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat(lambda: "outer"):
        lost = heartbeat(lambda: "lost")
        with heartbeat(lambda: "inner"):
            lost.__enter__()
        assert module._jobs[-1]() == "outer"
        with heartbeat(lambda: "second"):
            lost.__exit__(None, None, None)
            time.sleep(0.25)
    assert set(capsys.readouterr().err.splitlines()) == {"second"}
    assert module._jobs == []


def test_news_is_not_repeated_at_once_and_counts_as_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with heartbeat(lambda: "silence"):
        for _ in range(60):
            news("news")
            time.sleep(0.005)
    spoken = capsys.readouterr().err.splitlines()
    assert set(spoken) == {"news"}
    assert 2 <= len(spoken) <= 6


def test_pace_is_that_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(100)
    assert pace.left is None
    for now, done in ((0, 10), (2, 20), (6, 40)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: float(now))
        pace.at(done)
    assert pace.left == pytest.approx(60 / 5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "remaining time unknown"),
        (0.2, "about 1 s left"),
        (59, "about 59 s left"),
        (700, "about 12 min left"),
        (7300, "about 2 h 02 min left"),
    ],
)
def test_remaining(seconds: float | None, text: str) -> None:
    assert remaining(seconds) == text
