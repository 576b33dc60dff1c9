"""Every model's step on fake CUDA tensors: nothing in it makes a GPU's host wait, and nothing is left on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from models.siglip import SigLIP
from recipes.gpu.short import learns, pages
from tests.recipes.fake_cuda import prepared, trace

PAGES = [name for name in pages("tiny") if learns(name)]


@pytest.mark.parametrize("name", PAGES)
def test_every_stage_traces(name: str, scenes: Path, tmp_path: Path) -> None:
    model, recipe, batches = prepared(name, "tiny", str(scenes), tmp_path, batch=4)
    for number, batch in enumerate(batches):
        trace(copy.deepcopy(model), recipe, number, batch)


def item(features: dict[str, torch.Tensor]) -> None:
    features["image"].sum().item()


def mask(features: dict[str, torch.Tensor]) -> None:
    features["image"][features["image"][:, 0] > 0]


def elsewhere(features: dict[str, torch.Tensor]) -> None:
    features["image"] + torch.zeros(len(features["image"]), 1)


@pytest.mark.parametrize(
    ("wrong", "error"), [(item, DataDependentOutputException), (mask, DynamicOutputShapeException), (elsewhere, RuntimeError)], ids=str
)
def test_what_waits_or_stays_behind_is_found(
    wrong: object, error: type[Exception], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SigLIP.encode

    def encode(self: SigLIP, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = real(self, batch)
        wrong(features)  # type: ignore[operator]
        return features

    model, recipe, (batch,) = prepared("siglip", "tiny", str(scenes), tmp_path, batch=4)
    monkeypatch.setattr(SigLIP, "encode", encode)
    with pytest.raises(error):
        trace(model, recipe, 0, batch)
