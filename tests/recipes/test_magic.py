"""MAGIC's run is made of two others and of nothing learned; its weights are tuned on val; the gradient-guided baseline is guided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from data.shards import find
from models.lm import LMConfig
from models.magic import MAGICConfig, Search
from models.shared.backbones import LanguageConfig
from models.shared.transformer import TransformerConfig
from recipes import clip, lm, magic
from recipes.bench import magic as bench_magic
from recipes.bench.ratios import Bench, Setting
from recipes.tools import tune_magic
from recipes.train.distributed import Process
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe
from tests.recipes.conftest import TEXT, VISION
from tests.recipes.kit import shortened


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained through the real entry, with prerequisites of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "magic-tiny-scenes-test-s0"
    short: dict[str, Any] = {"budget": 64, "batch": 16, "device": "cpu", "precision": "fp32"}
    language = LanguageConfig(width=32, depth=1, heads=2, hidden=48)
    eyes = replace(clip.PRESETS["tiny"].model, vision=VISION, text=TEXT, embed_dim=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.PRESETS, "tiny", shortened(clip.PRESETS["tiny"], model=eyes, **short))
        patch.setitem(lm.PRESETS, "captions", shortened(lm.PRESETS["captions"], model=LMConfig(language=language).describing(), **short))
        model = replace(MAGICConfig.tiny(), clip=eyes, language=language, search=Search(5, 0.1, 0.6), limit=8)
        recipe: AnyRecipe = replace(magic.PRESETS["tiny"], model=model, data=str(scenes), device="cpu")
        assert train(recipe, folder, "tiny") == 0
    return folder


def test_a_run_is_two_others_and_costs_nothing_itself(run: Path, scenes: Path) -> None:
    cost = json.loads((run / "cost.json").read_text())
    assert cost["finished"]
    assert cost["trainable_parameters"] == cost["train_flops"] == 0
    assert cost["prerequisites"]["clip"]["samples_seen"] == cost["prerequisites"]["language_model"]["samples_seen"] == 64
    model: Any = models.load(run)
    for role, folder, inside in (("clip", "clip-tiny", "clip."), ("language_model", "lm-captions", "")):
        theirs = models.load(run.parent / f"{folder}-scenes-test-s0").state_dict()
        assert all(torch.equal(model.state_dict()[f"{inside}{name}"], tensor) for name, tensor in theirs.items()), role


def test_tuning_writes_a_table_of_every_pair_of_weights(run: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    options = ["--data", str(scenes), "--alpha", "0,0.5", "--beta", "0,1,3", "--most", "12", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["tune", str(run), *options])
    tune_magic.main()
    rows = json.loads((run / "tune.json").read_text())["rows"]
    assert [(row["k"], row["alpha"], row["beta"]) for row in rows] == [(5, alpha, beta) for alpha in (0, 0.5) for beta in (0, 1, 3)]
    best = max(rows, key=lambda row: row["object F1"]["value"])
    assert f"best: k 5, alpha {best['alpha']:g}, beta {best['beta']:g}" in capsys.readouterr().out
    assert all(0 <= row["object F1"]["low"] <= row["object F1"]["value"] <= row["object F1"]["high"] <= 1 for row in rows)
    monkeypatch.setattr("sys.argv", ["tune", str(run.parent / "nothing")])
    with pytest.raises(SystemExit, match="nothing"):
        tune_magic.main()


def test_the_baseline_moves_where_clip_wants_it(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(MAGICConfig.tiny(), language=LanguageConfig(width=32, depth=1, heads=2, hidden=48), search=Search(4, 0.1, 0.6))
    small = replace(small, clip=replace(small.clip, vision=VISION, text=TransformerConfig(32, 1, 2), embed_dim=16))
    monkeypatch.setattr(MAGICConfig, "tiny", classmethod(lambda cls: small))
    monkeypatch.setattr(bench_magic, "LENGTH", 3)
    (row,) = bench_magic.guidance(Bench(Setting(repeats=2), find(str(scenes), "train"), Process.find("cpu")))
    assert len(row.ratios) == 2
    assert row.what == "guidance"
