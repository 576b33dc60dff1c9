from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval import EvalError
from eval.harness.source import in_memory
from eval.scenes import recogniser
from eval.scenes.recogniser import ATTRIBUTES, BACKGROUND, Recogniser, looks, real_accuracy, recogniser_of, train


def scenes(split: str, count: int) -> list[Sample]:
    return [make_sample(PRESETS["tiny"], split, index, seed=5) for index in range(count)]


def outputs_of(sample: Sample) -> dict[str, torch.Tensor]:
    """What a recogniser that knows the truth puts out about one picture."""
    targets = recogniser._targets([sample])
    sure = {name: 20 * torch.nn.functional.one_hot(targets[name][0], count) for name, count in ATTRIBUTES.items()}
    sure |= {name: 20 * torch.nn.functional.one_hot(targets[name][0], len(values)) for name, values in BACKGROUND.items()}
    return sure | {"objectness": 20 * targets["objectness"][0] - 10, "centre": targets["centre"][0]}


def test_targets_read_back_are_the_truth() -> None:
    model = Recogniser(64)
    for sample in scenes("train", 40):
        found, background = model._read(outputs_of(sample))
        assert background == {name: sample.extra[name] for name in BACKGROUND}
        where = {(t.name, t.attributes["colour"]): t for t in found}
        assert len(found) == len(sample.objects)
        for thing in sample.objects:
            seen = where[thing.name, thing.attributes["colour"]]
            assert looks(seen) == looks(thing)
            centre = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
            assert seen.box[:2] == pytest.approx(centre, abs=1e-3)


def test_a_centre_on_an_edge_is_one_object_although_no_cell_is_sure_of_it() -> None:
    sample = next(sample for sample in scenes("train", 40) if len(sample.objects) == 1)
    outputs = outputs_of(sample)
    cell = int(outputs["objectness"].argmax())
    neighbour = cell + 1 if cell % 8 < 7 else cell - 1
    for each, x in ((cell, 0.99), (neighbour, 0.01)) if neighbour > cell else ((cell, 0.01), (neighbour, 0.99)):
        outputs["objectness"][each] = -0.5
        outputs["centre"][each] = torch.tensor([x, 0.5])
    found, _ = Recogniser(64)._read(outputs)
    assert len(found) == 1


def test_nothing_is_found_where_nothing_is() -> None:
    sample = scenes("train", 1)[0]
    outputs = outputs_of(sample) | {"objectness": torch.full((64,), -4.0)}
    assert Recogniser(64)._read(outputs)[0] == []


def test_pictures_of_any_size_and_number() -> None:
    model = Recogniser(64).eval()
    assert model.recognise([]) == []
    sizes = [(32, 32), (64, 64), (100, 70), (256, 256)]
    found = model.recognise([np.zeros((*size, 3), np.uint8) for size in sizes])
    assert [set(background) for _, background in found] == [{"tone", "texture"}] * 4


def test_training_learns_repeats_exactly_and_leaves_the_global_generator_alone() -> None:
    samples = [sample for sample in scenes("train", 60) if len(sample.objects) == 1][:16]
    state = torch.get_rng_state()
    first, second = (train(samples, budget=40 * 16, batch=16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert real_accuracy(first, samples)["real pictures"]["colour"] > 0.8
    assert real_accuracy(Recogniser(64).eval(), samples)["real pictures"]["colour"] < 0.5


def test_only_square_pictures_of_one_size_are_learned_from() -> None:
    samples = scenes("train", 2)
    with pytest.raises(EvalError, match=r"square pictures of one size.*\(32, 64, 3\)"):
        train([samples[0], replace(samples[1], image=samples[1].image[:32])])
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        Recogniser(60)


def test_it_is_trained_once_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained: list[Any] = []

    def once(samples: list[Sample]) -> Recogniser:
        trained.append(samples)
        return Recogniser(64).eval()

    monkeypatch.setattr(recogniser, "train", once)
    monkeypatch.setattr(recogniser, "HELD_OUT_SAMPLES", 3)
    splits = {"train": scenes("train", 5), "test": scenes("test", 4)}
    first = recogniser_of(in_memory("fakes", splits), tmp_path)
    again = recogniser_of(in_memory("fakes", splits), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert [len(samples) for samples in trained] == [8]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[1:]] == ["recogniser of fakes"] * 4
    assert said[1:3] == said[3:5]
    recogniser_of(in_memory("fakes", splits | {"train": scenes("heldout", 5)}), tmp_path)
    assert len(trained) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_reads_real_pictures(tmp_path: Path) -> None:
    """The whole training: a minute and a half of one thread."""
    splits = {"train": scenes("train", 20_000), "test": scenes("test", 1000)}
    model = recogniser_of(in_memory("scenes", splits), tmp_path)
    whole, half = real_accuracy(model, splits["test"]).values()
    assert min(whole[name] for name in ("shape", "colour", "size", "count")) >= 0.99
    assert min(half[name] for name in ("shape", "colour", "size", "count")) >= 0.98
    held_out = real_accuracy(model, scenes("heldout", 1000))["real pictures"]
    assert min(held_out[name] for name in ("shape", "colour")) >= 0.98
