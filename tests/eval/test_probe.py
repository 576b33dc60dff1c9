from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from eval.harness.source import in_memory
from eval.tasks.probe import linear, neighbours, plan, shots
from tests.eval import fakes
from tests.eval.test_zeroshot import knows


def test_a_probe_reads_what_is_in_the_features_and_nothing_else(tmp_path: Path) -> None:
    splits = {"train": fakes.single_objects(2), "val": fakes.single_objects(), "test": fakes.single_objects()}
    result = fakes.run(knows("colour", "size"), splits, tmp_path, tasks=["probe"])
    assert fakes.value(result, "probe", "colour") == fakes.value(result, "probe", "size") == 1
    assert fakes.value(result, "probe", "shape") == pytest.approx(1 / 8, abs=0.03)
    assert fakes.value(result, "probe", "colour", "shuffled images") < 0.25
    assert fakes.value(result, "probe", "fill", "chance") == pytest.approx(1 / 3)
    assert fakes.cell(result, "probe", "fill", "oracle")["status"] == "n/a"


def test_one_probe_serves_all_splits(tmp_path: Path) -> None:
    splits = {name: fakes.single_objects() for name in ("train", "val", "test", "heldout")}
    model = knows("colour")
    result = fakes.run(model, splits, tmp_path, tasks=["probe"])
    assert fakes.value(result, "probe", "colour", split="heldout") == 1
    assert model.encoded <= 4 * 432 + 2  # every picture once; the last two are a blank one and that of the FLOP counter


def test_a_single_labelled_split_is_cross_validated(tmp_path: Path) -> None:
    classes = ("cat", "dog")
    samples = [*fakes.labelled(40, classes), fakes.Sample(key="y", image=fakes.picture(70), label="yak")]
    model = fakes.Embeds(lambda number: [1.0, number % 2 + 0.1], lambda text: [1.0, 1.0])
    result = fakes.run(model, {"test": samples}, tmp_path, tasks=["probe"])
    assert fakes.value(result, "probe", "top-1") == 1
    assert "1 images of classes with fewer than 5 left out" in fakes.cell(result, "probe", "top-1")["note"]
    # features that only name the picture say nothing about pictures not seen
    names = fakes.Embeds(lambda number: np.eye(100)[min(number, 99)], lambda text: np.eye(100)[0])
    blind = fakes.run(names, {"test": samples}, tmp_path / "names", tasks=["probe"])
    assert fakes.value(blind, "probe", "top-1") <= 0.6


def test_cross_validation_never_predicts_a_picture_it_was_fitted_to() -> None:
    task = plan(in_memory("fakes", {"test": fakes.labelled(50, ("a", "b", "c"))}))[0]
    for sample, fold in zip(task.samples, task.which, strict=True):
        assert all(sample not in part for part in task.fits.data[fold])


def test_regularisation_is_chosen_on_val() -> None:
    """Pure noise labels on many features: the strongest regularisation does best on val, or ties."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)), [str(label) for label in rng.integers(2, size=60)]
    [chosen] = linear(x[:40], y[:40], x[40:], y[40:])
    others = [linear(x[:40], y[:40], x[:40], y[:40])[0]]
    assert chosen.score(x[40:], y[40:]) >= max(other.score(x[40:], y[40:]) for other in others)


def test_a_single_class_is_predicted_always() -> None:
    for method in (linear, neighbours, partial(shots, 4)):
        for probe in method(np.zeros((3, 2)), ["a"] * 3, np.zeros((1, 2)), ["a"]):
            assert probe.predict(np.ones((2, 2))).tolist() == ["a", "a"]


def test_nearest_neighbours_go_by_direction() -> None:
    """Cosine: a long vector and a short one of the same direction are the same."""
    x = np.array([[1.0, 0.0], [100.0, 1.0], [0.0, 1.0], [1.0, 100.0]] * 20)
    [probe] = neighbours(x, ["right", "right", "up", "up"] * 20, x[:1], ["right"])
    assert probe.predict(np.array([[0.001, 0.0], [0.0, 500.0], [3.0, 2.0]])).tolist() == ["right", "up", "right"]


def test_k_shot_probes_see_k_pictures_of_each_class() -> None:
    """Each picture has an axis of its own and a common one that says its class: coefficients show which were seen."""
    labels = [f"class {i % 3}" for i in range(30)]
    x = np.concatenate([np.eye(30), np.eye(3)[[i % 3 for i in range(30)]]], axis=1)
    for k in (1, 4):
        probes = shots(k, x, labels, x, labels)
        seen = [np.flatnonzero(np.abs(probe[-1].coef_[:, :30]).sum(axis=0) > 1e-9) for probe in probes]
        assert all(sorted(labels[i] for i in each) == sorted(["class 0", "class 1", "class 2"] * k) for each in seen)
        assert len({tuple(each) for each in seen}) == len(probes) == 5


def test_few_pictures_are_enough_for_features_that_name_the_class_and_no_number_is_for_those_that_do_not(tmp_path: Path) -> None:
    splits = {"train": fakes.single_objects(2), "val": fakes.single_objects(), "test": fakes.single_objects()}
    result = fakes.run(knows("colour"), splits, tmp_path, tasks=["probe"])
    for method in ("20-NN", "1-shot", "4-shot", "16-shot"):
        assert fakes.value(result, "probe", f"colour {method}") == 1
        assert fakes.value(result, "probe", f"shape {method}") == pytest.approx(1 / 8, abs=0.04)
        assert fakes.value(result, "probe", f"size {method}", "chance") == pytest.approx(1 / 2)
