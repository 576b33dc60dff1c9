"""Two models of a few hundred weights that train in a second, and their recipes: one builds on the other, in two stages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.sample import Sample
from models.contract import Losses, Model
from models.shared.text import Tokenizer
from recipes.train.recipe import AnyRecipe, Log, Optim, Prerequisite, Recipe, Stage


def _batch(samples: Sequence[Sample], text: int) -> dict[str, Tensor]:
    """Mean colour `[B, 3]`, and the length of the text with that number `[B, 1]`."""
    pixels = torch.from_numpy(np.stack([sample.image.mean(axis=(0, 1)) for sample in samples])).float() / 255
    return {"pixels": pixels, "length": torch.tensor([[len(sample.captions[text % len(sample.captions)]) / 100] for sample in samples])}


def _regression(features: dict[str, Tensor]) -> Losses:
    error = (features["guess"] - features["length"]).square().mean()
    return Losses(error, {"error": error}, {})


@dataclass(frozen=True)
class TowerConfig:
    width: int = 8
    vocab_size: int = 300


class Tower(Model):
    """Guesses how long the first caption is. Its statistics and its dropout show whether it was really frozen."""

    paradigm = "prerequisite"
    Config = TowerConfig

    def __init__(self, config: TowerConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.body = nn.Sequential(nn.Linear(3, config.width), nn.BatchNorm1d(config.width), nn.ReLU(), nn.Dropout(0.5))
        self.out = nn.Linear(config.width, 1)

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        return _batch(samples, 0)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"guess": self.out(self.body(batch["pixels"])), "length": batch["length"]}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return _regression(features)


@dataclass(frozen=True)
class BridgeConfig:
    tower: TowerConfig = field(default_factory=TowerConfig)
    gain: float = 1.0
    vocab_size: int = 300


class Bridge(Model):
    """Guesses the length of another caption with a frozen Tower: first (align) by its own head, then (tune) by the tower's too."""

    paradigm = "contrastive"
    Config = BridgeConfig

    def __init__(self, config: BridgeConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.tower = Tower(config.tower, tokenizer)
        self.head = nn.Linear(config.tower.width, 1)
        self.text = 1
        self.adoptions = 0

    def adopt(self, modules: Mapping[str, Any]) -> None:
        self.tower.load_state_dict(modules["tower"].state_dict())
        self.tower.requires_grad_(False)
        self.adoptions += 1

    def enter_stage(self, name: str) -> None:
        self.text = {"align": 1, "tune": 2}[name]
        self.tower.out.requires_grad_(name == "tune")

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        return _batch(samples, self.text)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.tower.body(batch["pixels"])
        return {"guess": self.config.gain * (self.head(hidden) + self.tower.out(hidden)), "length": batch["length"]}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return _regression(features)


def install(patch: pytest.MonkeyPatch, data: str) -> AnyRecipe:
    """Make both models known, as `tower` and `bridge`, and return bridge's recipe: 4 + 8 steps of 16 after tower's 6."""
    where: dict[str, Any] = {"data": data, "device": "cpu", "precision": "fp32", "vocab_size": 300, "log": Log(every=1, validate=0)}
    tower = Recipe(model=TowerConfig(), optim=Optim(lr=1e-2), budget=96, batch=16, **where)
    bridge = Recipe(
        model=BridgeConfig(),
        stages=(Stage("align", Optim(lr=1e-2), budget=64, batch=16), Stage("tune", Optim(lr=1e-3, warmup=32), budget=64, batch=8)),
        prerequisites=(Prerequisite("tower", "tower"),),
        tokenizer="tower",
        **where,
    )
    for name, recipe in (("tower", tower), ("bridge", bridge)):
        patch.setitem(sys.modules, f"recipes.{name}", SimpleNamespace(PRESETS={"tiny": recipe}))
    return bridge
