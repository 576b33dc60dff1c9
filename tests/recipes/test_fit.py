"""A model that is not trained takes samples in, through the same entry: exactly its budget, resumed where it was killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from data.sample import Sample
from models.contract import Losses, Model
from models.shared.text import Tokenizer
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Log, Recipe
from recipes.train.watch import Watch
from tests.recipes.test_train import Killed, events, same_weights, steps


@dataclass(frozen=True)
class CollectorConfig:
    bins: int = 8
    vocab_size: int = 300


class Collector(Model):
    """Counts how bright pictures are; a projection that is never trained says what "bright" is."""

    paradigm = "training-free"
    Config = CollectorConfig

    def __init__(self, config: CollectorConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.eye = nn.Linear(3, 1).requires_grad_(False)
        self.register_buffer("counts", torch.zeros(config.bins))

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        return {"pixels": torch.from_numpy(np.stack([sample.image.mean(axis=(0, 1)) for sample in samples])).float() / 255}

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"bins": (self.eye(batch["pixels"]).sigmoid() * self.config.bins).long()[:, 0]}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        self.counts += torch.bincount(features["bins"], minlength=self.config.bins)
        return Losses.none(self.counts)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch, scenes: Path) -> AnyRecipe:
    recipe = Recipe(model=CollectorConfig(), budget=96, batch=8, data=str(scenes), device="cpu", vocab_size=300, log=Log(every=4))
    monkeypatch.setitem(sys.modules, "recipes.collector", SimpleNamespace(PRESETS={"tiny": recipe}))
    return recipe


def test_the_budget_is_taken_in_and_nothing_is_trained(collector: AnyRecipe, tmp_path: Path, capsys: Any) -> None:
    assert train(collector, tmp_path / "run", "tiny") == 0
    model: Any = models.load(tmp_path / "run")
    assert model.counts.sum() == 96
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["finished"]
    assert (cost["samples_seen"], cost["trainable_parameters"], cost["total_parameters"]) == (96, 0, 4)
    assert cost["train_flops"] == 96 * 2 * 3
    logged = steps(tmp_path / "run")
    assert [line["samples"] for line in logged] == [32, 64, 96]
    assert all(line["samples_per_s"] > 0 and not {"loss", "terms", "lr"} & set(line) for line in logged)
    assert "learning rate" not in events(tmp_path / "run", "stage")[0]["message"]
    capsys.readouterr()
    assert train(collector, tmp_path / "run", "tiny") == 0
    assert "is trained" in capsys.readouterr().err


def test_killed_and_resumed_equals_uninterrupted(collector: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(collector, tmp_path / "whole", "tiny")

    def due(self: Watch) -> bool:
        if self.progress.step == 8:
            raise Killed
        return self.progress.step == 5

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        with pytest.raises(Killed):
            train(collector, tmp_path / "run", "tiny")
    assert train(collector, tmp_path / "run", "tiny") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_stopped_by_a_signal_it_is_not_finished(collector: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "due_to_save", lambda self: self.progress.step == 3 and os.kill(os.getpid(), signal.SIGTERM) is None)
    assert train(collector, tmp_path / "run", "tiny") == 128 + signal.SIGTERM
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert (cost["finished"], cost["samples_seen"]) == (False, 24)


def test_micro_batches_take_in_the_same(collector: AnyRecipe, tmp_path: Path) -> None:
    train(collector, tmp_path / "whole", "tiny")
    train(replace(collector, micro_batch=3), tmp_path / "parts", "tiny")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_another_seed_takes_in_other_samples(collector: AnyRecipe, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(replace(collector, seed=seed, budget=16), tmp_path / str(seed), "tiny")
    assert not same_weights(tmp_path / "0", tmp_path / "1")
