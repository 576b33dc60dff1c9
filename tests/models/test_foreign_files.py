"""Weights and towers that others wrote: a damaged, foreign or impossible file is refused in a sentence that names it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.clip import CLIPConfig
from models.published import published
from models.shared.backbones import LanguageConfig, language_model
from models.shared.towers import build_tower, fetch_named_tower, known_tower
from models.vq.objective import Perceptual

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
LLAMA = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


class Touch:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def tower(folder: Path) -> Path:
    transformers.ViTModel(transformers.ViTConfig(**SIZES)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def timms(folder: Path) -> Path:
    theirs = timm.create_model("test_vit", num_classes=0, img_size=32)
    timm.models.save_for_hf(theirs, str(folder), model_args={"img_size": 32}, safe_serialization=True)
    return folder


def use(name: str) -> None:
    """As training does: look it up, then load its weights."""
    tiny = CLIPConfig.tiny()
    known = known_tower(replace(tiny, vision=replace(tiny.vision, tower=name)))
    fetch_named_tower(build_tower(known.vision.tower), known.vision)


def edited(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "of something else": lambda content: b"<html>404</html>",
    "a header that claims too much": lambda content: b"\xff" * 8 + content[8:],
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("make", [tower, timms])
def test_a_towers_damaged_weights(damage: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a tower") / "model.safetensors"
    use(str(path.parent))
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    with pytest.raises((ValueError, OSError), match="a tower"):
        use(str(path.parent))


@pytest.mark.parametrize("make", [tower, timms])
def test_a_towers_weights_of_another_shape(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a tower") / "model.safetensors"
    save_file({name: tensor.new_zeros(3, 7) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"image tower '.*a tower'"):
        use(str(path.parent))


@pytest.mark.parametrize("make", [tower, timms])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_under_any_name_is_not_unpickled(name: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "a tower")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(str(tmp_path / "executed"))))
    with pytest.raises((ValueError, OSError), match="a tower"):
        use(str(folder))
    torch.save({"a": Touch(str(tmp_path / "executed"))}, folder / name)
    with pytest.raises((ValueError, OSError), match="a tower"):
        use(str(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": -16},
        {"hidden_size": 17},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"image_size": 0},
        {"image_size": 10**6},
        {"image_size": "large"},
        {"patch_size": 0},
        {"hidden_act": "nosuch"},
        {"model_type": "nosuch"},
        {"model_type": "llama"},
        {"model_type": ["vit"]},
        {"num_hidden_layers": 1.5},
    ],
)
def test_a_towers_configuration_that_cannot_be(fields: dict[str, Any], tmp_path: Path) -> None:
    folder = tower(tmp_path / "a tower")
    edited(folder / "config.json", **fields)
    with pytest.raises((ValueError, OSError), match="a tower"):
        use(str(folder))


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "nosuch"},
        {"architecture": ["test_vit"]},
        {"model_args": {"img_size": 0}},
        {"model_args": {"img_size": 10**6}},
        {"model_args": {"embed_dim": -64}},
        {"model_args": {"nosuch": 1}},
        {"model_args": ["img_size"]},
        {"model_args": {}, "pretrained_cfg": {"input_size": [3]}},
        {"model_args": {}, "pretrained_cfg": {"input_size": "large"}},
        {"pretrained_cfg": [1]},
    ],
)
def test_timms_configuration_that_cannot_be(fields: dict[str, Any], tmp_path: Path) -> None:
    folder = timms(tmp_path / "a tower")
    edited(folder / "config.json", **fields)
    with pytest.raises(ValueError, match="a tower"):
        use(str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_towers_torn_description(name: str, content: bytes, tmp_path: Path) -> None:
    folder = tower(tmp_path / "a tower")
    (folder / name).write_bytes(content)
    if (name, content) == ("preprocessor_config.json", b"{}"):  # that of the model's kind
        use(str(folder))
        return
    with pytest.raises((ValueError, OSError), match="a tower"):
        use(str(folder))


def test_an_image_processor_with_code_of_its_own_still_says_how_pixels_are_normalised(tmp_path: Path) -> None:
    folder = tower(tmp_path / "a tower")
    about = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "image_processor_type": "Theirs",
        "auto_map": {"AutoImageProcessor": "theirs.Theirs"},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    tiny = CLIPConfig.tiny()
    known = known_tower(replace(tiny, vision=replace(tiny.vision, tower=str(folder))))
    assert (known.mean, known.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("damage", DAMAGED)
def test_published_weights_that_are_damaged(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "my weights.safetensors"
    path.write_bytes(DAMAGED[damage](b"\x10" + bytes(7) + b'{"a":0}         '))
    with pytest.raises(ValueError, match=r"my weights\.safetensors"):
        published(f"open_clip:ViT-B-32/{path}")


def test_published_weights_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "my weights.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"my weights\.safetensors"):
        published(f"open_clip:ViT-B-32/{path}")


@pytest.mark.parametrize("damage", DAMAGED)
def test_perceptual_weights_that_are_damaged(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "vgg of mine.safetensors"
    save_file({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"vgg of mine\.safetensors"):
        _ = Perceptual(str(path)).features
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"vgg of mine\.safetensors"):
        _ = Perceptual(str(path)).features


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_language_models_damaged_weights(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder)
    path = folder / "model.safetensors"
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    with pytest.raises((ValueError, OSError), match=r"language model '.*a model'"):
        language_model(LanguageConfig(source=str(folder)), weights=True)


@pytest.mark.parametrize("beside", [True, False])
def test_low_rank_updates_beside_a_language_model_are_refused(beside: bool, tmp_path: Path) -> None:
    """Of peft, which transformers adds to the model in silence; and peft's file may name a model elsewhere."""
    folder = tmp_path / "a model"
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    base.save_pretrained(tmp_path / "base")
    if beside:
        base.save_pretrained(folder)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    edited(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(
        (ValueError, OSError), match=r"a model' comes with low-rank updates" if beside else r"Unrecognized model in .*a model"
    ):
        language_model(LanguageConfig(source=str(folder)), weights=True)


def test_a_pickle_of_low_rank_updates_is_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    base.save_pretrained(folder)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Touch(str(tmp_path / "executed"))}, folder / "adapter_model.bin")
    with pytest.raises((ValueError, OSError), match="a model"):
        language_model(LanguageConfig(source=str(folder)), weights=True)
    assert not (tmp_path / "executed").exists()
