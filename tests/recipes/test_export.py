"""Exports: what another library loads computes what ours does, and what it cannot hold is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import models
from models.clip import CLIP, CLIPConfig
from models.lm import LM, LMConfig
from models.shared.export import Format, pictures
from models.shared.lora import adapt
from models.shared.text import BPETokenizer
from models.shared.towers import known_tower
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.siglip import SigLIP, SigLIPConfig
from models.vq import VQ, VQConfig
from recipes.tools.export import able, card, export, formats, main
from recipes.train.pages import names, page
from tests.models.kit import randomise

WORDS = BPETokenizer.train(["a small red star", "two people walk along the beach, and a dog"], 300)
TEXT = TransformerConfig(width=48, depth=2, heads=3, activation="quick_gelu")
VISION = VisionConfig(width=32, depth=2, heads=2, image_size=32, patch_size=8, pre_norm=True, activation="quick_gelu")


def clip(**changes: Any) -> CLIP:
    config = CLIPConfig(vision=VISION, text=TEXT, embed_dim=24, context=12, vocab_size=WORDS.vocab_size)
    return CLIP(config.__class__(**{**vars(config), **changes}), WORDS)


def saved(model: models.Model, folder: Path) -> Path:
    randomise(model, 0)
    models.save(model, folder)
    (folder / "recipe.json").write_text(json.dumps({"page": "mine", "preset": "tiny", "seed": 3, "data": ".data/my-set"}))
    (folder / "cost.json").write_text(json.dumps({"samples_seen": 12_345, "train_flops": 10**12, "hardware": "1 x CPU", "finished": True}))
    cell = {"task": "zeroshot", "split": "test", "metric": "shape", "variant": "model", "value": 0.25, "low": 0.2, "high": 0.3}
    (folder / "eval" / "my-set").mkdir(parents=True)
    about = {"schema": 1, "model": "mine", "paradigm": "x", "preset": "tiny", "seed": 3, "dataset": "my-set", "trained_on": "my-set"}
    about |= {"data_hashes": {}, "cells": [cell, cell | {"variant": "blank images"}]}
    (folder / "eval" / "my-set" / "eval.json").write_text(json.dumps(about))
    return folder


def test_clip_in_transformers(tmp_path: Path) -> None:
    run = saved(clip(), tmp_path / "run")
    checks = export(run, "transformers", tmp_path / "out")
    assert [check.what for check in checks] == ["image features", "text features"]
    theirs, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=False).eval(),
        AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False),
    )
    tokens = tokenizer(["a small red star"], padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs.get_text_features(**tokens)
    found = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1)
    torch.testing.assert_close(found, models.load(run).encode_text(["a small red star"]), atol=1e-5, rtol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("# mine, tiny, seed 3", "`my-set`", "12,345", "1 x CPU", "| zeroshot | test | shape | 0.250 | 0.200 to 0.300 |"):
        assert part in card
    assert card.count("zeroshot") == 1  # not the controls


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"weights": "of another model"}, "evaluated with other weights than the run has now"),
        ({"unfinished": "3,200 samples"}, "made after 3,200 samples"),
        ({"limit": 20}, "made with --limit"),
        ({"schema": 9}, "schema 9, expected 1"),
        ({"cells": 5}, "not iterable"),
    ],
)
def test_a_model_card_has_the_numbers_of_this_model_alone(
    fields: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved(clip(), tmp_path / "run")
    path = run / "eval" / "my-set" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert "zeroshot" not in card(run, models.load(run), "transformers")
    said = capsys.readouterr().err
    assert f"{path}: not in the model card: " in said
    assert why in said


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    run = saved(clip(), tmp_path / "run")
    monkeypatch.setattr("recipes.tools.export.formats", lambda _: {"transformers": Format(full, lambda _: None)})
    with pytest.raises(OSError, match=r"out cannot be written: .*No space left on device .*Make room"):
        export(run, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clip_in_open_clip(tmp_path: Path) -> None:
    run = saved(clip(), tmp_path / "run")
    export(run, "open_clip", tmp_path / "out")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    ids = models.load(run).collate.texts(["a dog"])
    with torch.no_grad():
        found = theirs.encode_text(torch.nn.functional.pad(ids, (0, 12 - ids.shape[1])), normalize=True)
    torch.testing.assert_close(found, models.load(run).encode_text(["a dog"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", ["transformers", "open_clip"])
def test_clip_there_and_back_with_its_own_vocabulary(tmp_path: Path, format: str) -> None:
    run = saved(clip(), tmp_path / "run")
    export(run, format, tmp_path / "out")
    again: Any = models.load(f"{'hf' if format == 'transformers' else format}:{tmp_path / 'out'}")
    ours: Any = models.load(run)
    texts = ["A small red Star", "two people", "", "walk " * 40]
    torch.testing.assert_close(again.encode_text(texts), ours.encode_text(texts), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.encode_image(pictures(32)), ours.encode_image(pictures(32)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["token", "map", "avg"])
def test_a_tower_in_timm(tmp_path: Path, pool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    vision = VisionConfig(width=32, depth=2, heads=2, image_size=32, patch_size=8, activation="relu", pool=pool, norm_eps=1e-5)
    run = saved(clip(vision=vision), tmp_path / "run")
    export(run, "timm", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert theirs.num_features == 32
    assert "set the eps of its norms to 1e-05" in capsys.readouterr().out


def test_siglip_and_a_language_model_in_transformers(tmp_path: Path) -> None:
    text = TransformerConfig(width=32, depth=2, heads=2, activation="gelu_tanh", norm_eps=1e-6)
    vision = VisionConfig(width=32, depth=2, heads=2, image_size=32, patch_size=8, pool="map", activation="gelu_tanh", norm_eps=1e-6)
    config = SigLIPConfig(vision=vision, text=text, context=10, vocab_size=WORDS.vocab_size)
    assert len(export(saved(SigLIP(config, WORDS), tmp_path / "siglip"), "transformers", tmp_path / "out")) == 2
    again, ours = (models.load(source) for source in (f"hf:{tmp_path / 'out'}", tmp_path / "siglip"))
    torch.testing.assert_close(again.encode_text(["a red star"]), ours.encode_text(["a red star"]), atol=1e-5, rtol=1e-5)
    run = saved(LM(LMConfig.tiny().__class__(**{**vars(LMConfig.tiny()), "vocab_size": WORDS.vocab_size}), WORDS), tmp_path / "lm")
    export(run, "transformers", tmp_path / "language")
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "language", trust_remote_code=False),
        AutoTokenizer.from_pretrained(tmp_path / "language", trust_remote_code=False),
    )
    ids = tokenizer("a dog", return_tensors="pt").input_ids[:, :-1]  # without the end
    written = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert models.load(run).write(["a dog"], limit=6) == [tokenizer.decode(written, skip_special_tokens=True).strip()]


def test_encoders_in_onnx_also_with_convolutions(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    tiny = CLIPConfig.tiny()
    config = replace(tiny, vision=replace(tiny.vision, depth=1), text=replace(tiny.text, depth=1), vocab_size=WORDS.vocab_size)
    run = saved(CLIP(config, WORDS), tmp_path / "run")
    checks = export(run, "onnx", tmp_path / "out")
    assert [check.what for check in checks] == [f"{side} features of {count}" for side, count in
                                                (("image", 3), ("image", 1), ("text", 4), ("text", 1))]  # fmt: skip
    session = runtime.InferenceSession(str(tmp_path / "out" / "image.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": torch.zeros(5, 3, 64, 64, dtype=torch.uint8).numpy()})[0].shape == (5, 128)


def test_what_was_adapted_is_merged(tmp_path: Path) -> None:
    model = clip()
    adapt(model, rank=2)
    run = saved(model, tmp_path / "run")
    export(run, "transformers", tmp_path / "out")
    assert not [name for name in AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=False).state_dict() if "adapters" in name]


def test_what_a_format_cannot_hold_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CLIPConfig(**{**vars(CLIPConfig.tiny()), "vocab_size": WORDS.vocab_size})
    tiny = saved(CLIP(config, WORDS), tmp_path / "tiny")
    for name in ("transformers", "open_clip", "timm"):
        with pytest.raises(ValueError, match=rf"cannot be written for {name}: .*begins with convolutions.*\. FORMAT=onnx can hold it"):
            export(tiny, name, tmp_path / name)
        assert not (tmp_path / name).exists()
    vq = saved(VQ(VQConfig.tiny(), None), tmp_path / "vq")
    with pytest.raises(ValueError, match=r"cannot be written for open_clip: open_clip has no VQ. No other format can hold it"):
        export(vq, "open_clip", tmp_path / "out")
    with pytest.raises(ValueError, match=r"this VQ has no vision transformer of its own. No other"):
        export(vq, "timm", tmp_path / "out")
    with pytest.raises(ValueError, match="there is no format 'Tensorflow': expected transformers, open_clip, timm, onnx"):
        export(vq, "Tensorflow", tmp_path / "out")
    gelu = saved(clip(text=TransformerConfig(width=48, depth=2, heads=3, activation="relu")), tmp_path / "relu")
    with pytest.raises(ValueError, match=r"these have quick_gelu and relu. FORMAT=transformers or FORMAT=timm or FORMAT=onnx can hold it"):
        export(gelu, "open_clip", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="already there"):
        main(gelu, "transformers", tmp_path / "out")


def models_of_pages() -> list[str]:
    return sorted({models.model_of(page(name).PRESETS["tiny"].model).name for name in names()})


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["conv", "patch"])
@pytest.mark.parametrize("name", models_of_pages())
def test_what_is_offered_for_a_page_can_be_written(name: str, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other format is refused in words, before anything is written. ONNX is slow to write: its refusal alone is tried."""
    config = models.model_class(name).Config.tiny()
    if hasattr(config, "vision"):
        if config.vision.stem == stem == "conv":
            return  # every library refuses these: see above
        config = replace(config, vision=replace(config.vision, stem=stem, depth=2))
    elif stem == "patch":
        return
    config = replace(config, vocab_size=WORDS.vocab_size) if hasattr(config, "vocab_size") else config
    kind = models.model_class(name)
    model = kind(config, WORDS if kind.reads_text() else None).eval()
    offered = able(model)
    assert "timm" in offered or stem == "conv" or name in ("blip2", "minigpt4", "minigptv2", "llava", "qwenvl", "llip")
    for format in offered:
        if format != "onnx":
            assert all(check.largest <= check.limit for check in formats(model)[format].write(model, tmp_path / format))
    assert ("onnx" in offered) == hasattr(model, "_image_features")


@pytest.mark.parametrize("name", ["align", "llip", "virtex", "classifier", "lockedclip"])
def test_models_that_share_a_package_are_refused_in_words(name: str) -> None:
    """Of size tiny no library holds them, and onnx holds those with two encoders of pixels and tokens."""
    kind = models.model_class(name)
    config = kind.Config.tiny()
    config = replace(config, vocab_size=WORDS.vocab_size) if hasattr(config, "vocab_size") else config
    assert able(kind(config, WORDS if kind.reads_text() else None)) == (["onnx"] if name == "align" else [])


def test_a_page_that_is_not_trained_says_how(tmp_path: Path) -> None:
    for name, command in (("asif-tiny-s0", "train-asif"), ("clip_rocket-real-mine-s0", "train-clip_rocket"), ("my-idea", "train-<page>")):
        with pytest.raises(FileNotFoundError, match=f"{name} holds no model, it is not trained: `make {command}` trains it"):
            export(tmp_path / name, "timm", tmp_path / "out")
    run = saved(clip(), tmp_path / "clip-tiny-s0")
    (run / "model.safetensors").rename(run / "checkpoint.safetensors")
    with pytest.raises(FileNotFoundError, match=r"its training was interrupted: `make train-clip`"):
        export(run, "timm", tmp_path / "out")


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_tower_of_timm_goes_back_to_timm(tmp_path: Path, name: str) -> None:
    tower = timm.create_model(name, num_classes=0)
    timm.models.save_for_hf(tower, str(tmp_path / "hub"), safe_serialization=True)
    config = known_tower(replace(clip().config, vision=replace(VISION, tower=str(tmp_path / "hub"))))
    run = saved(CLIP(config, WORDS), tmp_path / "run")
    for format in ("transformers", "open_clip"):
        with pytest.raises(ValueError, match=rf"{format} has a tower of its own in this place, and this one is .*hub"):
            export(run, format, tmp_path / "out")
    export(run, "timm", tmp_path / "out")
    theirs, ours = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval(), models.load(run)
    pixels = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), ours.visual(pixels), atol=1e-5, rtol=1e-5)


def test_a_difference_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(clip(), tmp_path / "run")
    monkeypatch.setattr("models.clip.export.TEXTS", ("other", "texts"))
    monkeypatch.setattr(CLIP, "encode_text", lambda self, texts: torch.zeros(len(texts), 24))
    with pytest.raises(ValueError, match=r"text features differ by .* nothing was written"):
        export(run, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
