"""Time to quality: measured while training, without changing it, and without counting the time that measuring takes."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import models
from data.files import FileError
from data.loader import in_order
from data.shards import find
from eval import EvalError
from eval.harness.source import in_memory
from eval.run import evaluate
from recipes.race import __main__ as race
from recipes.race.__main__ import MARKS, reached, said
from recipes.tools.results import race_cell
from recipes.train import quality
from recipes.train.folder import read_cost
from recipes.train.loop import train
from recipes.train.pages import page
from recipes.train.quality import MEASURES, Quality
from recipes.train.recipe import Log
from tests.recipes.fakes import install
from tests.recipes.test_contract import short

COST = {"finished": True, "samples_seen": 1, "train_seconds": 1.0, "train_flops": 1.0, "hardware": "1 x CPU", "threads": 1}
FREE = {"train_seconds": 0.0, "train_flops": 0.0}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def events(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == "quality"]


def test_measuring_changes_no_weight_and_takes_no_time(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, real, spent = quality.Quality.of, time.monotonic, [0.0]

    def slow(self: Quality, model: Any) -> dict[str, float]:
        torch.manual_seed(99)
        spent[0] += 5.0
        return measure(self, model)

    monkeypatch.setattr(quality.Quality, "of", slow)
    monkeypatch.setattr(time, "monotonic", lambda: real() + spent[0])
    recipe = short(page("coca").PRESETS["tiny"], str(few), steps=4)
    assert train(recipe, tmp_path / "plain") == 0
    assert train(replace(recipe, log=replace(recipe.log, measure=24)), tmp_path / "measured") == 0
    plain, measured = (models.load(tmp_path / name).state_dict() for name in ("plain", "measured"))
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    found = events(tmp_path / "measured")
    assert [event["step"] for event in found] == [1, 2, 3, 4]
    assert not events(tmp_path / "plain")
    assert spent[0] == 20.0
    assert json.loads((tmp_path / "measured" / "cost.json").read_text())["train_seconds"] < 20.0
    assert all(one["flops"] < two["flops"] and one["seconds"] <= two["seconds"] for one, two in pairwise(found))
    assert set(found[0]["values"]) == set(MARKS) == set(MEASURES)


@pytest.mark.slow
def test_it_measures_what_the_harness_measures(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = short(page("coca").PRESETS["tiny"], str(few), steps=2)
    recipe = replace(recipe, log=replace(recipe.log, measure=24))
    assert train(recipe, tmp_path / "run") == 0
    monkeypatch.setattr("eval.harness.ask.CONTROL_SAMPLES", 2)
    model = models.load(tmp_path / "run")
    samples = next(iter(in_order(find(recipe.data, "val"), batch_size=24)))
    source = in_memory("few", {"val": samples})
    quiet = Console(quiet=True)
    about, tasks = {"run": "x", "model": "coca"}, [task for task, _ in MEASURES.values()]
    result = evaluate(model, model, source, tmp_path / "eval", about=about, weights="w", console=quiet, tasks=tasks)
    values = {(cell["task"], cell["metric"]): cell["value"] for cell in result["cells"] if cell["variant"] == "model"}
    assert events(tmp_path / "run")[-1]["values"] == {name: pytest.approx(values[cell]) for name, cell in MEASURES.items()}


def test_nothing_is_measured_without_a_val_split(few: Path) -> None:
    recipe = short(page("clip").PRESETS["tiny"], str(few / "train"), steps=2)
    assert Quality(replace(recipe, log=Log(measure=8))).tasks == []
    assert Quality(replace(recipe, data=str(few))).tasks == []


def test_the_first_measurement_that_reaches_the_mark_counts() -> None:
    measured = [
        {"samples": n, "seconds": 10.0 * n, "flops": 1e12 * n, "values": {"shape": value}} for n, value in ((1, 0.5), (2, 0.9), (3, 0.7))
    ]
    found = reached(measured, "shape", 0.9, {"train_seconds": 100.0, "train_flops": 7e12})
    assert found == {"mark": 0.9, "best": 0.9, "reached": 0.9, "samples": 2, "seconds": 120.0, "flops": 9e12}
    assert said(found) == "120 s, 9 TFLOP"
    assert race_cell(found) == "2.0 min, 9 TFLOP"
    missed = reached(measured, "shape", 0.95, FREE)
    assert (missed["best"], missed["reached"], missed["seconds"]) == (0.9, None, None)
    assert said(missed) == "best 0.900"
    assert race_cell(missed) == "not reached: .900"
    never = reached(measured, "captions", 0.5, FREE)
    assert (said(never), race_cell(never)) == ("cannot", "n/a")


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "quality"}',
        '{"event": "quality", "samples": 1, "seconds": 1.0, "flops": "many", "values": {}}',
        '{"event": "quality", "samples": 1, "seconds": 1.0, "flops": 1.0, "values": {"zero-shot shape": "high"}}',
        '{"event": "quality", "samples": 1, "seconds": 1e400, "flops": 1.0, "values": {}}',
    ],
)
def test_a_log_that_holds_no_measurement_is_named(line: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, str(scenes))
    run = race.entry("tower", Namespace(preset="tiny", data="", seed=0, device="cpu", runs=tmp_path))
    run.folder.mkdir(parents=True)
    (run.folder / "cost.json").write_text(json.dumps(COST))
    (run.folder / "train.jsonl").write_text('[1, 2]\n{"event": "qual')  # torn, and of something else
    assert race.conclude(run)["marks"]["zero-shot shape"]["best"] is None
    (run.folder / "train.jsonl").write_text(f"{line}\n")
    with pytest.raises(EvalError, match=r"train\.jsonl: .* is not a valid measurement"):
        race.conclude(run)


@pytest.mark.parametrize(
    "change", [{"train_flops": None}, {"train_seconds": "long"}, {"samples_seen": -1}, {"hardware": 5}, {"threads": "two"}]
)
def test_a_cost_without_its_figures_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(json.dumps(COST | change))
    with pytest.raises(FileError, match=rf"cost\.json: {next(iter(change))}.* train again"):
        read_cost(tmp_path)


def test_a_race_of_one(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, str(scenes))
    args = Namespace(pages=["tower"], preset="tiny", data="", seed=0, device="cpu", runs=tmp_path)
    assert race.race(args) == 0
    result = json.loads((tmp_path / "race" / "tower.json").read_text())
    assert result["marks"]["zero-shot shape"] == {"mark": 0.9, "best": None, **dict.fromkeys(("reached", "samples", "seconds", "flops"))}
    assert (tmp_path / "race" / "runs" / "tower-tiny-s0" / "model.safetensors").exists()
    assert "cannot" in capsys.readouterr().out
    monkeypatch.setattr(race, "train", lambda *_: pytest.fail("trained again"))
    assert race.race(args) == 0
