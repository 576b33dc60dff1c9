"""A model that does not fit is refused before its memory is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import models
import recipes.train.stages
from models.clip import CLIP, CLIPConfig
from models.shared.room import free_memory, room_for_parameters
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes.train.stages import constructed

CONFIG = CLIPConfig(
    vision=VisionConfig(width=16, depth=1, heads=2, image_size=32, patch_size=16),
    text=TransformerConfig(width=16, depth=1, heads=2),
    embed_dim=8,
    vocab_size=300,
)


def test_parameters_are_counted_once_and_those_without_memory_not_at_all() -> None:
    with room_for_parameters(4 * 110):
        one, again = nn.Linear(10, 10), nn.Module()
        again.weight = one.weight
        nn.Linear(1000, 1000, device="meta")
    with room_for_parameters(4 * 109), pytest.raises(MemoryError, match=r"more than 0\.0 GB"):
        nn.Linear(10, 10)
    nn.Linear(1000, 1000)  # outside of the block


def test_there_is_memory() -> None:
    assert 1e8 < free_memory() < 1e14


def test_a_training_without_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes.train.stages, "free_memory", lambda: 5e4)
    with pytest.raises(ValueError, match=r"no clip can be built with these values of --model\.\*: its parameters take more than 0\.0 GB"):
        constructed(CLIP, CONFIG, BPETokenizer.train(["a red star"], 300))


def test_a_description_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    models.save(CLIP(CONFIG, BPETokenizer.train(["a red star"], 300)), tmp_path)
    path = tmp_path / "model.json"
    described: dict[str, Any] = json.loads(path.read_text())
    described["config"]["text"] |= {"depth": 1000, "width": 2048}
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.json does not describe .*there is not more room"):
        models.load(tmp_path)
