"""LiT through the training loop: the locked tower stays the donor's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from recipes import classifier, lit
from recipes.train.loop import train
from tests.recipes.test_contract import short


def test_the_locked_tower_is_the_donors_after_training_and_says_so(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the training loop; with pictures held in memory and streamed the tower is the same, and the samples are not written to."""
    monkeypatch.setattr(classifier, "PRESETS", {"tiny": short(classifier.PRESETS["tiny"], str(scenes))})
    recipe = short(lit.PRESETS["tiny"], str(scenes), batch=8, steps=3)
    for name, changes in (("memory", {}), ("streamed", {"memory_gb": 0.0})):
        assert train(replace(recipe, **changes), tmp_path / name, "tiny", page="lit") == 0  # type: ignore[arg-type]
        donor, model = models.load(tmp_path / "classifier-tiny-s0"), models.load(tmp_path / name)
        assert model.name == "clip"
        assert all(torch.equal(value, model.visual.state_dict()[key]) for key, value in donor.visual.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.visual.parameters())
    recipes = [json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("memory", "streamed")]
    assert {(each["page"], each["name"]) for each in recipes} == {("lit", "clip")}
    costs = [json.loads((tmp_path / name / "cost.json").read_text()) for name in ("memory", "streamed")]
    assert costs[0]["trainable_parameters"] == costs[1]["trainable_parameters"] < costs[0]["total_parameters"] / 2
    assert costs[0]["train_flops"] > 0


def test_published_weights_would_replace_the_locked_tower_and_are_refused(scenes: Path, tmp_path: Path) -> None:
    recipe = replace(lit.PRESETS["tiny"], data=str(scenes), weights="open_clip:ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(ValueError, match="replace the whole model, but this recipe builds on image_tower"):
        train(recipe, tmp_path / "run", "tiny", page="lit")
    assert not (tmp_path / "classifier-tiny-s0").exists()
