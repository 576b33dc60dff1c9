"""The tower that ASIF builds on: it learns from labels, and captions cannot reach it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.classifier import Classifier, ClassifierConfig
from tests.models.kit import tokenizer

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(16)]


def build(**changes: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(replace(ClassifierConfig.tiny(), **changes), tokenizer(pad=0, end=2))


def test_an_object_has_all_the_words_of_a_class() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    things = (Object("star", box, {"colour": "red"}), Object("moon", box, {"colour": "blue", "size": "small"}))
    samples = [Sample("a", SAMPLES[0].image, objects=things), Sample("b", SAMPLES[1].image, label="cat")]
    model = build(classes=("star", "red star", "blue star", "small moon", "cat", "red"))
    assert model.collate(samples)["shown"].int().tolist() == [[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0]]


def test_captions_change_nothing() -> None:
    model = build()
    told, silent = (model.collate(samples) for samples in (SAMPLES, [replace(sample, captions=()) for sample in SAMPLES]))
    assert all(torch.equal(told[name], silent[name]) for name in ("pixels", "shown"))


def test_labels_of_another_data_set_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"sample x and the 0 others .* 22 classes .*--model.classes"):
        build().collate([Sample("x", SAMPLES[0].image, label="cat")])
    with pytest.raises(ValueError, match=r"sample x and the 0 others .* have neither labels nor objects"):
        build().collate([Sample("x", SAMPLES[0].image, captions=("a red star",))])


def test_the_loss_is_a_mean_over_yes_or_no_questions() -> None:
    model = build()
    batch = model.collate(SAMPLES)
    losses = model(batch)
    logits = model.encode(batch)["logits"].detach().double().numpy()
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.where(batch["shown"].numpy(), np.log(probability), np.log(1 - probability)).mean()
    assert losses.total.item() == pytest.approx(expected, abs=1e-6)
    often = batch["shown"].double().mean(dim=0).numpy().clip(1e-6, 1 - 1e-6)
    assert float(losses.chance["labels"]) == pytest.approx(-(often * np.log(often) + (1 - often) * np.log(1 - often)).mean(), abs=1e-5)


@pytest.mark.slow
def test_it_overfits_sixteen_pictures() -> None:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = model.collate(SAMPLES)
    first = model(batch).total.item()
    for _ in range(150):
        losses = model(batch)
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses.total.item() < 0.2 * losses.chance["labels"] < first
    assert ((model.classify([sample.image for sample in SAMPLES]) > 0.5) == batch["shown"]).float().mean() > 0.98
    assert torch.allclose(model.encode_image([sample.image for sample in SAMPLES]).norm(dim=1), torch.ones(16))
