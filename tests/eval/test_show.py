"""What an evaluation prints, and how it says how far it is."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eval.harness.outlook import Outlook, Unit
from eval.harness.share import Board
from eval.report.show import print_screen
from tests.eval.fake_runs import cell

BASE: dict[str, Any] = {"run": "toy-tiny-s0", "page": "toy", "model": "clip", "dataset": "scenes", "seconds": 61.0, "hardware": "2 CPUs"}


def printed(cells: list[dict[str, Any]], width: int = 100, **fields: Any) -> list[str]:
    file = io.StringIO()
    print_screen(Console(file=file, width=width), BASE | {"cells": cells} | fields, Path(".runs/toy-tiny-s0"))
    return file.getvalue().splitlines()


def number(task: str, metric: str, value: float, chance: float, **fields: Any) -> list[dict[str, Any]]:
    about = {"low": value - 0.05, "high": value + 0.05, "n": 100, "adapter": "embedding similarity"} | fields
    controls = {"chance": chance, "untrained": chance, "shuffled images": chance, "blank images": chance, "oracle": 1.0}
    return [cell(task, "test", metric, value, **about)] + [cell(task, "test", metric, v, variant=name) for name, v in controls.items()]


def test_the_screen_has_the_headline_beside_its_controls_and_a_line_for_what_is_missing() -> None:
    cells = number("zeroshot", "colour", 0.9, 0.1) + number("zeroshot", "shape", 0.8, 0.125) + number("probe", "size", 0.7, 0.5)
    for task in ("captioning", "chair"):
        cells.append(cell(task, "test", "CHAIR-i", None, status="n/a", note="needs caption"))
    cells.append(cell("vqa", "test", "accuracy", None, status="not run", note="too many to score pair by pair"))
    lines = printed(cells)
    row = next(line for line in lines if line.startswith("zeroshot")).split()
    assert row == ["zeroshot", "shape", ".800", ".750-.850", ".125", ".125", ".125", ".125", "1.000"]
    assert not any("colour" in line for line in lines)  # no headline: it is in the tables of --all
    assert "It cannot: captioning, chair (needs caption)." in lines
    assert "Not run: vqa (too many to score pair by pair)." in lines
    assert any("probe" in line and "also" in line for line in lines)
    assert any("make eval-toy OUT=.runs/toy-tiny-s0 EVAL_ARGS=--all" in line for line in lines)
    assert any("EVAL_ARGS='--all --limit 60'" in line for line in printed(cells, limit=60))  # on all samples it would ask again
    assert not any("Below chance" in line for line in lines)


def test_what_else_there_is_stays_in_its_line_and_names_nothing_in_part() -> None:
    shown = number("zeroshot", "shape", 0.8, 0.125)

    def line(*others: tuple[str, str]) -> str:
        cells = [cell(task, split, "x", 0.5, low=0.4, high=0.6, n=9) for task, split in others]
        return next(line for line in printed(shown + cells) if line.startswith("All "))

    assert line() == "All 6 numbers, without evaluating again:"
    assert line(("probe", "test"), ("bias", "test")) == "All 8 numbers (also probe, bias), without evaluating again:"
    tasks = ("probe", "bias", "association", "clipscore", "memorisation", "fewshot_vqa")
    many = line(*((task, split) for task in tasks for split in ("test", "heldout", "style")))
    assert many == "All 24 numbers (also probe, bias, association, clipscore, 4 more), without evaluating again:"
    assert line(("probe", "of my own " * 20)) == "All 7 numbers (also probe, 1 more), without evaluating again:"


def test_below_chance_is_marked_with_its_interval_and_the_declared_reason() -> None:
    cells = number("zeroshot", "shape", 0.05, 0.125, adapter="likelihood")
    text = " ".join(" ".join(printed(cells, notes={"zeroshot": "Short texts are likelier."})).split())
    assert "\N{DOWNWARDS ARROW}.050" in text
    assert "zeroshot shape: .050 (.000-.100), chance .125, by likelihood. Short texts are likelier." in text
    assert "Below chance" not in " ".join(printed(number("zeroshot", "shape", 0.1, 0.125)))  # its interval holds chance
    assert "Below chance" in " ".join(printed(number("chair", "CHAIR-i", 0.9, 0.5, better="lower")))


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_screen_stays_a_screen_whatever_goes_wrong(width: int, missing: int) -> None:
    """Everything below chance, every task missing for a long reason of its own."""
    tasks = ("zeroshot", "retrieval", "foils", "vqa", "pope", "chair", "winoground", "binding", "captioning", "drawing", "association")
    cells = [each for task in tasks for each in number(task, "a metric of its own", 0.1, 0.5)]
    cells += [cell(f"missing {i}", "test", "x", None, status="n/a", note=f"reason {chr(97 + i)} " * 30) for i in range(20 * (missing > 0))]
    cells += [cell(f"not run {i}", "test", "x", None, status="not run", note="too many " * 30) for i in range(20 * (missing > 1))]
    notes = {task: f"A reason of {task}, which is as long as such reasons are and takes a line or two of its own." for task in tasks}
    lines = printed(cells, width, notes=notes, unfinished="3,200 samples")
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)


def test_reasons_are_said_once_and_whole() -> None:
    why = "A pair counts when all its comparisons are right and none is a tie: a model that misses the swap is far below chance."
    cells = number("zeroshot", "shape", 0.05, 0.5) + number("winoground", "group", 0.05, 0.5)
    for size in (500, 2000):
        cells.append(cell("retrieval", "test", f"i2t R@1 ({size})", None, status="not run", note=f"{size:,} images are too many"))
    text = " ".join(" ".join(printed(cells, notes={"zeroshot": why, "winoground": why})).split())
    assert text.count(why) == text.count("Below chance") == text.count("are too many") == 1
    assert "zeroshot shape: .050" in text
    assert "; winoground group: .050" in text


def test_time_left_follows_the_seconds_per_sample_of_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kinds = [("quick", False), ("slow", False), ("slow", False), ("quick", False), ("unknown", False)]
    outlook = Outlook("toy", [Unit("", kind, 10) for kind in kinds], Console(quiet=True, file=io.StringIO()), Board([1] * 5))
    assert outlook.left is None
    for number, seconds in enumerate((1.0, 9.0)):  # .1 and .9 seconds per sample
        outlook.board.take()
        outlook.begin(number)
        outlook.advance(0)
        now[0] += seconds
        outlook.advance(10)
    assert outlook.left == pytest.approx(9 + 1 + 5)  # the unknown at the mean of all, .5
    outlook.board.take()
    outlook.begin(2)
    outlook.advance(5)  # left by an earlier evaluation: took no time, and says nothing about the pace
    assert outlook.left == pytest.approx(4.5 + 1 + 5)
    assert outlook.share == pytest.approx(10 / 20.5)
    assert "about 10 s left" in outlook.line()
    assert [outlook.board.take(), outlook.board.take()] == [range(3, 4), range(4, 5)]  # a helper answers the quick and the unknown
    assert outlook.left == pytest.approx(4.5)
    outlook.board.processes = 2
    assert outlook.left == pytest.approx(4.5 / 2)


def test_an_unfinished_training_and_the_selected_tasks_are_said() -> None:
    cells = number("zeroshot", "shape", 0.8, 0.125)
    lines = printed(cells, unfinished="3,200 samples", asked=["zeroshot", "vqa"])
    said = lines.index("Its training is not finished: it has seen 3,200 samples so far. To finish it:")
    assert lines[said + 1] == "  make train-toy OUT=.runs/toy-tiny-s0"
    assert any("TASKS=zeroshot,vqa EVAL_ARGS=--all" in line for line in lines)
    assert not any("not finished" in line or "TASKS=" in line for line in printed(cells))


def test_names_of_people_are_no_markup() -> None:
    lines = printed(number("zeroshot", "[red]shape :bomb:", 0.8, 0.125), run="a [bold]b :bomb:", dataset="[/]x")
    assert lines[0] == "a [bold]b :bomb:: toy on [/]x"
