"""`models.published`, up to the wire: downloads are replaced by random checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file

import models
from data.sample import Sample
from models import published as module
from models.published import published
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD
from models.shared.text import OpenCLIPTokenizer
from tests.models.kit import assert_close, randomise, tokenizer
from tests.models.test_align import theirs_at_random

CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 1, "width": 64, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 1, "width": 32, "heads": 2},
}
PICTURES = [np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(2)]
TEXTS = ["a red circle", "Two blue SQUARES!"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of the small CFG in the place of ViT-B-32's, whatever is downloaded."""
    path = tmp_path / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: CFG if name == "ViT-B-32" else None)
    monkeypatch.setattr(module, "download_pretrained", lambda cfg: str(path))
    return path


@pytest.mark.parametrize("tag", ["laion2b_s34b_b79k", "openai"])
def test_open_clip(checkpoint: Path, tag: str, tmp_path: Path) -> None:
    theirs = _save_open_clip(checkpoint, quick=tag == "openai")  # the tag, not the name, says which GELU it was trained with
    ours: Any = published(f"open_clip:ViT-B-32/{tag}")
    _assert_same(ours, theirs)
    assert not ours.training
    models.save(ours, tmp_path / "run")  # a run folder like any other
    loaded: Any = models.load(tmp_path / "run")
    assert_close(loaded.encode_image(PICTURES), ours.encode_image(PICTURES), "image features")


def test_open_clip_weights_in_a_file(checkpoint: Path) -> None:
    theirs = _save_open_clip(checkpoint, quick=False)
    _assert_same(published(f"open_clip:ViT-B-32/{checkpoint}"), theirs)


@pytest.mark.parametrize("hub", [False, True])
def test_a_folder_in_open_clips_layout(tmp_path: Path, hub: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pixels that its configuration tells; of the hub up to the wire."""
    theirs = _save_open_clip(tmp_path / "open_clip_model.safetensors", quick=True)
    content = {"model_cfg": CFG | {"quick_gelu": True}, "preprocess_cfg": {"mean": HALF, "std": HALF}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "cached_file", lambda place, file: str(tmp_path / file) if place == "some/clip" else pytest.fail(place))
    _assert_same(published("open_clip:hf-hub:some/clip" if hub else f"open_clip:{tmp_path}"), theirs, mean=HALF, std=HALF)


def test_a_folder_that_is_named_without_its_layout(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CFG, "preprocess_cfg": {}}))
    with pytest.raises(FileNotFoundError, match=f"published weights are named open_clip:{tmp_path}"):
        models.load(tmp_path)
    with pytest.raises(ValueError, match=r"has no open_clip_model.safetensors: expected a folder in open_clip's layout"):
        published(f"open_clip:{tmp_path}")


def test_pixels_are_normalised_as_in_training(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _save_open_clip(checkpoint, quick=False)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"mean": HALF, "std": HALF})
    _assert_same(published("open_clip:ViT-B-32/inception"), theirs, mean=HALF, std=HALF)


def test_pickles_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download_pretrained", lambda cfg: "/cache/open_clip_pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ValueError, match="pickle"):
        published("open_clip:ViT-B-32/laion2b_s34b_b79k")


def test_transformers_clip(tmp_path: Path) -> None:
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    text = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
    randomise(theirs, 0)
    theirs.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    ours: Any = published(f"hf:{tmp_path}")
    assert_close(ours.encode_image(PICTURES), _normalised(theirs.get_image_features(_pixels(OPENAI_MEAN, OPENAI_STD))), "image features")
    ids = open_clip.tokenize(TEXTS)
    assert_close(ours.encode_text(TEXTS), _normalised(theirs.get_text_features(ids)), "text features")


def test_transformers_siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    text = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 8, "vocab_size": 100}
    theirs = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)).eval()
    randomise(theirs, 0)
    theirs.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    monkeypatch.setattr("models.siglip.convert.HubTokenizer", lambda name: tokenizer(pad=1, end=1))
    ours: Any = published(f"hf:{tmp_path}")
    assert_close(ours.encode_image(PICTURES), _normalised(theirs.get_image_features(_pixels(HALF, HALF))), "image features")
    transformers.SiglipImageProcessor(image_mean=OPENAI_MEAN, image_std=OPENAI_STD).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="normalised"):
        published(f"hf:{tmp_path}")


def test_transformers_align(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its converter lies beside CLIP's. Statistics of BatchNorm come with the weights, and starting from them leaves them as they are."""
    theirs = theirs_at_random(32)
    theirs.save_pretrained(tmp_path)
    transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}, image_mean=HALF, image_std=HALF).save_pretrained(tmp_path)
    monkeypatch.setattr("models.clip.align_convert.HubTokenizer", lambda name: tokenizer(pad=0, end=99))
    ours: Any = published(f"hf:{tmp_path}")
    expected = _normalised(theirs.get_image_features(_pixels(HALF, HALF)))
    assert_close(ours.encode_image(PICTURES), expected, "image features")
    ours.remember([[Sample("a", picture, captions=["a"]) for picture in PICTURES]])
    assert_close(ours.encode_image(PICTURES), expected, "image features")


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(module, "download_pretrained", unreachable)
    monkeypatch.setattr(module, "cached_file", unreachable)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    for spec in ("open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:google/siglip-base-patch16-224", "open_clip:hf-hub:laion/some"):
        with pytest.raises(ConnectionError, match=r"cannot be downloaded \(no route to host\)"):
            published(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-32", "expected open_clip:MODEL/TAG, open_clip:FOLDER, or hf:NAME"),
        ("open_clip:ViT-B-32", "expected open_clip:MODEL/TAG"),
        ("hf:", "expected"),
        ("open_clip:ViT-Z/openai", "no model 'ViT-Z'"),
        ("open_clip:ViT-B-32/nonsense", "no weights 'nonsense'.*laion2b_s34b_b79k"),
        ("open_clip:RN50/openai", "ResNet"),
        ("open_clip:EVA01-g-14/laion400m_s11b_b41k", "not CLIP's own towers"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        published(spec)


def test_other_transformers_models_are_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert'"):
        published(f"hf:{tmp_path}")


def _save_open_clip(path: Path, *, quick: bool) -> open_clip.CLIP:
    model = open_clip.CLIP(**CFG, quick_gelu=quick, output_dict=True).eval()
    randomise(model, 0)
    save_file(model.state_dict(), path)
    return model


def _assert_same(ours: Any, theirs: open_clip.CLIP, *, mean: Any = OPENAI_MEAN, std: Any = OPENAI_STD) -> None:
    assert isinstance(ours.tokenizer, OpenCLIPTokenizer)
    with torch.no_grad():
        assert_close(ours.encode_image(PICTURES), theirs.encode_image(_pixels(mean, std), normalize=True), "image features")
        assert_close(ours.encode_text(TEXTS), theirs.encode_text(open_clip.tokenize(TEXTS), normalize=True), "text features")


def _pixels(mean: Any, std: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(PICTURES)).permute(0, 3, 1, 2)
    normalised: torch.Tensor = open_clip.transform.Normalize(mean, std)(pixels.float() / 255)
    return normalised


def _normalised(output: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(output.pooler_output.detach(), dim=-1)
