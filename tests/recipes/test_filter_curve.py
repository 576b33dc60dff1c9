"""The curve of filtering: its lists, its claims on a few steps, going on after an interruption, and data without a truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.keep import keeping
from data.scenes.build import build, write_splits
from data.scenes.pool import noise_of, polluted_sample
from data.shards import find
from recipes import clip, filtering
from recipes.claims import examine
from recipes.claims.claim import ClaimError, Measured
from recipes.claims.experiment import plan
from recipes.filter import curve
from recipes.filter.pool import see, write_kept
from recipes.filter.scores import Truth
from recipes.train.recipe import AnyRecipe

COUNT = 120


@pytest.fixture
def run(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The curve with three steps a run, in this process; what is measured is the number of samples in the list."""
    quick = replace(recipe, budget=4 * 48, optim=replace(recipe.optim, warmup=0))  # the claims take a quarter
    monkeypatch.setitem(clip.PRESETS, "tiny", quick)
    counted = Measured("samples", lambda folder, recipe: {f"{n}": n + float(bool(recipe.keep)) for n in range(9)})
    claims = tuple(each if each.name == "precision" else replace(each, metric=counted) for each in filtering.CLAIMS)
    monkeypatch.setattr(filtering, "CLAIMS", claims)
    monkeypatch.setattr(curve, "CLAIMS", claims)
    threads = torch.get_num_threads()

    def ran(data: Path, **options: Any) -> int:
        asked: dict[str, Any] = {"preset": "tiny", "data": str(data), "device": "cpu", "runs": tmp_path / "runs"} | options
        only = asked.pop("only", "")

        def work(commands: dict[str, list[str]], *_: object) -> int:
            questions = plan("filtering", only=only, seeds=[0, 1, 2], **asked)
            return max([examine.answer(key, questions, tmp_path / "runs") for key in commands], default=0)

        monkeypatch.setattr(examine, "work", work)
        status = curve.curve(**asked, seeds=[0, 1, 2], only=only, jobs=1)
        torch.set_num_threads(threads)
        return status

    return ran


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pool-test"
    write_splits(folder, "pool-test", "tiny", polluted_sample, workers=1, samples={"train": COUNT, "val": 16})
    return folder


def test_the_curve_from_the_pool_to_its_claims(run: Callable[..., int], pool: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(pool, only="clip-score") == 0
    said = capsys.readouterr().out
    assert said.index("samples in total), about") < said.index("clip-0.3:")  # the estimate comes first
    assert "precision" in said

    lists = {name: keeping(find(pool, "train"), pool / "curve" / f"{name}.jsonl") for name in curve.LISTS}
    assert {name: lists[name].samples for name in ("clip-0.1", "clip-0.3", "clip-0.5", "random-0.3")} == {
        "clip-0.1": 13,
        "clip-0.3": 37,
        "clip-0.5": 61,
        "random-0.3": 37,
    }
    keys = {name: {key for found in split.keep.keys.values() for key in found} for name, split in lists.items() if split.keep}
    assert keys["clip-0.1"] < keys["clip-0.3"] < keys["clip-0.5"]
    assert keys["rules-clip-0.5"] == keys["rules"] & keys["clip-0.5"]
    assert keys["truth"] == {f"{index:08d}" for index in range(COUNT) if noise_of(index, 0) == "clean"}

    found = json.loads((tmp_path / "runs" / "claims" / "filtering" / "clip-score.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["best 30 % by CLIP score", "all samples", "30 % at random"]
    assert {arm["samples_seen"] for arm in found["arms"]} == {48}
    assert found["arms"][0]["mean"] == found["arms"][2]["mean"] == found["arms"][1]["mean"] + 1

    # Another claim goes on with the same lists and runs.
    before = {path: path.stat().st_mtime_ns for path in (pool / "curve").iterdir()}
    trained = sorted(path.name for path in (tmp_path / "runs" / "claims" / "runs").iterdir())
    assert len(trained) == 9
    assert run(pool, only="clip-score") == 0
    assert "All runs are trained and measured" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (pool / "curve").iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "runs" / "claims" / "runs").iterdir()) == trained


def test_a_changed_list_is_another_run(run: Callable[..., int], pool: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"preset": "tiny", "data": str(pool), "device": "cpu", "runs": tmp_path / "runs", "seeds": [0]}
    (pool / "curve").mkdir(exist_ok=True)
    path = pool / "curve" / "clip-0.3.jsonl"
    keys = set()
    for text in ("00000000\n", "00000001\n"):
        path.write_text(text)
        keys |= {each.run.key for each in plan("filtering", only="clip-score", **asked) if each.run.recipe.keep == str(path)}
    assert len(keys) == 2


def test_precision_is_that_of_the_list(pool: Path, recipe: AnyRecipe, tmp_path: Path) -> None:
    truth = Truth()
    seen = see(find(pool, "train"), [truth])
    write_kept(seen, {"truth": truth.verdict()}, tmp_path / "clean.jsonl")
    assert filtering.precision(tmp_path, replace(recipe, keep=str(tmp_path / "clean.jsonl"))) == 1
    (tmp_path / "plain").write_text("00000000\n")
    with pytest.raises(ClaimError, match="the truth about its samples is not known"):
        filtering.precision(tmp_path, replace(recipe, keep=str(tmp_path / "plain")))


def test_data_without_a_truth_have_no_claims_about_it(run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    build(folder, "tiny", workers=1, samples={"train": 60})
    examined: list[str] = []
    monkeypatch.setattr(curve, "examine", lambda page, only, **_: examined.append(only) or 0)
    assert run(folder) == 0
    assert examined == ["clip-score", "kept-share", "intersection"]
    assert not (folder / "curve" / "truth.jsonl").exists()
    scores = [json.loads(line)["clip"] for line in (folder / "curve" / "clip-0.5.jsonl").read_text().splitlines()[1:]]
    assert len(scores) >= 31
    assert np.isfinite(scores).all()
