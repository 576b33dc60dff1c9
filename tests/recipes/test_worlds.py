"""Embedded against real data: the same recipe on both, each evaluated on its own, and a rank correlation by hand."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.scenes.build import build
from recipes.claims.experiment import Planned
from recipes.tools.worlds import correlation, worlds_section
from recipes.worlds import __main__ as worlds
from recipes.worlds.__main__ import independent, pair
from tests.recipes.fakes import install

Json = dict[str, Any]
NAME = "retrieval R@10"


def record(page: str, embedded: float, other: float | None) -> Json:
    """Scores of a page on both data sets."""

    def side(dataset: str, value: float | None) -> Json:
        values = {} if value is None else {NAME: {"value": value, "low": value - 0.1, "high": value + 0.1, "unit": "share"}}
        return {"dataset": dataset, "values": values}

    about = {
        "page": page,
        "preset": "tiny",
        "share": 0.125,
        "seed": 0,
        "commit": "0" * 40,
        "date": "2026-01-02",
        "hardware": "a CPU",
        "versions": {"torch": "2"},
    }
    return about | {"embedded": side("scenes-tiny", embedded), "other": side("photos", other)}


def test_the_correlation_is_that_of_ranks_with_its_interval() -> None:
    low, rho, high = correlation([(0.1, 0.2), (0.2, 0.3), (0.3, 0.9), (0.4, 0.4), (0.5, 1.0)])
    assert rho == pytest.approx(1 - 6 * 2 / (5 * 24))  # the third and the fourth change places
    assert math.atanh(rho) - math.atanh(low) == pytest.approx(1.96 * math.sqrt(1.06 / 2))
    assert 0 < low < rho < high < 1
    low, rho, high = correlation([(0.1, 0.9), (0.2, 0.8), (0.3, 0.2), (0.4, 0.1)])
    assert rho == -1
    assert math.isnan(correlation([(0.1, 0.5)] * 4)[1])


def test_the_section_says_what_it_rests_on() -> None:
    pages = [record("one", 0.2, 0.1), record("two", 0.4, 0.2), record("three", 0.6, 0.3), record("four", 0.8, 0.4)]
    text = "\n".join(worlds_section(pages))
    assert "### photos" in text
    assert "Preset tiny, 0.125 of the budget, seed 0." in text
    assert "| two | .400 (.300\N{EN DASH}.500) | .200 (.100\N{EN DASH}.300) |" in text
    assert f"- {NAME}: rank correlation 1.00 over 4 pages: the same order, by chance in 4.2% of cases." in text
    other = [record("five", 0.9, 0.35)]
    assert f"- {NAME}: rank correlation 0.90 (0." in "\n".join(worlds_section([*pages, *other]))
    apart = worlds_section([*pages, record("five", 0.9, 0.35) | {"share": 0.5}])
    assert sum("### photos" in line for line in apart) == 2
    assert sum("1 page, too few" in line for line in apart) == 1
    assert f"- {NAME}: 3 pages, too few" in "\n".join(worlds_section([*pages[:3], record("four", 0.8, None)]))
    same = [record(name, 0.5, number / 10) for number, name in enumerate("abcd")]
    assert "so there is no correlation" in "\n".join(worlds_section(same))
    assert worlds_section([]) == []


def test_pages_that_build_on_others_are_left_out() -> None:
    assert {"clip", "siglip", "coca"} <= set(independent("tiny"))
    assert not {"lit", "blip2", "frozen", "magic", "lm", "vq"} & set(independent("tiny"))


@pytest.fixture
def other(scenes: Path, tmp_path: Path) -> str:
    build(tmp_path / "photos", "tiny", workers=1, samples={"train": 40, "val": 20}, planted=0.5)
    return str(tmp_path / "photos")


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch, scenes: Path) -> Iterator[None]:
    install(monkeypatch, str(scenes))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("tower")
def test_it_trains_on_both_evaluates_each_on_its_own_and_resumes(
    tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Namespace(preset="tiny", data=other, seed=0, share=0.5, device="cpu", runs=tmp_path / "runs", pages=["tower"])
    evaluated: dict[str, str] = {}

    def evaluate(folder: Path, *, data: str, **_: Any) -> None:
        assert folder.name not in evaluated
        evaluated[folder.name] = data

    def read(run: Planned) -> Json | None:
        found = {"value": len(run.recipe.data) / 1000, "low": 0.0, "high": 1.0, "n": 9, "unit": "share"}
        return {NAME: found} if run.folder.name in evaluated else None

    def work(commands: dict[str, list[str]], *_: object) -> int:
        assert all(command[:3] == [sys.executable, "-m", "recipes.worlds"] for command in commands.values())
        return max([worlds.answer(key, {"tower": pair("tower", args)}, tmp_path) for key in commands], default=0)

    monkeypatch.setattr(worlds, "evaluate_run", evaluate)
    monkeypatch.setattr(worlds, "measured", read)
    monkeypatch.setattr(worlds, "work", work)
    for again in range(2):
        assert worlds.worlds({"tower": pair("tower", args)}, args, 1) == 0
        assert ("All runs are trained and measured" if again else "2 runs to train") in capsys.readouterr().out
    both = pair("tower", args)
    assert both.embedded.recipe.budget == both.other.recipe.budget
    assert evaluated == {run.folder.name: run.recipe.data for run in both.runs}
    (path,) = (tmp_path / "runs" / "worlds").glob("tower.*.json")
    found = json.loads(path.read_text())
    assert found["embedded"]["values"] != found["other"]["values"]
    assert found["embedded"]["samples"] == found["other"]["samples"] > 0


@pytest.mark.usefixtures("tower")
def test_the_same_data_twice_is_refused(scenes: Path, tmp_path: Path) -> None:
    args = Namespace(preset="tiny", data=str(scenes), seed=0, share=0.5, device="cpu", runs=tmp_path, pages=["tower"])
    with pytest.raises(ValueError, match="name a different data set with DATA="):
        pair("tower", args)
