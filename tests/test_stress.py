"""Half a minute of `make stress`, the attack that it cannot do without, and the referee: what counts as a fault."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.stress.__main__ import campaign
from tests.stress.child import run


@pytest.mark.timeout(600)
def test_half_a_minute_of_rough_handling_finds_nothing() -> None:
    found = campaign(30.0, seed=int(time.time()) // 86_400)  # another one every day
    assert [fault for row in found["rows"] for fault in row["faults"]] == []
    assert all(row["tried"] for row in found["rows"])


def test_the_referee_tells_a_refusal_from_a_fault() -> None:
    def wrong() -> None:
        raise KeyError("field")

    def refused() -> None:
        raise ValueError("a.json cannot be read. Remove it")

    def speechless() -> None:
        raise OSError

    def crashed() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    assert run(lambda: None).kind == "done"
    assert (run(refused).kind, run(refused).fault) == ("refused", "")
    assert "KeyError" in run(wrong).fault
    assert "without a sentence" in run(speechless).fault
    assert "signal 11" in run(crashed).fault
    assert run(lambda: time.sleep(60), seconds=0.5).fault == "it hung"
    assert run(lambda: time.sleep(60), kill_after=0.1).kind == "killed"
