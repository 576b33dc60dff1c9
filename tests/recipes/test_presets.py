"""What the tiny preset leaves out: larger presets, bf16, compilation."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import models
from data.shards import find
from data.texts import texts
from models.shared.text import BPETokenizer
from recipes.gpu.short import ARCHITECTURES
from recipes.train.loop import train
from recipes.train.pages import names, preset
from recipes.train.recipe import AnyRecipe, Log
from tests.hub import connect
from tests.recipes.kit import shortened
from tests.recipes.test_train import steps


def presets(name: str) -> dict[str, AnyRecipe]:
    return importlib.import_module(f"recipes.{name}").PRESETS


TRAINED = [name for name in names() if models.model_of(presets(name)["tiny"].model).paradigm != "training-free"]


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("nowhere", r"no page recipes/nowhere\.py; available: .*clip"),
        ("../clip", "no page"),
        ("clip.PRESETS", "no page"),
        ("", "no page"),
        ("train", "no page"),  # an engine
        ("paradigms", r"declares no PRESETS"),  # claims only
        ("lit", "has no preset 'huge', only tiny, small, paper, real"),
    ],
)
def test_what_cannot_be_trained_is_said(page: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        preset(page, "huge")


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in TRAINED for size in presets(name)])
def test_schedules_warm_up_and_end_at_zero(name: str, size: str) -> None:
    for stage in presets(name)[size].schedule:
        optim = stage.optim
        assert 0 < optim.lr_at(0, stage.budget) < optim.lr_at(optim.warmup // 2, stage.budget) < optim.lr
        assert optim.lr_at(optim.warmup, stage.budget) == pytest.approx(optim.lr)
        assert optim.lr_at(stage.budget, stage.budget) == pytest.approx(0, abs=1e-9)


def test_what_is_not_trained_has_no_learning_rate() -> None:
    free = [name for name in names() if name not in TRAINED]
    assert {"asif", "magic"} <= set(free)
    assert all(stage.optim.lr == 0 for name in free for recipe in presets(name).values() for stage in recipe.schedule)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in TRAINED if "small" in presets(name)])
def test_small_takes_a_step_in_micro_batches(name: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones of the hub have their shapes and random weights here."""
    small = presets(name)["small"]
    connect(monkeypatch, tmp_path, ARCHITECTURES, BPETokenizer.train(texts(find(str(scenes), "train"), limit=200), 300))
    short: dict[str, Any] = (
        {"stages": tuple(shortened(stage, batch=16, budget=16) for stage in small.stages)}
        if small.stages
        else {"batch": 16, "budget": 16, "optim": replace(small.optim, warmup=0)}
    )
    if small.tokenizer in {needed.role for needed in small.prerequisites}:
        short["tokenizer"] = "train"
    once = replace(small, **short, prerequisites=(), data=str(scenes), micro_batch=8, workers=0, device="cpu", log=Log(every=1, validate=0))
    assert train(once, tmp_path / "run") == 0
    logged = steps(tmp_path / "run")
    assert len(logged) == len(small.schedule)
    assert all(0 < step["grad_norm"] < float("inf") for step in logged)
    assert all(parameter.isfinite().all() for parameter in models.load(tmp_path / "run").parameters())


def test_bf16_learns_about_as_fp32_does(recipe: AnyRecipe, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(shortened(recipe, precision=precision, batch=8, budget=48), tmp_path / precision)  # slow where bf16 is emulated
    full, half = ([line["loss"] for line in steps(tmp_path / precision)] for precision in ("fp32", "bf16"))
    assert half == pytest.approx(full, rel=0.05)
    assert half != full


@pytest.mark.slow
def test_compiled_computes_the_same(recipe: AnyRecipe, tmp_path: Path) -> None:
    for name, compiled in (("eager", False), ("compiled", True)):
        train(replace(recipe, compile=compiled), tmp_path / name)
    eager, compiled_ = ([line["loss"] for line in steps(tmp_path / name)] for name in ("eager", "compiled"))
    assert compiled_ == pytest.approx(eager, rel=1e-3)
