"""What only a GPU can show. Skipped, visibly, where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from data.scenes.build import build
from models.shared.text import BPETokenizer
from recipes import clip, coca, siglip
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Log
from tests.recipes.kit import shortened

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
RECIPES = {"clip": clip.PRESETS, "siglip": siglip.PRESETS, "coca": coca.PRESETS}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes-test"
    build(folder, "tiny", samples={"train": 500, "val": 300})
    return folder


def short(recipe: AnyRecipe, scenes: Path) -> AnyRecipe:
    return shortened(recipe, data=str(scenes), budget=20 * 64, batch=64, device="cuda", workers=2, log=Log(every=5, validate=64))


@pytest.mark.parametrize("name", RECIPES)
def test_features_are_those_of_the_cpu(name: str) -> None:
    model_class = models.model_class(name)
    tokenizer = BPETokenizer.train(["a red star above a blue circle"], 300)
    torch.manual_seed(0)
    model = model_class(replace(RECIPES[name]["tiny"].model, vocab_size=tokenizer.vocab_size), tokenizer).eval()
    pictures = list(np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), np.uint8))
    texts = ["a red star", "a blue circle above a red star"]
    here = model.encode_image(pictures), model.encode_text(texts)
    model.cuda()
    there = model.encode_image(pictures).cpu(), model.encode_text(texts).cpu()
    for one, two in zip(here, there, strict=True):
        assert torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 24}, {"compile": True}, {"precision": "fp32"}], ids=str)
def test_training_runs_resumes_and_learns(name: str, options: dict[str, object], scenes: Path, tmp_path: Path) -> None:
    recipe = replace(short(RECIPES[name]["tiny"], scenes), **options)  # type: ignore[arg-type]
    assert train(recipe, tmp_path / "run") == 0
    steps = [line for line in map(json.loads, (tmp_path / "run" / "train.jsonl").read_text().splitlines()) if "event" not in line]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["memory_mb"] > 0
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["hardware"].startswith("1 x NVIDIA")
    assert models.load(tmp_path / "run", "cuda").encode_text(["a star"]).is_cuda


def test_the_small_preset_fits_and_steps(scenes: Path, tmp_path: Path) -> None:
    build(tmp_path / "scenes", "small", samples={"train": 256})
    recipe = replace(short(clip.PRESETS["small"], tmp_path / "scenes"), budget=2 * 256, batch=256)
    assert train(recipe, tmp_path / "run") == 0
