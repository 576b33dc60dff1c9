"""Every model's step on fake CUDA tensors: nothing in it makes a GPU's host wait, and nothing is left on the CPU.

A page that comes to wait fails, and so does one that no longer waits while `WAITING` still names it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from models.siglip import SigLIP
from recipes.gpu.short import learns, pages
from tests.recipes.fake_cuda import prepared, trace

WAITS = (DataDependentOutputException, DynamicOutputShapeException)
WAITING = {  # page -> where its first stage still makes the host wait
    "blip2": "the seed of the hard negatives",
    "classifier": "the chance value of the loss",
    "cm3leon": "the number of retrieved documents",
    "flava": "rows by kind of sample",
    "frozen": "the places of soft vectors",
    "lm": "the longest text of each pass",
    "maskvlm": "the seed of the hard negatives",
    "minigpt4": "the places of soft vectors",
    "vq": "whether quantising has begun",
}
PAGES = [
    pytest.param(name, marks=pytest.mark.xfail(raises=WAITS, strict=True, reason=WAITING[name])) if name in WAITING else name
    for name in pages("tiny")
    if learns(name)
]


@pytest.mark.parametrize("name", PAGES)
def test_every_stage_traces(name: str, few: Path, tmp_path: Path) -> None:
    model, recipe, batches = prepared(name, "tiny", str(few), tmp_path, batch=4)
    for number, batch in enumerate(batches):
        trace(copy.deepcopy(model), recipe, number, batch)


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

    model, recipe, (batch,) = prepared("siglip", "tiny", str(few), tmp_path, batch=4)
    monkeypatch.setattr(SigLIP, "encode", encode)
    with pytest.raises(error):
        trace(model, recipe, 0, batch)
