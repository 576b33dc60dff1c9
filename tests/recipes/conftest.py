"""A small embedded data set, and recipes that train on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.scenes.build import build
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes import clip, siglip
from recipes.train.recipe import AnyRecipe, Log

VISION = VisionConfig(width=32, depth=1, heads=2, activation="relu", image_size=32, patch_size=16, stem="conv", pool="avg")
TEXT = TransformerConfig(width=32, depth=1, heads=2, activation="relu")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes-test"
    build(folder, "tiny", workers=1, samples={"train": 200, "val": 40})
    return folder


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models that read every sample before they train."""
    folder = tmp_path_factory.mktemp("data") / "scenes-few"
    build(folder, "tiny", workers=1, samples={"train": 60, "val": 20})
    return folder


@pytest.fixture(scope="session")
def recipe(scenes: Path) -> AnyRecipe:
    """CLIP, 12 steps of 16, in fp32."""
    model = replace(clip.PRESETS["tiny"].model, vision=VISION, text=TEXT, embed_dim=16)
    return replace(
        clip.PRESETS["tiny"],
        model=model,
        data=str(scenes),
        budget=12 * 16,
        batch=16,
        precision="fp32",
        device="cpu",
        log=Log(every=1, validate=0),
        optim=replace(clip.PRESETS["tiny"].optim, warmup=32),
    )


@pytest.fixture(scope="session")
def siglip_recipe(recipe: AnyRecipe) -> AnyRecipe:
    model = replace(siglip.PRESETS["tiny"].model, vision=replace(VISION, pool="map"), text=TEXT)
    return replace(recipe, model=model)
