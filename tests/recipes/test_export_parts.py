"""Exports of models with several parts: checked by the other library, and what comes back from a folder is the model again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from transformers import Blip2ForConditionalGeneration

import models
from models.blip2 import BLIP2, BLIP2Config
from models.coca import CoCa, CoCaConfig
from models.flava import FLAVA, FLAVAConfig
from models.published import published
from models.shared.backbones import LanguageConfig
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig
from recipes.tools.export import export
from tests.models.kit import assert_close
from tests.recipes.test_export import WORDS, saved

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2}
TOWER = VisionConfig(**SIZES, image_size=32, patch_size=16)
TEXT = TransformerConfig(**SIZES)
PICTURES = [np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(2)]
TEXTS = ["a small red star", "a dog"]


def flava(**changes: Any) -> FLAVA:
    network = NetworkConfig(image_size=32, patch=8, width=32, multiplier=(1,), blocks=1)
    codebook = VQConfig(network=network, quantiser="fsq", levels=(4, 4))
    config = FLAVAConfig(
        vision=TOWER,
        text=TEXT,
        fusion=TEXT,
        codebook=codebook,
        embed_dim=24,
        context=12,
        vocab_size=WORDS.vocab_size,
        answers=("yes", "no"),
    )
    return FLAVA(replace(config, **changes), WORDS)


def blip2(**changes: Any) -> BLIP2:
    language = LanguageConfig(width=32, depth=1, heads=2, hidden=64, context=96)
    config = BLIP2Config(
        vision=TOWER, qformer=TEXT, queries=3, embed_dim=16, language=language, context=32, vocab_size=WORDS.vocab_size, start=True
    )
    return BLIP2(replace(config, **changes), WORDS)


def coca(**changes: Any) -> CoCa:
    vision = replace(TOWER, pre_norm=True)
    config = CoCaConfig(vision, TEXT, multimodal_depth=2, queries=5, pooler_heads=2, embed_dim=32, context=10, vocab_size=WORDS.vocab_size)
    return CoCa(replace(config, **changes), WORDS)


def vq(**changes: Any) -> VQ:
    network = NetworkConfig(image_size=32, width=32, multiplier=(1, 2), blocks=1, latent=32)
    return VQ(replace(VQConfig(network=network, quantiser="ema", codes=48, embed_dim=16), **changes), None)


def test_flava_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(flava(), tmp_path / "run")
    checks = export(run, "transformers", tmp_path / "out")
    assert [check.what for check in checks] == ["image features", "text features", "matching scores"]
    assert "no place for the image tokenizer and the head over answers: left out" in capsys.readouterr().out
    ours: Any = models.load(run)
    again: Any = published(f"hf:{tmp_path / 'out'}")
    assert_close(again.encode_image(PICTURES), ours.encode_image(PICTURES), "image features")
    assert_close(again.score(PICTURES, TEXTS), ours.score(PICTURES, TEXTS), "matching")
    assert again.mask_id == ours.mask_id


def test_blip2_there_and_back(tmp_path: Path) -> None:
    run = saved(blip2(), tmp_path / "run")
    checks = export(run, "transformers", tmp_path / "out")
    assert [check.what for check in checks] == ["logits of a caption", "matching scores", "similarities"]
    ours: Any = models.load(run)
    writes, compares = (published(f"hf:{tmp_path / place}") for place in ("out", "out/retrieval"))
    assert writes.caption(PICTURES) == ours.caption(PICTURES)  # type: ignore[attr-defined]
    assert_close(compares.score(PICTURES, TEXTS), ours.score(PICTURES, TEXTS), "matching")  # type: ignore[attr-defined]
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out", trust_remote_code=False).eval()
    pixels = ours.transform(PICTURES)
    ids = torch.tensor([[0, 0, 0, WORDS.start]] * 2)  # padding's id marks the image
    found = theirs.generate(
        pixel_values=models.blip2.model.normalise(pixels, ours.config.mean, ours.config.std),  # type: ignore[attr-defined]
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32, suppress_tokens=[WORDS.pad, WORDS.start],
    )  # fmt: skip
    assert [WORDS.decode(row) for row in found.tolist()] == ours.caption(PICTURES)


@pytest.mark.parametrize("pooling", ["single", "cascade", "parallel"])
@pytest.mark.parametrize("released", [True, False], ids=["as released", "as the paper"])
def test_coca_in_open_clip(tmp_path: Path, pooling: Any, released: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(coca(pooling=pooling, second_mlp=released, shifted_mask=released), tmp_path / "run")
    checks = export(run, "open_clip", tmp_path / "out")
    assert [check.what for check in checks] == ["image features", "text features", "logits of captions"]
    assert ("correct_cls_mask = True" in capsys.readouterr().out) is not released
    assert isinstance(open_clip.create_model(f"local-dir:{tmp_path / 'out'}"), open_clip.CoCa)
    again: Any = models.load(f"open_clip:{tmp_path / 'out'}")
    ours: Any = models.load(run)
    assert_close(again.encode_image(PICTURES), ours.encode_image(PICTURES), "image features")
    if released:  # else open_clip's own mask of padding is one place off
        assert_close(again.encode_text(TEXTS), ours.encode_text(TEXTS), "text features")
        assert again.caption(PICTURES) == ours.caption(PICTURES)


def test_an_image_tokenizer_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved(vq(), tmp_path / "run")
    checks = export(run, "transformers", tmp_path / "out")
    assert [check.what for check in checks] == ["latents over their largest", "codes"]
    assert "the decoder is left out" in capsys.readouterr().out
    again: Any = published(f"hf:{tmp_path / 'out'}")
    ours: Any = models.load(run)
    assert torch.equal(again.tokens(PICTURES), ours.tokens(PICTURES))
    assert again.paint is None
    models.save(again, tmp_path / "again")
    assert models.load(tmp_path / "again").reconstruct is None  # type: ignore[attr-defined]


def test_what_they_cannot_hold_is_said(tmp_path: Path) -> None:
    for number, (model, name, message) in enumerate(
        (
            (flava(vision=replace(TOWER, stem="conv")), "transformers", "begins with convolutions"),
            (flava(vision=replace(TOWER, pool="avg")), "transformers", "a class token and no norm"),
            (blip2(vision=replace(TOWER, stem="conv")), "transformers", "begins with convolutions"),
            (blip2(timm_name="test_vit"), "transformers", "timm's test_vit"),
            (coca(vision=replace(TOWER, pool="none", pre_norm=True)), "open_clip", "--model.vision.pool token"),
            (coca(embed_dim=16), "open_clip", "as wide as its text layers"),
            (VQ(VQConfig.tiny(), None), "transformers", "has a codebook"),
        )
    ):
        with pytest.raises(ValueError, match=f"cannot be written for {name}: .*{message}"):
            export(saved(model, tmp_path / str(number)), name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
