"""A run folder with a broken file is refused in a sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import models
from data.files import FileError
from models.clip import CLIP, CLIPConfig
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig

VISION = VisionConfig(width=16, depth=1, heads=2, image_size=32, patch_size=16)
TEXT = TransformerConfig(width=16, depth=1, heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = BPETokenizer.train(["a red star", "a blue square"], 300)
    config = CLIPConfig(vision=VISION, text=TEXT, embed_dim=8, vocab_size=tokenizer.vocab_size)
    models.save(CLIP(config, tokenizer), tmp_path)
    return tmp_path


def edited(**fields: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


def configured(**fields: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps((whole := json.loads(content)) | {"config": whole["config"] | fields}).encode()


@pytest.mark.parametrize("name", ["model.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("change", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: b"\x80\x05", lambda c: b"[]", lambda c: b"{}"])
def test_a_torn_or_foreign_file(name: str, change: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileError, match=rf"^{path}\b.*\. Remove the run folder, and train it again$"):
        models.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        edited(model="nosuch"),
        edited(model=3),
        edited(config=None),
        edited(config={}),
        configured(embed_dim="8"),
        configured(embed_dim=-8),
        configured(embed_dim=10**13),
        configured(embed_dim=1 << 20),  # 67 MB of weights, in a file of a few kB
        configured(context=0),
        configured(unknown=1),
        configured(vision=None),
        configured(vision={"width": 16}),
    ],
)
def test_a_description_of_no_model(change: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / "model.json"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.json"):
        models.load(folder)


@pytest.mark.parametrize("hub", [False, True])
def test_a_tokenizer_at_which_the_library_gives_up(hub: bool, folder: Path) -> None:
    """It ends in a panic, which is no Exception."""
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["model"]["continuing_subword_prefix"] = "#####"
    path.write_text(json.dumps({"tokenizer": "x", "special": {}, "fast": fast} if hub else fast))
    with pytest.raises(FileError, match=rf"^{path} holds no tokenizer .* gave up on it.*Remove the run folder, and train it again$"):
        models.load(folder)


def test_weights_of_another_model(folder: Path) -> None:
    from models.shared.tensors import write_tensors

    write_tensors(folder / "model.safetensors", {"other": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"model\.safetensors does not (fit|match)"):
        models.load(folder)
