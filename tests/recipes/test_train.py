"""The loop, through its real entry: it learns, logs, resumes to the bit, and stops when it should."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import models
from data.loader import in_order
from data.shards import DataError, find
from recipes import siglip
from recipes.train.__main__ import main
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Log, Optim
from tests.data.kit import make_split
from tests.processes import command, start
from tests.recipes.kit import shortened


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if "event" not in line]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if line.get("event") == kind]


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_everything_that_is_needed_to_use_and_judge_it(recipe: AnyRecipe, tmp_path: Path) -> None:
    recipe = replace(recipe, log=Log(every=2, validate=32))
    assert train(recipe, tmp_path / "run") == 0
    logged = steps(tmp_path / "run")
    assert [line["samples"] for line in logged] == [32 * n for n in range(1, 7)]
    assert set(logged[0]["terms"]) == {"total", "image_to_text", "text_to_image"}
    assert logged[0]["chance"]["image_to_text"] == pytest.approx(math.log(16))
    assert logged[0]["lr"] > 0
    assert logged[-1]["lr"] < logged[2]["lr"]
    assert len(events(tmp_path / "run", "validate")) >= 5
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["finished"]
    assert cost["samples_seen"] == 192
    assert cost["train_flops"] > 192 * 6e6  # several million multiplications a sample, forward and backward
    model = models.load(tmp_path / "run")
    assert cost["total_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    features = model.encode_image([np.zeros((64, 64, 3), np.uint8)] * 3)
    assert features.shape == (3, 16)
    assert torch.allclose(features.norm(dim=-1), torch.ones(3))


def test_a_run_on_the_first_shards_sees_no_others(recipe: AnyRecipe, tmp_path: Path) -> None:
    three = replace(recipe, data=str(make_split(tmp_path / "dots", [16, 16, 16])), shards=2)
    assert train(three, tmp_path / "run") == 0
    assert [line["epoch"] for line in steps(tmp_path / "run")] == [n // 2 for n in range(1, 13)]  # an epoch is two batches of 16
    with pytest.raises(DataError, match="dots/train has 3 shards, fewer than --shards 4"):
        train(replace(three, shards=4), tmp_path / "more")


class Killed(BaseException):
    """SIGKILL gives no chance to save."""


def killed_and_resumed(recipe: AnyRecipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint after step 5, die after step 8, run again."""
    from recipes.train import watch

    def due(self: Any) -> bool:
        if self.progress.step == 8:
            raise Killed
        return bool(self.progress.step == 5)

    monkeypatch.setattr(watch.Watch, "due_to_save", due)
    with pytest.raises(Killed):
        train(recipe, folder)
    assert len(steps(folder)) >= 7
    monkeypatch.undo()
    train(recipe, folder)


@pytest.fixture(scope="module")
def whole(recipe: AnyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption, which no test may change."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(recipe, folder) == 0
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted(
    recipe: AnyRecipe, whole: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_and_resumed(replace(recipe, workers=workers), tmp_path / "killed", monkeypatch)
    assert same_weights(whole, tmp_path / "killed")
    one, two = steps(whole), steps(tmp_path / "killed")
    assert [line["step"] for line in two] == list(range(1, 13))
    assert [line["loss"] for line in one] == [line["loss"] for line in two]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_set_resumes_where_it_was(recipe: AnyRecipe, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = replace(recipe, workers=workers, memory_gb=0.0, data=str(make_split(tmp_path / "dots", [20, 20, 20])))
    train(streamed, tmp_path / "whole")
    killed_and_resumed(streamed, tmp_path / "killed", monkeypatch)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_sigkill_on_a_real_process(scenes: Path, tmp_path: Path) -> None:
    """The command line, killed from outside at an arbitrary moment, then run again."""
    options = ["clip", "tiny", "--data", str(scenes), "--budget", "80", "--batch", "8", "--optim.warmup", "0", "--vocab-size", "300"]
    options += ["--model.vision.depth", "1", "--model.text.depth", "1"]
    options += ["--device", "cpu", "--log.every", "1", "--log.validate", "0", "--save-minutes", "0", "--out"]
    process = start(("recipes.train", *options, str(tmp_path / "killed")), room=tmp_path)
    deadline = time.monotonic() + 200  # the libraries may have to be imported first
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    for name in ("killed", "whole"):
        assert command("recipes.train", *options, str(tmp_path / name)).returncode == 0
    assert len(events(tmp_path / "killed", "resume")) == 1
    assert same_weights(tmp_path / "killed", tmp_path / "whole")


def test_sigterm_saves_and_says_so(recipe: AnyRecipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.train import watch

    real = watch.Watch.step

    def step(self: Any, *args: Any) -> None:
        real(self, *args)
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(watch.Watch, "step", step)
    assert train(recipe, tmp_path / "run") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert events(tmp_path / "run", "end")[-1]["step"] == 4
    assert not json.loads((tmp_path / "run" / "cost.json").read_text())["finished"]
    train(recipe, tmp_path / "run")
    assert same_weights(tmp_path / "run", whole)


def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(recipe: AnyRecipe, tmp_path: Path, capsys: Any) -> None:
    train(recipe, tmp_path / "run")
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe, tmp_path / "run") == 0
    assert "is trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"another recipe.*seed: 0 there, 1 now"):
        train(replace(recipe, seed=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"another recipe \(optim\.lr: \S+ there, 0\.5 now\)"):  # the field alone, not the whole optimiser
        train(replace(recipe, optim=replace(recipe.optim, lr=0.5)), tmp_path / "run")


def test_the_seed_decides_everything(recipe: AnyRecipe, whole: Path, tmp_path: Path) -> None:
    for name, seed in (("same", recipe.seed), ("other", recipe.seed + 1)):
        train(replace(recipe, seed=seed), tmp_path / name)
    assert same_weights(whole, tmp_path / "same")
    assert not same_weights(whole, tmp_path / "other")


@pytest.mark.parametrize("kind", ["recipe", pytest.param("siglip_recipe", marks=pytest.mark.slow)])
def test_micro_batches_change_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe: AnyRecipe = request.getfixturevalue(kind)
    train(recipe, tmp_path / "whole")
    train(replace(recipe, micro_batch=5), tmp_path / "parts")
    whole, parts = ([line["loss"] for line in steps(tmp_path / name)] for name in ("whole", "parts"))
    assert whole == pytest.approx(parts, abs=1e-4)


def test_losses_that_are_no_numbers_stop_the_run(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.clip import CLIP

    real = CLIP.objective

    def broken(self: CLIP, features: dict[str, torch.Tensor]) -> Any:
        return real(self, {"image": features["image"] * float("nan"), "text": features["text"]})

    monkeypatch.setattr(CLIP, "objective", broken)
    with pytest.raises(FloatingPointError, match=r"10 consecutive steps.*learning rate"):
        train(recipe, tmp_path / "run")
    assert len(events(tmp_path / "run", "warning")) == 10


def test_one_bad_step_is_skipped(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.clip import CLIP

    real, calls = CLIP.objective, []

    def sometimes(self: CLIP, features: dict[str, torch.Tensor]) -> Any:
        calls.append(1)
        return real(self, features if len(calls) != 3 else {"image": features["image"] * float("inf"), "text": features["text"]})

    monkeypatch.setattr(CLIP, "objective", sometimes)
    assert train(recipe, tmp_path / "run") == 0
    assert [event["step"] for event in events(tmp_path / "run", "warning")] == [3]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_a_loss_at_chance_is_said_aloud(recipe: AnyRecipe, tmp_path: Path) -> None:
    frozen = replace(recipe, batch=4, budget=120 * 4, optim=Optim(lr=1e-12), log=Log(every=10, validate=0))
    train(frozen, tmp_path / "run")
    warnings = events(tmp_path / "run", "warning")
    assert {warning["message"].split("'")[1] for warning in warnings} == {"image_to_text", "text_to_image"}
    assert "still at chance" in warnings[0]["message"]


def test_a_training_starts_from_published_weights(recipe: AnyRecipe, tmp_path: Path) -> None:
    import transformers

    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    text = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24))
    theirs.save_pretrained(tmp_path / "hub")
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "hub")
    start = replace(recipe, weights=f"hf:{tmp_path / 'hub'}", optim=Optim(lr=1e-9), budget=32)
    train(start, tmp_path / "run")
    trained: Any = models.load(tmp_path / "run")
    assert torch.allclose(trained.visual_projection.weight, theirs.visual_projection.weight, atol=1e-6)
    with pytest.raises(ValueError, match="is CLIP, but the recipe trains SigLIP"):
        train(replace(start, model=siglip.PRESETS["tiny"].model), tmp_path / "other")


def test_siglip_trains_by_the_same_loop(siglip_recipe: AnyRecipe, tmp_path: Path) -> None:
    train(siglip_recipe, tmp_path / "run")
    logged = steps(tmp_path / "run")
    assert set(logged[0]["terms"]) == {"total", "positive", "negative"}
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert models.load(tmp_path / "run").encode_text(["a red star"]).shape == (1, 32)


@pytest.mark.parametrize("kind", ["recipe", pytest.param("siglip_recipe", marks=pytest.mark.slow)])
def test_sixteen_pairs_are_learned_by_heart(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe: AnyRecipe = request.getfixturevalue(kind)
    model_class = models.model_class("clip" if kind == "recipe" else "siglip")
    from models.shared.text import BPETokenizer

    samples = next(in_order(find(recipe.data, "train"), batch_size=16))
    tokenizer = BPETokenizer.train([caption for sample in samples for caption in sample.captions], 400)
    torch.manual_seed(0)
    model = model_class(replace(recipe.model, vocab_size=tokenizer.vocab_size), tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = model.collate(samples)
    for _ in range(1000):
        optimizer.zero_grad()
        losses = model(batch)
        losses.total.backward()
        if losses.total.item() < 0.05 * max(losses.chance.values()):
            break
        optimizer.step()
    assert losses.total.item() < 0.05 * max(losses.chance.values())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_wandb_offline_writes_a_run(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(replace(recipe, log=Log(every=4, validate=0, wandb="offline")), tmp_path / "run")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_mistakes_on_the_command_line_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["recipes.train", "clip", "tiny", "--out", str(tmp_path / "run"), "--device", "cpu", *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        return str(stopped.value.code)

    assert "nowhere" in run("--data", str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_runs_from_before_pages_were_named_are_continued(recipe: AnyRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = shortened(recipe, budget=32)
    assert train(short, tmp_path / "run", "tiny", page="clip") == 0
    path = tmp_path / "run" / "recipe.json"
    written = json.loads(path.read_text())
    assert written.pop("page") == "clip"
    for name in ("image_head", "frozen", "image_weights"):  # fields of the configuration that came later
        del written["model"][name]
    path.write_text(json.dumps(written))
    model = json.loads((tmp_path / "run" / "model.json").read_text())
    for name in ("image_head", "frozen", "image_weights"):
        del model["config"][name]
    (tmp_path / "run" / "model.json").write_text(json.dumps(model))
    assert models.load(tmp_path / "run").config.image_head
    capsys.readouterr()
    assert train(short, tmp_path / "run", "tiny", page="clip") == 0
    assert "is trained" in capsys.readouterr().err
