"""ASIF's published encoders by name, up to the wire: architecture, weights, and what is said where they are out of reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, MPNetConfig, MPNetModel

import models
from models.asif import ASIF, ASIFConfig
from models.shared.backbones import LanguageConfig
from models.shared.text import BPETokenizer, named_tokenizer
from models.shared.vision import VisionConfig
from recipes.asif import MPNET, PRESETS
from tests.hub import connect, disconnect

WORDS = BPETokenizer.train(["a red circle", "a photo of 3 large, blue stars."], 300)
TINY = MPNetConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
TEXTS = ["a red circle", "stars", "a photo of a circle of stars"]
CONFIG = ASIFConfig(
    vision=VisionConfig(width=192, depth=12, heads=3),
    timm_name="vit_tiny_patch16_224.augreg_in21k",
    language=LanguageConfig(source="someone/sentences"),
    sentences=True,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    asked = connect(monkeypatch, tmp_path, {"someone/sentences": TINY, "someone/others": TINY}, WORDS)

    def encoder_of(name: str, *, config: Any, use_safetensors: bool, trust_remote_code: bool) -> Any:
        assert use_safetensors
        assert trust_remote_code is False
        assert isinstance(config, MPNetConfig)
        asked.append(f"weights {name}")
        torch.manual_seed(0)
        return MPNetModel(TINY)

    monkeypatch.setattr(AutoModel, "from_pretrained", encoder_of)
    return asked


def test_encoders_are_fetched_once_and_the_run_folder_loads_without_the_hub(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ASIF(CONFIG, named_tokenizer("someone/sentences")).eval()
    assert not [each for each in asked if each.startswith("weights")]
    assert model.fetch() == {"visual": CONFIG.timm_name, "language": "someone/sentences"}
    assert len([each for each in asked if each.startswith("weights")]) == 2
    assert model.config.language.architecture
    images = [np.full((64, 48, 3), value, np.uint8) for value in (0, 90, 200)]
    model.add(images, TEXTS)
    models.save(model, tmp_path / "run")
    disconnect(monkeypatch)
    loaded: Any = models.load(tmp_path / "run")
    assert torch.allclose(loaded.compare(images, TEXTS), model.compare(images, TEXTS), atol=1e-6)


def test_a_sentence_is_the_mean_of_its_states(asked: list[str]) -> None:
    model = ASIF(CONFIG, named_tokenizer("someone/sentences")).eval()
    together = model._text_vectors(model.collate.texts(TEXTS))
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor([[model.tokenizer.start, *model.tokenizer.encode(text), model.tokenizer.end]])
        with torch.no_grad():
            mean = model.language(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_another_tokenizer_is_refused_and_distance_is_named(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ASIF(CONFIG, BPETokenizer.train(["what else?"], 280))
    with pytest.raises(ValueError, match=r"'someone/sentences' does not know the tokens of .* add --tokenizer someone/sentences"):
        model.fetch()
    disconnect(monkeypatch)
    with pytest.raises(ConnectionError, match=r"image tower 'vit_tiny_patch16_224\.augreg_in21k' is not in the cache"):
        model.fetch()
    with pytest.raises(ConnectionError, match=r"is not in the cache.*copy the folder here"):
        ASIF(replace(CONFIG, language=LanguageConfig(source="someone/far")), WORDS)


def test_small_and_paper_read_with_their_encoders_tokenizer() -> None:
    for preset in ("small", "paper"):
        recipe = PRESETS[preset]
        assert recipe.model.language.source == recipe.tokenizer == MPNET
        assert not recipe.prerequisites
        assert (recipe.model.k, recipe.model.p) == (800, 8.0)
    assert PRESETS["paper"].budget == 1_600_000
