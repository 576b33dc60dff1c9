"""A model asks for what it reads and for nothing else: pictures in class folders are enough for an image tower and an image tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import models
from data.importers.folder import import_folder
from data.shards import DataError, find
from recipes import classifier, clip, vq
from recipes.train.loop import train
from tests.data.kit import encode, picture, write_tar
from tests.recipes.test_contract import short

CLASSES = ("cat", "dog", "hen")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in three class folders, imported; no caption anywhere."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = root / "images" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), np.uint8)).save(path)
    import_folder(images=root / "images", out=root / "set", split="train")
    return root / "set"


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "train.jsonl").read_text().splitlines()) if "event" not in line]


def test_an_image_tower_learns_the_data_sets_own_classes_without_captions(folders: Path, tmp_path: Path) -> None:
    assert train(short(classifier.PRESETS["tiny"], str(folders)), tmp_path / "run") == 0
    model: Any = models.load(tmp_path / "run")
    assert model.config.classes == CLASSES
    assert model.tokenizer is None
    assert not (tmp_path / "run" / "tokenizer.json").exists()
    assert model.classify([np.zeros((64, 64, 3), np.uint8)]).shape == (1, 3)
    assert not any(line["drops"] for line in events(tmp_path / "run"))


def test_classes_that_the_recipe_names_win(folders: Path, tmp_path: Path) -> None:
    recipe = short(classifier.PRESETS["tiny"], str(folders))
    assert train(replace(recipe, model=replace(recipe.model, classes=("dog", "cat"))), tmp_path / "run") == 0
    assert models.load(tmp_path / "run").config.classes == ("dog", "cat")


def test_an_image_tokenizer_learns_from_bare_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "bare" / "00000.tar", [(f"{number}.png", encode(picture(number))) for number in range(12)])
    assert train(short(vq.PRESETS["tiny"], str(tmp_path / "bare")), tmp_path / "run") == 0
    assert models.load(tmp_path / "run").tokenizer is None


def test_a_model_of_texts_still_says_that_captions_are_missing(folders: Path, tmp_path: Path) -> None:
    assert find(str(folders), "train").classes == CLASSES
    with pytest.raises((DataError, ValueError), match="caption"):
        train(short(clip.PRESETS["tiny"], str(folders)), tmp_path / "run")
