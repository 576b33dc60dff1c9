"""Parameter counts of the papers' configurations, on the meta device."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import Any

import open_clip
import pytest
import torch

import models
from models.clip.convert import config_from_open_clip
from models.contract import Size
from models.siglip.convert import config_from_open_clip as siglip_from_open_clip
from recipes.tools import params
from recipes.tools.params import agrees, main, sizes

SIZES = list(sizes())
PUBLISHED = [size for size in SIZES if size.published]
DERIVED = [size for size in SIZES if size.derived]


def named(size: Size) -> str:
    return f"{models.model_of(size.config).name} {size.name}"


count = cache(params.count)


@pytest.mark.parametrize("size", [*PUBLISHED, *DERIVED], ids=named)
def test_count_is_the_published_or_the_derived_one(size: Size) -> None:
    ours = count(size)
    assert agrees(size, ours), f"{ours:,} instead of {size.published or size.derived:,}"
    assert size.rounded <= 0.01
    assert not (size.published and size.derived)


def test_what_another_library_builds_is_not_called_published() -> None:
    for size in PUBLISHED:
        assert not any(word in size.source for word in ("transformers", "timm", "built")), named(size)
    assert {models.model_of(size.config).name for size in DERIVED} >= {"flava", "cm3leon", "asif"}


def test_table_has_every_model_and_names_its_sources(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "count", count)
    assert main() == 0
    printed = capsys.readouterr().out
    assert "151,277,313" in printed
    assert {"clip", "siglip", "blip2"} <= {models.model_of(size.config).name for size in PUBLISHED}
    assert all(size.source for size in PUBLISHED)
    assert all(name in printed for name in models.all_models())


def test_some_models_are_counted_alone_and_what_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clip", "lm"]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    first = {row[0] for row in rows if row}
    assert {"clip", "lm"} < first
    assert not {"siglip", "cloob"} & first
    assert main(["clip", "klip"]) == 1
    assert "there is no model klip; there are" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14-quickgelu", "ViT-H-14"])
def test_open_clips_configurations_have_open_clips_counts(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**cfg)
    assert count(Size(name, config_from_open_clip(cfg))) == _count(theirs)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384"])
def test_siglip_configurations_have_open_clips_counts(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**{key: value for key, value in cfg.items() if key != "custom_text"})
    assert count(Size(name, siglip_from_open_clip(cfg))) == _count(theirs)


@pytest.mark.parametrize("config", [size.config for size in SIZES], ids=[named(size) for size in SIZES])
def test_configurations_survive_json(config: Any) -> None:
    assert models.from_dict(type(config), json.loads(json.dumps(asdict(config)))) == config


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
