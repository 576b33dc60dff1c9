"""Embedded against real data: the same recipe on both, each evaluated on its own, and a rank correlation by hand."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.scenes.build import build
from data.shards import find
from eval.report.results import Cell, Key
from recipes.claims import claim as declared
from recipes.claims.claim import Arm, Claim
from recipes.claims.experiment import Planned
from recipes.tools.worlds import correlation, draw, worlds_section
from recipes.train import pages
from recipes.worlds import __main__ as worlds
from recipes.worlds.__main__ import independent
from recipes.worlds.claims import Trial, differences, trials
from tests.recipes.fakes import install

Json = dict[str, Any]
NAME = "retrieval R@10"
NOWHERE = Path("no such folder")


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
    four = [record("one", 0.2, 0.1), record("two", 0.4, 0.2), record("three", 0.6, 0.3), record("four", 0.8, 0.4)]
    text = "\n".join(worlds_section(four, NOWHERE))
    assert "### photos" in text
    assert "Preset tiny, 0.125 of the budget, seed 0." in text
    assert "| two | .400 (.300\N{EN DASH}.500) | .200 (.100\N{EN DASH}.300) |" in text
    assert f"- {NAME}: rank correlation 1.00 over 4 pages: the same order, by chance in 4.2% of cases." in text
    other = [record("five", 0.9, 0.35)]
    assert f"- {NAME}: rank correlation 0.90 (0." in "\n".join(worlds_section([*four, *other], NOWHERE))
    apart = worlds_section([*four, record("five", 0.9, 0.35) | {"share": 0.5}], NOWHERE)
    assert sum("### photos" in line for line in apart) == 2
    assert sum("1 page, too few" in line for line in apart) == 1
    assert f"- {NAME}: 3 pages, too few" in "\n".join(worlds_section([*four[:3], record("four", 0.8, None)], NOWHERE))
    same = [record(name, 0.5, number / 10) for number, name in enumerate("abcd")]
    assert "so there is no correlation" in "\n".join(worlds_section(same, NOWHERE))
    assert worlds_section([], NOWHERE) == []


def tried(against: str, embedded: float, other: float, width: float = 0.05) -> Json:
    """The difference of a claim's arms on both data sets."""
    sides = [{"effect": each, "low": each - width, "high": each + width, "unit": "share"} for each in (embedded, other)]
    about = {"claim": "better", "sentence": "It is better.", "first": "ours", "against": against, "measure": NAME}
    return about | {"embedded": sides[0], "other": sides[1]}


def test_the_differences_of_claims_have_signs_and_ranks(tmp_path: Path) -> None:
    claims = [tried("a", 0.4, 0.3), tried("b", 0.2, 0.2), tried("c", 0.1, -0.02), tried("d", -0.3, -0.1)]
    two = [record("one", 0.2, 0.1) | {"claims": claims[:3]}, record("two", 0.4, 0.2) | {"claims": claims[3:]}]
    text = "\n".join(worlds_section(two, tmp_path))
    minus = "\N{MINUS SIGN}"
    assert f"| one | better | ours | c | {NAME} | +.100 (+.050 to +.150) | {minus}.020 ({minus}.070 to +.030) |" in text
    assert "- the same sign on both: 3 of 4 differences (.301\N{EN DASH}.954); 3 of the 3 whose intervals both exclude 0." in text
    assert f"- {NAME}: rank correlation 1.00 over 4 differences: the same order" in text
    assert "2 pages, too few" in text
    assert "worlds.svg" not in text
    for name in ("worlds.svg", "again.svg"):
        draw(two, tmp_path / name)
    assert (tmp_path / "worlds.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    assert "](" + tmp_path.name + "/worlds.svg)" in "\n".join(worlds_section(two, tmp_path))
    draw([record("one", 0.2, 0.1), record("two", 0.4, 0.2)], tmp_path / "without.svg")


def test_claims_take_part_that_captions_suffice_for(scenes: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "scenes-tiny").symlink_to(scenes)
    monkeypatch.chdir(tmp_path)
    args = Namespace(preset="tiny", data=other, seed=0, share=0.5, device="cpu", runs=tmp_path)
    assert find(pages.preset("clip", "tiny").data, "train").name != find(other, "train").name
    chosen = {page: [trial.claim.name for trial in trials(page, independent("tiny"), args)] for page in ("clip", "align", "coca", "llip")}
    assert chosen["clip"] == ["muon-for-retrieval"]  # not zero-shot, foils, or other metrics of the same run
    assert "scale-beats-cleanliness" not in chosen["align"]  # a number of shards
    assert chosen["coca"] == ["joint-against-captioning", "muon"]
    assert "llip-beats-siglip" in chosen["llip"]  # two pages
    assert trials("llip", ["llip"], args)[-1].claim.name != "llip-beats-siglip"  # one of them builds on another run
    (muon,) = trials("clip", ["clip"], args)
    assert len({run.recipe.budget for pair in muon.pairs for run in pair.runs}) == 1
    assert muon.pairs[0].embedded.key == worlds.plan("clip", args).pair.embedded.key  # the page's own run is its first arm
    assert len({run.key for pair in muon.pairs for run in pair.runs}) == 4


def test_a_difference_is_in_favour_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"first": [0.9, 0.8, 1.0, 0.9], "other": [0.1, 0.3, 0.2, 0.2]}
    cells = {name: {NAME: Cell(key=Key("retrieval", "test", "m"), value=sum(each) / 4, n=4)} for name, each in values.items()}
    totals = {id(cells[name][NAME]): {str(row): (value, 1.0) for row, value in enumerate(each)} for name, each in values.items()}
    monkeypatch.setattr("recipes.worlds.claims.cells", lambda run: cells.get(run))
    monkeypatch.setattr("recipes.worlds.claims.totals_of", lambda cell: totals[id(cell)])
    metric = declared.Cell("retrieval", "i2t R@1 (500)")
    claim = Claim(name="x", sentence="X.", paper="", arms=(Arm("one"), Arm("two")), metric=metric)
    runs: Any = (Namespace(runs=("first", "first")), Namespace(runs=("other", "other")))
    (found,) = differences(Trial(claim, runs))
    assert found["embedded"]["effect"] == pytest.approx(0.7)
    assert 0 < found["embedded"]["low"] < 0.7 < found["embedded"]["high"]
    (lower,) = differences(Trial(replace(claim, better="lower"), runs))
    assert lower["other"]["effect"] == pytest.approx(-0.7)
    assert lower["other"]["low"] == pytest.approx(-found["other"]["high"])
    lacking: Any = (runs[0], Namespace(runs=("other", "not trained")))
    assert not list(differences(Trial(claim, lacking)))


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

    def read(run: Planned) -> dict[str, Cell] | None:
        cell = Cell(key=Key("retrieval", "test", "m"), value=len(run.recipe.data) / 1000, low=0.0, high=1.0, n=9)
        return {NAME: cell} if run.folder.name in evaluated else None

    def work(commands: dict[str, list[str]], *_: object) -> int:
        assert all(command[:3] == [sys.executable, "-m", "recipes.worlds"] for command in commands.values())
        return max([worlds.answer(key, {"tower": worlds.plan("tower", args)}, tmp_path) for key in commands], default=0)

    monkeypatch.setattr(worlds, "evaluate_run", evaluate)
    monkeypatch.setattr(worlds, "cells", read)
    monkeypatch.setattr(worlds, "work", work)
    for again in range(2):
        assert worlds.worlds({"tower": worlds.plan("tower", args)}, args, 1) == 0
        assert ("All runs are trained and measured" if again else "2 runs to train") in capsys.readouterr().out
    both = worlds.plan("tower", args).pair
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
        worlds.plan("tower", args)
