"""Helpers of the training tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

NARROW = {"width": 32, "depth": 2, "decoder_depth": 1, "multimodal_depth": 1, "heads": 2, "hidden": 48, "embed_dim": 32, "queries": 4}

ALIKE = {"lit", "clip_rocket", "slip", "cloob", "align", "llip", "declip", "clipcap", "mapl", "minigptv2", "vcgpt", "virtex"}  # as parents


def alike_are_slow(pages: Iterable[str]) -> list[Any]:
    """Pages as parameters of a test; those that take the path of their parents are slow."""
    return [pytest.param(page, marks=pytest.mark.slow) if page in ALIKE else page for page in pages]


def narrow(config: Any) -> Any:
    """A model's configuration with few and narrow layers, where a test does not depend on them: prerequisites still fit together."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = narrow(value)
        elif value and field.name in NARROW:
            changes[field.name] = min(value, NARROW[field.name])
    return replace(config, **changes)


def shortened(training: Any, **fields: Any) -> Any:
    """A recipe or a stage with other fields, such as a small budget, and without a warm-up, which would not fit into it."""
    return replace(training, optim=replace(training.optim, warmup=0), **fields)
