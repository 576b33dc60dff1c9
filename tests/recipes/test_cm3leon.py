"""CM3leon through the real entry: its prerequisites are trained first, taken over, frozen, and part of its run folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from models.cm3leon import CM3leon
from recipes import clip, cm3leon, vq
from recipes.train.loop import train
from recipes.train.recipe import Log
from tests.recipes.kit import shortened
from tests.recipes.test_train import steps


@pytest.mark.slow
def test_it_builds_on_its_prerequisites_and_stands_alone(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vq.PRESETS, "tiny", shortened(vq.PRESETS["tiny"], budget=32, batch=16))
    monkeypatch.setitem(clip.PRESETS, "tiny", shortened(clip.PRESETS["tiny"], budget=32, batch=16))
    tiny = cm3leon.PRESETS["tiny"]
    mix = replace(tiny.model.mix, documents=(0.5, 0.0, 0.5))
    recipe = replace(
        tiny,
        model=replace(tiny.model, mix=mix, memory=50, samples=2),
        stages=tuple(shortened(stage, budget=64, batch=16) for stage in tiny.stages),
        data=str(scenes),
        device="cpu",
        log=Log(every=1, validate=16),
    )
    assert train(recipe, tmp_path / "cm3leon-tiny-s0", "tiny") == 0
    logged = steps(tmp_path / "cm3leon-tiny-s0")
    assert [line["stage"] for line in logged] == ["pretraining"] * 4 + ["tuning"] * 4
    assert all({"text", "image", "written", "drawn"} <= line["terms"].keys() for line in logged)

    parts = {}
    for role, name in (("image_tokenizer", "vq"), ("retriever", "clip")):
        parts[role] = models.load(next(tmp_path.glob(f"{name}-tiny*"))).state_dict()
        shutil.rmtree(next(tmp_path.glob(f"{name}-tiny*")))
    model = models.load(tmp_path / "cm3leon-tiny-s0")
    assert isinstance(model, CM3leon)
    for role, state in parts.items():
        mine = model.get_submodule(role).state_dict()
        assert all(torch.equal(mine[key], value) for key, value in state.items() if key in mine)
    assert int(model.memory.filled) == 50
    assert len(model.draw(["a red star", "two objects"], documents=2)) == 2
    cost = json.loads((tmp_path / "cm3leon-tiny-s0" / "cost.json").read_text())
    assert set(cost["prerequisites"]) == {"image_tokenizer", "retriever"}
    assert cost["samples_seen"] == 128
