"""`make plan-<page>`: what it says of memory and FLOPs is what a real step takes, and it needs neither data nor downloads nor a GPU."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from recipes.plan.__main__ import computes_bf16, main, plan, planned_for_gpu
from recipes.plan.stand_ins import stand_in, to_fake
from recipes.plan.trace import Memory, trace
from recipes.train.loop import flop_counter
from recipes.train.optimiser import optimiser
from recipes.train.pages import names, page
from recipes.train.progress import Progress
from recipes.train.recipe import Optim
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from tests.hub import disconnect
from tests.recipes.fake_cuda import prepared
from tests.recipes.fakes import install

BATCH = 32
MEASURED = ("coca", "vq")  # towers, a decoder over a large vocabulary, convolutions


def measured(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that a real step takes at most besides what is there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False))
        optimizer.step()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most


@pytest.mark.parametrize("name", MEASURED)
def test_memory_and_flops_are_those_of_a_real_step(name: str, scenes: Path, tmp_path: Path) -> None:
    model, recipe, batches = prepared(page(name).PRESETS["tiny"], str(scenes), tmp_path, batch=BATCH)
    stage, batch = enter(model, recipe, 0, Progress()), batches[0]
    set_training(model)
    fakes, other = FakeTensorMode(allow_non_fake_inputs=True), copy.deepcopy(model)
    to_fake(other, fakes)
    with fakes:
        rows = {key: torch.empty(value.shape, dtype=value.dtype) if value.dtype == torch.uint8 else value for key, value in batch.items()}
    planned = trace(other, stage.optim, rows, micro_batch=None, bf16=False, on_gpu=False)

    optimizer = optimiser(model, stage.optim, fused=False)
    with flop_counter() as flops:
        backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False))
        optimizer.step()
    optimizer.zero_grad()
    state = sum(moment.nbytes for moments in optimizer.state_dict()["state"].values() for moment in moments.values())
    before = planned.parameters + state + sum(value.nbytes for value in batch.values())
    assert planned.parameters == sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert planned.optimiser == state
    assert planned.gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert planned.peak - before == pytest.approx(measured(model, optimizer, batch), rel=0.3)
    assert flops.get_total_flops() <= planned.flops <= 1.2 * flops.get_total_flops()  # torch leaves out attention on a CPU


def test_memory_is_counted_by_storages_and_until_freed() -> None:
    with FakeTensorMode(), Memory() as memory:
        whole = torch.empty(1000)
        view = whole[:10]
        assert memory.live == 4000
        other = view * 2
        assert memory.live == 4040
        del whole
        assert memory.live == 4040  # the view keeps it
        del view
        assert (memory.live, memory.peak) == (40, 4040)
        del other
        assert memory.live == 0


def test_what_the_backward_pass_needs_is_counted() -> None:
    """Two layers over 100 rows: the first one's output is freed, as the ReLU keeps its own."""
    fakes = FakeTensorMode()
    with fakes:
        layers = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 1, bias=False))
        rows = torch.empty(100, 1000)
    with Memory() as memory:
        memory.hold([rows, *layers.parameters()])
        before = memory.live
        loss = layers(rows).sum()
        assert memory.live - before == 4 * (100_000 + 1)
        assert memory.peak - before == 4 * 200_000
        loss.backward()
        del loss
        assert memory.live - before == 4 * 1_001_000  # both gradients


def test_a_shape_that_depends_on_pixels_is_named() -> None:
    recipe = page("clip").PRESETS["tiny"]
    stand = stand_in(recipe, "tiny", None, cached=False, full=False, on_gpu=False)
    enter(stand.model, recipe, 0, Progress())
    real = stand.model.encode

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = real(batch)
        return {**features, "image": features["image"][features["image"].sum(dim=1) > 0]}

    stand.model.encode = encode
    with pytest.raises(ValueError, match="depends on values of weights or pixels"):
        trace(stand.model, Optim(lr=1.0), stand.batch(4), micro_batch=None, bf16=False, on_gpu=False)


@pytest.mark.slow
def test_micro_batches_ranks_and_bf16_save_what_they_should(tmp_path: Path) -> None:
    model = page("siglip").PRESETS["tiny"].model
    model = replace(model, vision=replace(model.vision, depth=1), text=replace(model.text, depth=1))
    recipe = replace(page("siglip").PRESETS["tiny"], model=model, data=str(tmp_path / "absent"))
    whole, quarter = plan(recipe, "tiny", (1, 4), on_gpu=True).stages
    small = plan(replace(recipe, micro_batch=recipe.batch // 8), "tiny", (1,), on_gpu=True).stages[0]
    assert quarter.step.activations == pytest.approx(whole.step.activations / 4, rel=0.2)
    assert small.step.activations < whole.step.activations / 3
    assert whole.step.flops < small.step.flops < 1.5 * whole.step.flops  # the forward pass twice
    full = plan(replace(recipe, precision="fp32"), "tiny", (1,), on_gpu=True).stages[0]
    assert 0.5 < whole.step.activations / full.step.activations < 0.95
    assert whole.step.sharded(4) == (whole.step.parameters + whole.step.gradients + whole.step.optimiser) / 4 + whole.step.activations


def test_frozen_modules_have_neither_gradients_nor_optimiser_state(tmp_path: Path) -> None:
    recipe = replace(page("lit").PRESETS["tiny"], data=str(tmp_path / "absent"))
    (planned,) = plan(recipe, "tiny", (1,), on_gpu=False).stages
    trained, total = planned.modules["visual"]
    assert trained == 0 < total
    rest = sum(trained for trained, _ in planned.modules.values())
    assert planned.step.gradients == 4 * rest
    text = recipe.model.text
    matrices = text.depth * 12 * text.width**2  # of its blocks: Muon keeps one moment of each, AdamW two of all else
    assert 8 * rest - 4 * matrices <= planned.step.optimiser <= 1.01 * (8 * rest - 4 * matrices)


@pytest.mark.parametrize(
    ("preset", "device", "gpu"),
    [("tiny", "auto", False), ("small", "auto", True), ("paper-112", "auto", True), ("paper", "cpu", False), ("tiny", "cuda:1", True)],
)
def test_a_plan_is_for_the_device_that_a_preset_is_made_for(preset: str, device: str, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert planned_for_gpu(preset, device) is gpu
    assert computes_bf16(page("clip").PRESETS["paper"], on_gpu=True)


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    main()
    return capsys.readouterr().out


def test_the_papers_clip_in_gpu_hours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """12.8 G pairs at 3 x 14.8 GFLOPs: a forward pass of ViT-B/32 and 77 tokens (open_clip's docs/model_profile.csv), thrice with the
    backward pass."""
    disconnect(monkeypatch)
    said = say(monkeypatch, capsys, "clip", "paper", "--ranks", "8", "--peak", "1000", "--share", "50")
    assert "151,277,313" in said
    assert "not probed at the paper's scale" in said
    hours = float(said.split("GPU-hours: ")[1].split(" ")[0].replace(",", ""))
    assert hours == pytest.approx(12.8e9 * 3 * 14.8e9 / 500e12 / 3600, rel=0.1)
    assert "at 50 % of 1000 TFLOP/s" in said


def test_probes_without_prerequisites_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scenes: Path, tmp_path: Path
) -> None:
    install(monkeypatch, str(scenes))
    said = say(monkeypatch, capsys, "bridge", "tiny", "--runs", str(tmp_path))
    assert "requires" in said
    assert "will be trained first" in said
    assert "minutes" in said
    assert "random weights in place of tower-tiny" in said
    assert not list(tmp_path.iterdir())
    assert "time:" not in say(monkeypatch, capsys, "bridge", "tiny", "--runs", str(tmp_path), "--no-probe")


@pytest.mark.parametrize("arguments", [("--ranks", "0"), ("--ranks", "two"), ("--share", "0"), ("--peak", "-1")])
def test_what_cannot_be_planned_is_said(arguments: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plan", "clip", "tiny", *arguments])
    with pytest.raises(SystemExit, match=f"error: (--)?{arguments[0].strip('-')}.*expected"):
        main()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"), [(name, preset) for name in names() for preset in page(name).PRESETS if preset in ("tiny", "small", "paper")]
)
def test_every_page_can_be_planned_without_the_hub(name: str, preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disconnect(monkeypatch)
    recipe = replace(page(name).PRESETS[preset], data=str(tmp_path / "absent"))
    found = plan(recipe, preset, (1,), on_gpu=preset != "tiny")
    assert len(found.stages) == len(recipe.schedule)
    assert all(each.step.peak > each.step.parameters > 0 for each in found.stages)
