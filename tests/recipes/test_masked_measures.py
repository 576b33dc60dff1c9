"""The measures of masked models, by models whose answers are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.scenes.build import build
from data.shards import find
from data.texts import texts
from models.shared.masking import TokenMasking
from models.shared.text import BPETokenizer
from recipes.claims.measures import masked
from recipes.claims.measures.masked import filled_in, pictures, words_found
from recipes.train.recipe import AnyRecipe


class Knows:
    """Hides the left half of a picture and fills it in with `level`, or with the truth if a text helps that is the picture's own."""

    def __init__(self, tokenizer: BPETokenizer, data: str) -> None:
        self.tokenizer, self.config = tokenizer, SimpleNamespace(context=64)
        self.collate = SimpleNamespace(masking=TokenMasking(0.3), mask=tokenizer.vocab_size)
        self.captions = {sample.image.tobytes(): sample.captions[0] for sample in pictures(data)}

    def unmask(self, images: Sequence[np.ndarray], told: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for image, text in zip(images, told, strict=True):
            masked = image.copy()
            masked[:, :32] = image[:, :32] ^ 128
            right = text == self.captions[image.tobytes()]
            found.append((masked, image if right else masked))
        return found

    def words(self, images: Sequence[np.ndarray], masked_ids: torch.Tensor) -> torch.Tensor:
        """The words of the picture's caption, whatever was asked; nothing for a picture that is not known."""
        logits = torch.zeros(*masked_ids.shape, self.tokenizer.vocab_size)
        for row, image in enumerate(images):
            ids = [1, *self.tokenizer.encode(self.captions.get(image.tobytes(), ""))][: masked_ids.shape[1]]
            logits[row, range(len(ids)), ids] = 1
        return logits


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes-test"
    build(folder, "tiny", workers=1, samples={"train": 100, "test": 60})
    return folder


@pytest.fixture
def asked(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    model = Knows(BPETokenizer.train(texts(find(str(scenes), "train"), limit=1000), 500), str(scenes))
    monkeypatch.setattr(masked.models, "load", lambda folder, device: model)
    return SimpleNamespace(data=str(scenes), device="cpu")


def mean(measure: Any, asked: AnyRecipe) -> float:
    return float(np.mean(list(measure.function(Path("run"), asked).values())))


def test_words_are_found_with_the_right_picture_only(asked: Any) -> None:
    assert mean(words_found("own"), asked) == 1
    assert mean(words_found("another"), asked) < 0.6
    assert mean(words_found("blank"), asked) < 0.1
    assert len(words_found("own").function(Path("run"), asked)) == len(pictures(asked.data))  # type: ignore[arg-type]


def test_errors_are_those_of_hidden_pixels(asked: Any) -> None:
    samples = pictures(asked.data)
    assert mean(filled_in("everywhere", "own caption"), asked) == 0
    assert mean(filled_in("everywhere", "no text"), asked) == pytest.approx(128 / 255)  # every bit but one is right
    assert mean(filled_in("objects", "another caption"), asked) == pytest.approx(128 / 255)
    fills = []
    for sample in samples:
        truth = sample.image / 255
        fills.append(np.abs(truth[:, :32] - np.median(truth[:, 32:].reshape(-1, 3), axis=0)).mean())
    assert mean(filled_in("everywhere", "visible median"), asked) == pytest.approx(np.mean(fills))
    inside = filled_in("objects", "visible median").function(Path("run"), asked)
    expected = {sample.key for sample in samples if any(int(thing.box[0]) < 32 for thing in sample.objects)}
    assert set(inside) == expected  # type: ignore[arg-type]
    assert float(np.mean(list(inside.values()))) > np.mean(fills)  # type: ignore[union-attr]


def test_the_command_writes_what_it_prints(asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"data": asked.data}))
    monkeypatch.setattr(sys, "argv", ["masked_measures", str(tmp_path), "--device", "cpu"])
    masked.main()
    found = json.loads((tmp_path / "masked.json").read_text())["measures"]
    assert len(found) == 3 + 8
    assert found["hidden words found, own picture, test"] == 1
    printed = capsys.readouterr().out
    assert all(f"{value:.3f}" in printed for value in found.values())
