"""A minute of `make stress`, the attack that it cannot do without, and the referee: what counts as a fault."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

import tests.stress.__main__ as campaigns
from recipes.train.pages import page
from tests.recipes.test_contract import PAGES
from tests.stress import disks, kills
from tests.stress.__main__ import campaign
from tests.stress.child import run
from tests.stress.ground import Ground


@pytest.mark.timeout(600)
def test_a_minute_of_rough_handling_finds_nothing() -> None:
    """At least one input of each attack."""
    found = campaign(60.0, seed=int(time.time()) // 86_400)  # another one every day
    assert [fault for row in found["rows"] for fault in row["faults"]] == []
    assert all(row["tried"] or row["note"].startswith("not tried") for row in found["rows"])
    assert re.match(r"in [1-9]\d* of \d+ stages of \d+ pages", found["rows"][0]["note"])


def test_a_disk_attack_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(disks.subprocess, "run", refuse)
    ground = Ground(tmp_path, tmp_path, tmp_path / "room", random.Random(0))
    assert list(disks.full_and_read_only_disks(ground)) == []
    assert ground.note == "not tried: this user may not mount a file system"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_campaign_kills_in_every_stage_and_at_every_step_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "ATTACKS", {kills.killed_trainings: 95, kills.killed_comparisons: 5})
    trainings, comparisons = campaign(3000.0)["rows"]
    stages = sum(len(page(name).PRESETS["tiny"].schedule) for name in PAGES)
    assert (trainings["tried"], trainings["faults"], comparisons["faults"]) == (stages, [], [])
    assert trainings["note"] == f"in {stages} of {stages} stages of {len(PAGES)} pages"
    assert comparisons["note"] == f"at {len(kills.REPORT)} of {len(kills.REPORT)} steps"


def test_what_an_attack_prints_is_no_file_that_may_not_grow() -> None:
    def prints() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        print("a line of the report", flush=True)

    assert run(prints).kind == "done"


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
