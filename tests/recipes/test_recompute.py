"""`--recompute`: the same losses and gradients to the bit, in less memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.shared.recompute import recompute, repeated_blocks
from recipes.plan.__main__ import plan
from recipes.train.pages import names, page
from recipes.train.progress import Progress
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from tests.recipes.fake_cuda import prepared, small

TRAINED = [
    name for name in names() if "tiny" in page(name).PRESETS and any(stage.optim.lr for stage in page(name).PRESETS["tiny"].schedule)
]
UNLIKE = {"clip", "flava", "coca", "simvlm", "blip2", "cm3leon", "flamingo", "vq"}  # one of each kind of blocks


@pytest.mark.parametrize("name", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED])
def test_losses_and_gradients_are_the_same(name: str, few: Path, tmp_path: Path) -> None:
    model, recipe, batches = prepared(small(name), str(few), tmp_path, batch=4)
    enter(model, recipe, len(recipe.schedule) - 1, Progress())
    set_training(model)
    for module in model.modules():  # most tiny presets have none
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    other = copy.deepcopy(model)
    blocks = recompute(other)
    assert list(other.state_dict()) == list(model.state_dict())
    assert bool(blocks) == (name != "vq")  # convolutions alone
    found = [
        backward(each, batches[-1], micro_batch=micro, autocast=torch.autocast("cpu", enabled=False), seed=3)
        for each, micro in ((model, None), (other, None))
    ]
    assert torch.equal(found[0].total, found[1].total)
    gradients = dict(other.named_parameters())
    for place, parameter in model.named_parameters():
        theirs = gradients[place].grad
        assert (parameter.grad is None) == (theirs is None), place
        assert parameter.grad is None or torch.equal(parameter.grad, theirs), place


def test_a_copy_has_weights_of_its_own() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert recompute(model) == ["0", "1"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0][0].weight.zero_()
        other[0][0].bias.zero_()
    x = torch.ones(1, 2)
    assert not other[0](x).any()
    assert isinstance(model[0], nn.Sequential)


def test_heads_and_convolutions_are_no_blocks() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Sequential(nn.Sequential(nn.Linear(2, 2)))})])
            self.head = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
            self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1)))

    assert list(repeated_blocks(Model())) == ["blocks.0"]


@pytest.mark.slow
def test_the_plan_shows_what_it_saves() -> None:
    recipe = page("clip").PRESETS["small"]
    recipe = replace(
        recipe, model=replace(recipe.model, vision=replace(recipe.model.vision, depth=4), text=replace(recipe.model.text, depth=4))
    )
    (kept,) = plan(recipe, "small", [1], on_gpu=True).stages
    (again,) = plan(replace(recipe, recompute=True), "small", [1], on_gpu=True).stages
    assert again.step.activations < kept.step.activations / 2
    assert kept.step.flops < again.step.flops < 1.4 * kept.step.flops
    assert again.step.parameters == kept.step.parameters
