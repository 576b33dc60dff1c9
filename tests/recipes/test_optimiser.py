"""AdamW, and Muon beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.optimiser import Both, optimiser
from recipes.recipe import AnyRecipe, Optim
from recipes.train import train
from tests.recipes.test_train import killed_and_resumed, same_weights, steps


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 12)
        self.blocks = nn.ModuleList([nn.Linear(12, 30), nn.Linear(30, 12)])
        self.head = nn.Linear(12, 5)


def test_without_muon_there_is_adamw_alone() -> None:
    assert type(optimiser(Tower(), Optim(lr=0.1))) is torch.optim.AdamW


def test_muon_gets_the_matrices_of_blocks_and_adamw_everything_else() -> None:
    tower = Tower()
    found = optimiser(tower, Optim(lr=0.1, muon=True, weight_decay=0.3))
    assert isinstance(found, Both)
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    groups = [({names[id(p)] for p in group["params"]}, group["weight_decay"]) for group in found.param_groups]
    assert groups == [
        ({"words.weight", "head.weight"}, 0.3),
        ({"blocks.0.bias", "blocks.1.bias", "head.bias"}, 0.0),
        ({"blocks.0.weight", "blocks.1.weight"}, 0.3),
    ]


def test_muons_step_moves_all_directions_alike_and_as_far_as_the_rate_says() -> None:
    torch.manual_seed(0)
    tower = Tower()
    weight = tower.blocks[0].weight
    before = weight.detach().clone()
    found = optimiser(tower, Optim(lr=9.0, muon=True, weight_decay=0.0))
    for group in found.param_groups:
        group["lr"] = 0.01  # as the loop sets it, step by step
    left, right = torch.linalg.qr(torch.randn(30, 12))[0], torch.linalg.qr(torch.randn(12, 12))[0]
    weight.grad = left @ torch.diag(torch.logspace(-1, 1, 12)) @ right  # singular values from .1 to 10
    found.step()
    moved = (before - weight.detach()) / (0.01 * 0.2 * 30**0.5)
    sizes = torch.linalg.svdvals(moved)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    assert (left.T @ moved @ right.T).diag().min() > 0.6  # along the gradient's own directions


def test_a_run_with_muon_learns_and_resumes_to_the_bit(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, muon=True))
    train(recipe, tmp_path / "whole")
    train(replace(recipe, optim=replace(recipe.optim, muon=False)), tmp_path / "adamw")
    killed_and_resumed(recipe, tmp_path / "killed", monkeypatch)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert not same_weights(tmp_path / "whole", tmp_path / "adamw")
    losses = [line["loss"] for line in steps(tmp_path / "whole")]
    assert losses[-1] < losses[0]
