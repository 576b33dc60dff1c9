"""Every model's step on fake CUDA tensors: nothing in it makes a GPU's host wait, and nothing is left on the CPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from models.shared import device
from models.siglip import SigLIP
from recipes.gpu.checks import _negatives_of_neighbours
from recipes.gpu.short import learns, pages
from recipes.train.progress import Progress
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from tests.recipes.fake_cuda import prepared, small, trace
from tests.recipes.kit import alike_are_slow

WAITS = (DataDependentOutputException, DynamicOutputShapeException)
STEPS = {"siglip", "vq"}  # Muon beside AdamW, and convolutions: optimisers see no more of a model than shapes
PAGES = [name for name in pages("tiny") if learns(name)]


@pytest.mark.parametrize("name", alike_are_slow(PAGES))
def test_every_stage_traces(name: str, few: Path, tmp_path: Path) -> None:
    model, recipe, batches = prepared(small(name), str(few), tmp_path, batch=4)
    for number, batch in enumerate(batches):
        trace(copy.deepcopy(model), recipe, number, batch, steps=name in STEPS)


@pytest.mark.parametrize("name", alike_are_slow(PAGES))
def test_what_does_not_count_changes_nothing(name: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host does not know what counts, padding and rows of other kinds are computed, too: losses and gradients stay."""
    model, recipe, batches = prepared(small(name), str(few), tmp_path, batch=8)
    for number, batch in enumerate(batches):
        enter(model, recipe, number, Progress())
        set_training(model)
        found, asked = [], []
        for knows in (True, False):
            if not knows and not asked:
                break  # nothing depends on it
            monkeypatch.setattr(device, "host_knows", lambda x, knows=knows, asked=asked: asked.append(x) or knows)
            model.zero_grad()
            with _negatives_of_neighbours():
                losses = backward(model, batch, micro_batch=None, autocast=nullcontext())
            values = {"total": losses.total.detach(), **losses.terms, **{f"chance of {key}": value for key, value in losses.chance.items()}}
            gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
            found.append(({key: float(value) for key, value in values.items()}, gradients))
        if not asked:
            continue
        (here, mine), (there, theirs) = found
        assert there == pytest.approx(here, rel=1e-5, abs=1e-6)
        largest = max(float(gradient.abs().max()) for gradient in mine.values())
        for key, gradient in mine.items():
            assert torch.allclose(theirs[key], gradient, rtol=1e-4, atol=1e-5 * largest), key


def item(features: dict[str, torch.Tensor]) -> None:
    features["image"].sum().item()


def mask(features: dict[str, torch.Tensor]) -> None:
    features["image"][features["image"][:, 0] > 0]


def elsewhere(features: dict[str, torch.Tensor]) -> None:
    features["image"] + torch.zeros(len(features["image"]), 1)


@pytest.mark.parametrize(("wrong", "error"), [(item, WAITS), (mask, WAITS), (elsewhere, RuntimeError)], ids=["item", "mask", "elsewhere"])
def test_what_waits_or_stays_behind_is_found(
    wrong: object, error: type[Exception] | tuple[type[Exception], ...], few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SigLIP.encode

    def encode(self: SigLIP, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = real(self, batch)
        wrong(features)  # type: ignore[operator]
        return features

    model, recipe, (batch,) = prepared(small("siglip"), str(few), tmp_path, batch=4)
    monkeypatch.setattr(SigLIP, "encode", encode)
    with pytest.raises(error):
        trace(model, recipe, 0, batch, steps=False)
