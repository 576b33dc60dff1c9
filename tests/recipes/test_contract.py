"""What every page's model must keep, whatever it is: one test over all of them, found and not listed.

Each `tiny`, with narrow layers, is trained for two steps a stage, on what it builds on, which is trained as briefly.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from data.loader import in_order
from data.sample import Sample
from data.shards import find
from models.contract import IGNORE_INDEX, Model
from recipes.train.loop import train
from recipes.train.pages import names, page
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Log
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from recipes.train.watch import Watch
from tests.recipes.kit import alike_are_slow, narrow
from tests.recipes.ranks import on_ranks
from tests.recipes.test_train import Killed, same_weights

PAGES = [name for name in names() if "tiny" in page(name).PRESETS]
BATCH = 4


def short(recipe: AnyRecipe, data: str, *, batch: int = BATCH, steps: int = 2) -> AnyRecipe:
    some: dict[str, Any] = {"budget": batch * steps, "batch": batch}
    stages = tuple(replace(stage, optim=replace(stage.optim, warmup=0), **some) for stage in recipe.stages)
    how: dict[str, Any] = {
        "model": narrow(recipe.model),
        "data": data,
        "device": "cpu",
        "precision": "fp32",
        "vocab_size": 400,
        "micro_batch": None,
        "log": Log(every=1, validate=0),
    }
    return replace(recipe, **({"stages": stages} if stages else {"optim": replace(recipe.optim, warmup=0), **some}), **how)


@pytest.fixture(scope="module")
def runs(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs, while every preset of every page is short."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names():
            patch.setattr(page(name), "PRESETS", {key: short(recipe, str(few)) for key, recipe in page(name).PRESETS.items()})
        yield tmp_path_factory.mktemp("runs")


def trained(name: str, runs: Path) -> Path:
    """The run folder of a page, as prerequisites name theirs."""
    folder = runs / f"{name}-tiny-s0"
    assert train(page(name).PRESETS["tiny"], folder, "tiny", page=name) == 0
    return folder


def in_last_stage(name: str, folder: Path) -> tuple[Any, AnyRecipe]:
    """The trained model as the loop has it in its last stage."""
    recipe = page(name).PRESETS["tiny"]
    model: Any = models.load(folder)
    progress = _progress(folder)
    enter(model, recipe, len(recipe.schedule) - 1, progress)
    set_training(model)
    return model, recipe


def _progress(folder: Path) -> Any:
    from recipes.train import checkpoint
    from recipes.train.folder import CHECKPOINT

    return checkpoint.read_progress(folder / CHECKPOINT)


def some_samples(few: Path, count: int) -> list[Sample]:
    return next(iter(in_order(find(str(few), "train"), batch_size=count)))


@pytest.mark.parametrize("name", PAGES)
def test_a_run_names_its_page_and_its_model_and_gives_the_model_back(name: str, runs: Path) -> None:
    folder = trained(name, runs)
    recipe, model = json.loads((folder / "recipe.json").read_text()), models.load(folder)
    assert (recipe["page"], recipe["name"]) == (name, model.name)
    assert type(model) is models.model_of(page(name).PRESETS["tiny"].model)
    models.save(model, folder / "again")
    assert same_weights(folder, folder / "again")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values() if tensor.is_floating_point())
    for stage in model.asked_after:  # kept at the end of that stage
        assert models.load(folder / "stages" / stage).name == model.name


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_killed_and_resumed_equals_uninterrupted(name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(name, runs)

    def due(self: Watch) -> bool:
        if self.progress.step == 2:
            raise Killed
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        with pytest.raises(Killed):
            train(page(name).PRESETS["tiny"], tmp_path / "run", "tiny", runs, page=name)
    assert train(page(name).PRESETS["tiny"], tmp_path / "run", "tiny", runs, page=name) == 0
    assert same_weights(whole, tmp_path / "run")


@pytest.mark.parametrize("name", PAGES)
def test_collate_depends_on_its_generator_alone_and_goes_to_workers(name: str, runs: Path, few: Path) -> None:
    model, _ = in_last_stage(name, trained(name, runs))
    samples = some_samples(few, BATCH)
    again = pickle.loads(pickle.dumps(model.collate))  # noqa: S301 (our own bytes)
    one, other = (collate(samples, np.random.default_rng(3)) for collate in (model.collate, again))
    assert one.keys() == other.keys() != set()
    assert all(torch.equal(one[field], other[field]) for field in one)
    assert {len(rows) for rows in one.values()} == {BATCH}


@pytest.mark.parametrize("name", PAGES)
def test_micro_batches_give_the_gradients_of_the_batch(name: str, runs: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: in float32 a rounding error can change the sign of an absolute error, and with it a gradient."""
    model, _ = in_last_stage(name, trained(name, runs))
    batch = model.collate(some_samples(few, BATCH), np.random.default_rng(0))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model.double()
        found = []
        for size in (None, 1):
            model.zero_grad()
            losses = backward(model, batch, micro_batch=size, autocast=torch.autocast("cpu", enabled=False))
            gradients = {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}
            found.append((losses.total.item(), gradients))
    finally:
        torch.set_default_dtype(before)
    (loss, whole), (same, parts) = found
    assert same == pytest.approx(loss, rel=1e-9)
    assert whole.keys() == parts.keys()
    assert bool(whole) == (model.paradigm != "training-free")
    scale = max((float(gradient.abs().max()) for gradient in whole.values()), default=1.0)
    for key, gradient in whole.items():
        assert torch.allclose(gradient, parts[key], atol=1e-9 * scale, rtol=1e-8), f"{key}: {(gradient - parts[key]).abs().max() / scale}"


@pytest.mark.parametrize("name", PAGES)
def test_what_is_trained_has_a_gradient_in_some_stage_and_what_is_frozen_has_none(name: str, runs: Path, few: Path) -> None:
    folder, recipe = trained(name, runs), page(name).PRESETS["tiny"]
    model, trains = models.load(folder), set(_progress(folder).trained)
    progress = Progress(frozen=[key for key, _ in model.named_parameters() if key not in trains])
    learns = set()
    for number in range(len(recipe.schedule)):
        enter(model, recipe, number, progress)
        set_training(model)
        batch = model.collate(some_samples(few, 2 * BATCH), np.random.default_rng(0))
        model.zero_grad()
        backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False))
        for key, parameter in model.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, f"{key} is frozen in stage {number}"
            learns |= {key} if parameter.grad is not None else set()
    assert learns == trains


@pytest.mark.parametrize("name", alike_are_slow(PAGES))
def test_two_ranks_have_the_losses_and_gradients_of_one(name: str, runs: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every stage, for ranks whose rows differ in what they count: texts of other lengths, other numbers of masked words and hidden
    pixels. Hard negatives are a rank's own and are drawn, so here they are each pair's neighbour."""
    folder, recipe = trained(name, runs), page(name).PRESETS["tiny"]
    for module, found in list(sys.modules.items()):
        if module.startswith("models.") and hasattr(found, "hard_negatives"):
            monkeypatch.setattr(found, "hard_negatives", _neighbours)
    for number in range(len(recipe.schedule)):
        whole: Any = models.load(folder)
        enter(whole, recipe, number, _progress(folder))
        set_training(whole)
        batch = _uneven(whole.collate(some_samples(few, 2 * BATCH), np.random.default_rng(0)))
        copies = [copy.deepcopy(whole) for _ in range(2)]

        def work(rank: int, copies: list[Any] = copies, batch: dict[str, torch.Tensor] = batch) -> Any:
            rows = slice(rank * BATCH, (rank + 1) * BATCH)
            return _losses(copies[rank], {field: values[rows] for field, values in batch.items()})

        one, two = _losses(whole, batch), on_ranks(monkeypatch, work)
        assert one.keys() == two[0].keys() | two[1].keys()
        gradient = torch.stack([value.norm() for what, value in one.items() if what.startswith("gradient of")] or [torch.zeros(())]).norm()
        for what, value in one.items():  # what has no rows of its kind on a rank has no gradient there
            mean = sum(rank.get(what, torch.zeros_like(value)) for rank in two) / 2
            rounding = 1e-5 * gradient if what.startswith("gradient of") else 1e-6
            assert (mean - value).norm() <= 1e-4 * value.norm() + rounding, f"{what} in stage {number}"


def _neighbours(similarity: torch.Tensor, captions: torch.Tensor, generator: object = None) -> tuple[torch.Tensor, torch.Tensor]:
    other = torch.arange(len(captions)) ^ 1
    return other, other


def _uneven(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With all that is masked or asked for in the last row of the first half taken away, where labels say what that is."""
    batch = {field: values.clone() for field, values in batch.items()}
    for field, nothing in (("labels", IGNORE_INDEX), ("patches", False)):
        if field in batch and not (field == "labels" and "masked_ids" not in batch):
            batch[field][BATCH - 1] = nothing
    return batch


def _losses(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every term, the total, every gradient, and what the objective keeps."""
    found = backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False))
    kept = {key: value for key, value in model.named_buffers() if value.is_floating_point()}
    gradients = {f"gradient of {key}": each.grad for key, each in model.named_parameters() if each.grad is not None}
    return {"total": found.total.detach()} | {key: value.detach() for key, value in found.terms.items()} | gradients | kept


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_two_ranks_learn_what_one_does(name: str, sharded: bool, runs: Path, tmp_path: Path) -> None:
    """Through torchrun, on what one process has trained before."""
    one = trained(name, runs)
    program = tmp_path / "ranks.py"
    program.write_text(RANKS.format(name=name, sharded=sharded, data=page(name).PRESETS["tiny"].data, run=tmp_path / "run", runs=runs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=root, env=_environment(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = models.load(tmp_path / "run").state_dict(), models.load(one).state_dict()
    for key, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[key].float(), atol=2e-4), key


RANKS = """
import sys
from dataclasses import replace
from pathlib import Path

from recipes.train.loop import train
from recipes.train.pages import names, page
from recipes.train.progress import Progress
from tests.recipes.test_contract import short

for each in names():
    page(each).PRESETS = {{key: short(recipe, {data!r}) for key, recipe in page(each).PRESETS.items()}}
recipe = replace(page({name!r}).PRESETS["tiny"], sharded={sharded})
sys.exit(train(recipe, Path("{run}"), "tiny", Path("{runs}"), page={name!r}))
"""


def _environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in PAGES if models.model_of(page(name).PRESETS["tiny"].model).paradigm != "training-free"])
def test_it_overfits_eight_samples(name: str, runs: Path, few: Path) -> None:
    model, recipe = in_last_stage(name, trained(name, runs))
    batch = model.collate(some_samples(few, 8), np.random.default_rng(0))
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    losses, rate = [], recipe.schedule[-1].optim.lr
    for step in range(60):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)  # as in every recipe: without a warm-up, retrieval and post-norm layers collapse
        losses.append(float(backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False), seed=step).total))
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:2]), losses[::10]


def test_every_package_says_what_it_is() -> None:
    found = models.all_models()
    assert set(models.packages()) <= {kind.__module__.split(".")[1] for kind in found.values()}
    for name, kind in found.items():
        assert kind.paradigm, name
        assert kind.Config.tiny(), name
        assert set(kind.needs) <= {"captions", "texts", "label", "questions", "foils", "objects"}, name
        assert issubclass(kind, Model)
