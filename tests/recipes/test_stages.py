"""What a training builds on is trained once and taken over; stages follow one another, and a resumed run goes through the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import models
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Optim, Prerequisite
from recipes.train.stages import prerequisites
from recipes.train.watch import Watch
from tests.recipes.fakes import Bridge, install
from tests.recipes.test_train import Killed, events, same_weights, steps


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch, scenes: Path) -> AnyRecipe:
    return install(monkeypatch, str(scenes))


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, with the one it builds on beside it."""
    folder = tmp_path_factory.mktemp("runs") / "bridge"
    with pytest.MonkeyPatch.context() as patch:
        assert train(install(patch, str(scenes)), folder, "tiny") == 0
    return folder


def test_what_a_model_builds_on_is_trained_first_and_once(bridge: AnyRecipe, tmp_path: Path, capsys: Any) -> None:
    train(bridge, tmp_path / "one", "tiny")
    said = capsys.readouterr().err
    assert f"requires {tmp_path / 'tower-tiny-s0'} as tower: will be trained first (96 samples)" in said
    stamp = (tmp_path / "tower-tiny-s0" / "model.safetensors").stat().st_mtime_ns
    train(bridge, tmp_path / "two", "tiny")
    assert "already trained" in capsys.readouterr().err
    assert (tmp_path / "tower-tiny-s0" / "model.safetensors").stat().st_mtime_ns == stamp
    assert same_weights(tmp_path / "one", tmp_path / "two")
    train(replace(bridge, seed=1), tmp_path / "elsewhere" / "three", "tiny", shared=tmp_path)
    assert (tmp_path / "tower-tiny-s1" / "model.safetensors").exists()


def test_what_was_taken_over_and_frozen_is_part_of_the_model_and_unchanged(whole: Path, bridge: AnyRecipe, tmp_path: Path) -> None:
    before, after = load_file(whole.parent / "tower-tiny-s0" / "model.safetensors"), load_file(whole / "model.safetensors")
    body = [name for name in before if name.startswith("body.")]
    assert {"body.0.weight", "body.1.running_mean", "body.1.num_batches_tracked"} <= set(body)
    assert all(torch.equal(before[name], after[f"tower.{name}"]) for name in body)
    assert not torch.equal(before["out.weight"], after["tower.out.weight"])  # the second stage trained it
    alone = shutil.copytree(whole, tmp_path / "alone")
    model: Any = models.load(alone)
    assert torch.equal(model.tower.body[0].weight, before["body.0.weight"])
    assert model.tokenizer.vocab_size == models.load(whole.parent / "tower-tiny-s0").tokenizer.vocab_size  # type: ignore[union-attr]


def test_every_stage_has_its_schedule_its_samples_and_its_modules(whole: Path) -> None:
    logged = steps(whole)
    assert [line["stage"] for line in logged] == ["align"] * 4 + ["tune"] * 8
    assert [line["samples"] for line in logged] == [16, 32, 48, 64, *range(72, 136, 8)]
    assert logged[0]["lr"] == pytest.approx(1e-2)
    assert logged[4]["lr"] == pytest.approx(1e-3 / 32)  # warms up anew
    first, second = (event["message"] for event in events(whole, "stage"))
    assert first.startswith("stage 1 of 2, align: 64 samples in batches of 16, learning rate 0.01")
    tower, head = first.splitlines()[1:]
    assert tower.split()[:2] == ["tower", "tower"]
    assert str(whole.parent / "tower-tiny-s0") in tower
    assert "frozen" in tower
    assert head.split() == ["head", "from", "scratch", "trained", "9"]
    assert "9 trained, the rest frozen" in second


def test_costs_of_stages_add_up_and_those_of_prerequisites_are_said(whole: Path) -> None:
    cost, tower = (json.loads((folder / "cost.json").read_text()) for folder in (whole, whole.parent / "tower-tiny-s0"))
    assert cost["finished"]
    assert cost["samples_seen"] == 128
    assert cost["trainable_parameters"] == 9 + 9  # head, and the tower's own output in the second stage
    assert cost["prerequisites"]["tower"] == {"run": "tower-tiny-s0"} | {
        name: tower[name] for name in ("samples_seen", "train_seconds", "train_flops")
    }
    # Multiply-adds of a sample, twice: body 3 x 8 (frozen, on inputs: forward only), two heads of 8 with one or two passes back.
    forward, head = 2 * (3 * 8 + 8 + 8), 2 * 8
    assert cost["train_flops"] == 64 * (forward + head) + 64 * (forward + 2 * head)


@pytest.mark.parametrize(("saved", "died"), [(2, 6), (6, 9)])
def test_killed_in_any_stage_and_resumed_equals_uninterrupted(
    saved: int, died: int, whole: Path, bridge: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last save may be in the stage before the one that died: what is between is done again."""

    def due(self: Watch) -> bool:
        if self.stage.name != "train" and self.progress.step == died:
            raise Killed
        return self.progress.step == saved

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        with pytest.raises(Killed):
            train(bridge, tmp_path / "bridge", "tiny")
    shutil.rmtree(tmp_path / "tower-tiny-s0")  # it has been taken over: not needed any more
    assert train(bridge, tmp_path / "bridge", "tiny") == 0
    assert not (tmp_path / "tower-tiny-s0").exists()
    assert same_weights(whole, tmp_path / "bridge")
    assert [line["loss"] for line in steps(tmp_path / "bridge")] == [line["loss"] for line in steps(whole)]
    costs = [json.loads((folder / "cost.json").read_text()) for folder in (whole, tmp_path / "bridge")]
    same = ("samples_seen", "train_flops", "trainable_parameters")
    assert [costs[0][name] for name in same] == [costs[1][name] for name in same]


def test_a_model_is_given_its_prerequisites_once(bridge: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    real = Bridge.adopt
    monkeypatch.setattr(Bridge, "adopt", lambda self, modules: given.append(list(modules)) or real(self, modules))
    monkeypatch.setattr(Watch, "due_to_save", lambda self: self.stage.name == "align" and os.kill(os.getpid(), signal.SIGTERM) is None)
    assert train(bridge, tmp_path / "bridge", "tiny") == 128 + signal.SIGTERM
    assert train(bridge, tmp_path / "bridge", "tiny") == 128 + signal.SIGTERM
    assert given == [["tower"]]


def test_stopped_in_a_prerequisite_the_next_call_goes_on_there(
    whole: Path, bridge: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def due(self: Watch) -> bool:
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        assert train(bridge, tmp_path / "bridge", "tiny") == 128 + signal.SIGTERM
    assert not (tmp_path / "bridge" / "model.safetensors").exists()
    assert len(steps(tmp_path / "tower-tiny-s0")) == 3
    capsys.readouterr()
    assert train(bridge, tmp_path / "bridge", "tiny") == 0
    assert "interrupted, will be resumed first" in capsys.readouterr().err
    assert same_weights(whole, tmp_path / "bridge")


def test_a_prerequisite_trained_otherwise_is_refused(
    bridge: AnyRecipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(sys.modules["recipes.tower"].PRESETS["tiny"], optim=Optim(lr=2e-2))
    monkeypatch.setitem(sys.modules["recipes.tower"].PRESETS, "tiny", other)
    with pytest.raises(ValueError, match=r"tower-tiny-s0 was trained with another recipe \(optim"):
        train(bridge, tmp_path / "bridge", "tiny", shared=whole.parent)


def test_other_data_has_other_prerequisites(bridge: AnyRecipe, scenes: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(scenes, tmp_path / "mine")
    train(replace(bridge, data=str(moved)), tmp_path / "runs" / "bridge", "tiny")
    assert (tmp_path / "runs" / "tower-tiny-mine-s0" / "model.safetensors").exists()


def test_recipes_that_contradict_themselves_are_refused(bridge: AnyRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this recipe has stages \(align, tune\), each with its own optim"):
        replace(bridge, budget=1000)
    with pytest.raises(ValueError, match="batch of stage 'tune' is 0, expected 1 or more samples"):
        replace(bridge.stages[1], batch=0)
    unknown = replace(bridge, prerequisites=(Prerequisite("tower", "tower", "huge"),))
    with pytest.raises(ValueError, match=r"recipes/tower.py has no preset 'huge', only tiny"):
        train(unknown, tmp_path / "bridge", "tiny")


def test_data_that_extend_others_share_their_prerequisites(bridge: AnyRecipe, scenes: Path, tmp_path: Path) -> None:
    extended = shutil.copytree(scenes, tmp_path / "extended")
    own = tuple(replace(each, data=((str(extended), str(scenes)),)) for each in bridge.prerequisites)
    for data, expected in ((extended, scenes), (scenes, scenes), (tmp_path / "third", tmp_path / "third")):
        (needed,) = prerequisites(replace(bridge, data=str(data), prerequisites=own), "tiny", tmp_path)
        assert needed.recipe.data == str(expected)
        (usual,) = prerequisites(replace(bridge, data=str(expected)), "tiny", tmp_path)
        assert needed.folder == usual.folder
