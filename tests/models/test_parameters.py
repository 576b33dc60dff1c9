"""Parameter counts of the papers' configurations, on the meta device."""

from __future__ import annotations

import json
from dataclasses import asdict

import open_clip
import pytest
import torch

import models
from models.clip.convert import config_from_open_clip
from models.siglip.convert import config_from_open_clip as siglip_from_open_clip
from recipes.tools.params import VARIANTS, Variant, main

PUBLISHED = [variant for variant in VARIANTS if variant.published]


@pytest.mark.parametrize("variant", PUBLISHED, ids=lambda variant: f"{variant.model} {variant.name}")
def test_count_is_the_published_one(variant: Variant) -> None:
    assert variant.agrees(), f"{variant.count():,} instead of {variant.published:,}"
    assert variant.rounded <= 0.01


def test_table_has_every_model_and_names_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    assert "151,277,313" in capsys.readouterr().out
    assert {variant.model for variant in PUBLISHED} >= (set(models.TABLE) & set(models.PARADIGMS)) - {"maskvlm"}  # no figure is known
    assert all(variant.source for variant in PUBLISHED)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14"])
def test_open_clips_configurations_have_open_clips_counts(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**cfg)
    assert Variant("clip", name, config_from_open_clip(cfg), None, "").count() == _count(theirs)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384"])
def test_siglip_configurations_have_open_clips_counts(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**{key: value for key, value in cfg.items() if key != "custom_text"})
    assert Variant("siglip", name, siglip_from_open_clip(cfg), None, "").count() == _count(theirs)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.model} {variant.name}")
def test_configurations_survive_json(variant: Variant) -> None:
    _, config_class = models.classes(variant.model)
    assert models.from_dict(config_class, json.loads(json.dumps(asdict(variant.config)))) == variant.config


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
