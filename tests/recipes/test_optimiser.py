"""AdamW, and Muon beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.cm3leon.decoder import DecoderConfig, TokenDecoder
from recipes import clip, flava
from recipes.claims.claim import with_optim
from recipes.train.folder import as_json, differences
from recipes.train.loop import train
from recipes.train.optimiser import ChainedOptimizer, Muon, optimiser, orthogonal, repeated_matrices
from recipes.train.recipe import AnyRecipe, Optim
from tests.recipes.test_train import killed_and_resumed, same_weights, steps


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 12)
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(12, 30), "down": nn.Linear(30, 12)}) for _ in range(2)])
        self.head = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 5))


def test_without_muon_there_is_adamw_alone() -> None:
    assert type(optimiser(Tower(), Optim(lr=0.1))) is torch.optim.AdamW


def test_muon_gets_the_matrices_of_blocks_and_adamw_everything_else() -> None:
    tower = Tower()
    found = optimiser(tower, Optim(lr=0.1, muon=True, weight_decay=0.3))
    assert isinstance(found, ChainedOptimizer)
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    inner = {f"layers.{n}.{part}.weight" for n in range(2) for part in ("up", "down")}
    biases = {name for name in names.values() if name.endswith("bias")}
    groups = [({names[id(p)] for p in group["params"]}, group["weight_decay"]) for group in found.param_groups]
    assert groups == [({"words.weight", "head.0.weight", "head.1.weight"}, 0.3), (biases, 0.0), (inner, 0.3)]


def test_gains_of_heads_are_no_matrices_though_they_look_like_some() -> None:
    decoder = TokenDecoder(DecoderConfig(width=16, depth=2, heads=2, hidden=32, chameleon=True), 20)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    found = {names[id(matrix)] for matrix in repeated_matrices(decoder)}
    assert found == {f"blocks.{n}.{part}.weight" for n in range(2) for part in ("attn.qkv", "attn.proj", "mlp.gate", "mlp.up", "mlp.down")}


def test_muon_without_anything_to_do_says_so() -> None:
    with pytest.raises(ValueError, match=r"optim\.muon: no module has repeated blocks"):
        optimiser(nn.Linear(3, 3), Optim(lr=0.1, muon=True))


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_a_direction_keeps_singular_vectors_and_levels_singular_values(
    shape: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.train.optimiser.multiplies_bf16", lambda _: bf16)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, 12, generator=generator))[0] for side in shape)
    matrix = left @ torch.diag(torch.logspace(-1, 1, 12)) @ right.T  # singular values from .1 to 10
    found, other = orthogonal(torch.stack([matrix, torch.randn(shape, generator=generator)]))
    assert found.dtype == other.dtype == (torch.bfloat16 if bf16 else torch.float32)
    sizes = torch.linalg.svdvals(found.float())
    assert 0.6 < sizes.min() < sizes.max() < 1.3
    assert (left.T @ found.float() @ right).diag().min() > 0.6


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_steps_equal_those_of_torchs_muon(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.train.optimiser.multiplies_bf16", lambda _: True)
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(2, *shape, generator=generator)
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimisers = (
        Muon(ours, lr=0.01, weight_decay=0.3),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
    )
    for rate in (0.01, 0.02, 0.005):
        gradients = torch.randn(2, *shape, generator=generator) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
        for matrices, its in zip((ours, theirs), optimisers, strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            its.param_groups[0]["lr"] = rate
            its.step()
    for own, their, start in zip(ours, theirs, starts, strict=True):
        moved = (their - start).abs().max()
        assert (own - their).abs().max() < 0.02 * moved  # the same formula, rounded to bf16 in another order


@pytest.mark.parametrize("presets", [clip.PRESETS, flava.PRESETS], ids=["one stage", "several"])
def test_a_run_from_before_muon_goes_on_without_it(presets: dict[str, AnyRecipe]) -> None:
    now = as_json(with_optim(muon=False)(presets["tiny"]), "page", "tiny")
    then = copy.deepcopy(now)
    for described in then.get("stages", [then]):
        del described["optim"]["muon"]
    assert differences(then, now) == {}
    for described in now.get("stages", [now]):
        described["optim"]["muon"] = True
    assert list(differences(then, now)) == ["stages" if "stages" in now else "optim"]


def test_a_run_with_muon_learns_and_resumes_to_the_bit(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(recipe, optim=replace(recipe.optim, muon=True))
    train(recipe, tmp_path / "whole")
    train(replace(recipe, optim=replace(recipe.optim, muon=False)), tmp_path / "adamw")
    killed_and_resumed(recipe, tmp_path / "killed", monkeypatch)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert not same_weights(tmp_path / "whole", tmp_path / "adamw")
    losses = [line["loss"] for line in steps(tmp_path / "whole")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("muon", [False, True])
def test_the_device_can_decide_that_a_step_is_skipped(muon: bool) -> None:
    """As on a GPU, where the host does not look at the gradients: a skipped step changes neither weights nor moments."""
    torch.manual_seed(0)
    plain = Tower()
    asked = copy.deepcopy(plain)
    optimizers = [optimiser(tower, Optim(lr=0.1, muon=muon), fused=True) for tower in (plain, asked)]
    for step, bad in enumerate((False, True, True, False)):
        for tower, optimizer in zip((plain, asked), optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for parameter in tower.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                if bad:
                    parameter.grad[0] = float("nan")
            if tower is asked:
                optimizer.found_inf = torch.tensor(float(bad))  # type: ignore[attr-defined]
            if tower is asked or not bad:
                optimizer.step()
    for one, two in zip(plain.parameters(), asked.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=0)
    one, two = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(torch.allclose(one[key][name], two[key][name], rtol=1e-6) for key in one for name in one[key])
