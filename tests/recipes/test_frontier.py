"""Quality against compute: budgets that are really smaller, measurements that can be missing, and a frontier by hand."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import blip2, clip, magic
from recipes.claims.experiment import Planned
from recipes.frontier import __main__ as frontier
from recipes.frontier.__main__ import SHARES, budgets, learners, scaled, total
from recipes.tools.frontier import at, draw, frontier_section, on_frontier
from tests.recipes.fakes import install

Json = dict[str, Any]


def page_of(name: str, *points: tuple[float, float, float], measure: str = "shape") -> Json:
    """(share, FLOP, value) each."""
    about = {"page": name, "commit": "0" * 40, "date": "2026-01-02", "hardware": "a CPU", "versions": {"torch": "2"}}
    found = [
        {"share": share, "flops": flops, "values": {measure: {"value": value, "low": value - 0.1, "high": value + 0.1, "unit": "share"}}}
        for share, flops, value in points
    ]
    return about | {"points": found}


ONE = page_of("one", (0.5, 10e12, 0.5), (1, 1000e12, 0.7))
TWO = page_of("two", (0.5, 20e12, 0.4), (1, 200e12, 0.8))
OTHER = page_of("other", (1, 100e12, 0.3), measure="words")


def test_budgets_and_schedules_shrink_together() -> None:
    whole = clip.PRESETS["tiny"]
    for share in SHARES:
        recipe = scaled(whole, share)
        assert abs(recipe.budget - whole.budget * share) <= whole.batch / 2
        assert recipe.optim.warmup == whole.optim.warmup * share
        assert recipe.budget % recipe.batch == 0
    assert scaled(whole, 1.0) == whole  # the run of `make train-clip`
    stages = scaled(blip2.PRESETS["tiny"], 1 / 8).schedule
    assert [stage.budget for stage in stages] == [
        round(each.budget / 8 / each.batch) * each.batch for each in blip2.PRESETS["tiny"].schedule
    ]
    assert all(0 < stage.optim.warmup < stage.budget for stage in stages)


def test_pages_without_training_have_no_curve() -> None:
    assert {"clip", "blip2", "lit"} <= set(learners("tiny"))
    assert not {"magic", "asif", "lm", "vq", "classifier"} & set(learners("tiny"))
    with pytest.raises(ValueError, match="magic is not trained by gradient"):
        budgets("magic", Namespace(preset="tiny", data="", seed=0, device="cpu", runs=Path("runs")))
    assert magic.PRESETS["tiny"].budget == 1


def test_the_frontier_and_equal_compute_by_hand() -> None:
    pages = [ONE, TWO, OTHER]
    assert on_frontier(pages, "shape") == {("one", 0.5), ("two", 1)}  # one's whole budget costs more than two's and is worse
    assert on_frontier(pages, "words") == {("other", 1)}
    assert at(ONE, "shape", 100e12) == pytest.approx(0.6)  # half-way from 10 to 1,000 in the logarithm
    assert at(ONE, "shape", 5e12) is at(ONE, "shape", 2000e12) is at(OTHER, "shape", 100e12) is None
    assert at(OTHER, "words", 100e12) is None  # a point is no interval
    lines = frontier_section(pages, Path("nowhere"))
    table = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines if line.startswith("| ")}
    assert ".500 (.400\N{EN DASH}.600) \N{BLACK DIAMOND}" in table["one", "0.5"]
    assert ".700 (.600\N{EN DASH}.800) |" in table["one", "1"]
    assert "| n/a |" in table["other", "1"]
    assert ".600" in table["one", ".600"]
    assert frontier_section([], Path("nowhere")) == []


def test_the_figure_has_every_page(tmp_path: Path) -> None:
    draw([ONE, TWO, OTHER], tmp_path / "one.svg")
    draw([ONE, TWO, OTHER], tmp_path / "two.svg")
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "<svg" in text
    assert "<script" not in text


def test_costs_are_all_told() -> None:
    cost = {
        "train_flops": 5,
        "prerequisites": {"a": {"train_flops": 3, "prerequisites": {"b": {"train_flops": 2}}}, "c": {"train_flops": 1}},
    }
    assert total(cost, "train_flops") == 11


@pytest.fixture
def tower(monkeypatch: pytest.MonkeyPatch, scenes: Path) -> Iterator[None]:
    install(monkeypatch, str(scenes))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("tower")
def test_it_trains_evaluates_resumes_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Namespace(preset="tiny", data="", seed=0, device="cpu", runs=tmp_path, pages=["tower"])
    evaluated: list[str] = []

    def evaluate(folder: Path, **_: Any) -> None:
        evaluated.append(folder.name)
        (folder / "eval" / "x").mkdir(parents=True)

    def read(run: Planned) -> Json | None:
        if not (run.folder / "eval").exists():
            return None
        return {"zero-shot shape": {"value": run.recipe.budget / 100, "low": 0.0, "high": 1.0, "n": 9, "unit": "share"}}

    def work(commands: dict[str, list[str]], *_: object) -> int:
        assert all(command[:3] == [sys.executable, "-m", "recipes.frontier"] for command in commands.values())
        return max([frontier.answer(key, {"tower": budgets("tower", args)}, tmp_path) for key in commands], default=0)

    monkeypatch.setattr(frontier, "evaluate_run", evaluate)
    monkeypatch.setattr(frontier, "measured", read)
    monkeypatch.setattr(frontier, "work", work)
    for again in range(2):
        assert frontier.frontier({"tower": budgets("tower", args)}, args, 1) == 0
        assert len(evaluated) == len(set(evaluated)) == 4
        said = capsys.readouterr().out
        assert ("All runs are trained and measured" if again else "4 runs to train") in said
    points = json.loads((tmp_path / "frontier" / "tower.json").read_text())["points"]
    assert [point["share"] for point in points] == list(SHARES)
    assert all(one["samples"] < two["samples"] and one["flops"] < two["flops"] for one, two in pairwise(points))
