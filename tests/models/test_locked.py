"""CLIP on two locked encoders: what is trained, what is cached, and that both give the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import LockedCLIP, LockedCLIPConfig
from models.clip.locked import IMAGE, Head
from models.shared.images import HALF, normalise
from models.shared.sentences import mean_states
from models.shared.text import BPETokenizer, HubTokenizer
from recipes.train.stages import set_training
from recipes.train.step import backward
from tests.models.kit import assert_close, randomise

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(12)]
FULL = torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def words() -> HubTokenizer:
    """With a class token and a separator, as BERT's."""
    bpe = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 300)
    described = {"tokenizer": "bert", "special": {"cls_token": "<start>", "sep_token": "<end>", "pad_token": "<pad>"}}
    return HubTokenizer("bert", described | {"fast": json.loads(bpe.fast.to_str())})


def build(words: HubTokenizer, **changes: Any) -> LockedCLIP:
    torch.manual_seed(0)
    model = LockedCLIP(replace(LockedCLIPConfig.tiny(), **changes), words)
    randomise(model, 1)
    model.remember([SAMPLES])
    return model


def test_features_are_the_encoders_standardised_and_projected(words: HubTokenizer) -> None:
    """Against a second derivation: the statistics of the samples that were remembered, by numpy."""
    model = build(words).eval()
    batch = model.collate(SAMPLES[:5])
    with torch.no_grad():
        images = model.visual(normalise(model.collate.images([sample.image for sample in SAMPLES]), HALF, HALF)).numpy()
        texts = mean_states(model.language, model.collate.texts([sample.captions[0] for sample in SAMPLES]), words).numpy()
    found = model.encode(batch)
    for name, rows, head in (("image", images, model.image_head), ("text", texts, model.text_head)):
        seen = rows[::4]
        standard = (rows[:5] - seen.mean(axis=0)) / seen.std(axis=0)
        expected = standard @ head.projection.weight.detach().numpy().T
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert_close(found[name], torch.from_numpy(expected), name)
    assert_close(model.encode_image([sample.image for sample in SAMPLES[:5]]), found["image"], "encode_image")
    assert_close(model.encode_text([sample.captions[0] for sample in SAMPLES[:5]]), found["text"], "encode_text")


def test_a_dimension_that_never_changes_is_only_centred() -> None:
    head = Head(3, 2, 0.0)
    head.standardise(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 4.0]]))
    assert head.mean.tolist() == [2.0, 5.0, 2.0]
    assert head.deviation.tolist() == [1.0, 1.0, 2.0]


def test_features_computed_once_give_the_same_losses_and_gradients(words: HubTokenizer) -> None:
    model = build(words, dropout=0.0)
    set_training(model)
    known = model.precompute(SAMPLES)
    found = []
    for samples in (SAMPLES, known):
        model.zero_grad()
        batch = model.collate(samples, np.random.default_rng(5))  # random captions, the same ones
        losses = backward(model, batch, micro_batch=None, autocast=FULL)
        found.append((set(batch), losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (seen, loss, gradients), (kept, same, others) = found
    assert (seen, kept) == ({"pixels", "ids"}, {"image", "text"})
    assert same.total.item() == pytest.approx(loss.total.item(), rel=1e-5)
    assert set(gradients) == {"logit_scale", "image_head.projection.weight", "text_head.projection.weight"}
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, name)
    assert IMAGE not in SAMPLES[0].extra


def test_micro_batches_give_the_gradients_of_the_batch_with_dropout(words: HubTokenizer) -> None:
    model = build(words)
    set_training(model)
    batch = model.collate(model.precompute(SAMPLES), np.random.default_rng(0))
    model.zero_grad()
    backward(model, batch, micro_batch=4, autocast=FULL)
    parts = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(float(gradient.abs().max()) > 0 for gradient in parts.values())
    assert not model.visual.training
    assert not model.language.training
    assert model.image_head.training


def test_a_text_is_encoded_as_it_is_alone_and_nothing_gives_nothing(words: HubTokenizer) -> None:
    model = build(words).eval()
    texts = [caption for sample in SAMPLES for caption in sample.captions] * 3  # more than are encoded at a time, of all lengths
    together = model.encode_text(texts)
    for row in (0, 17, 100):
        assert torch.allclose(together[row], model.encode_text([texts[row]])[0], atol=1e-5)
    assert model.encode_text([]).shape == model.encode_image([]).shape == (0, 32)


def test_the_run_folder_is_complete_in_itself(words: HubTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a wheel in it is not followed."""
    monkeypatch.chdir(tmp_path)
    model = build(words, timm_name="wheel:test_efficientnet").eval()
    models.save(model, tmp_path / "run")
    loaded: Any = models.load(tmp_path / "run")
    assert isinstance(loaded, LockedCLIP)
    images = [sample.image for sample in SAMPLES[:3]]
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(["a red circle"]), model.encode_text(["a red circle"]))


def test_it_overfits_sixteen_pairs(words: HubTokenizer) -> None:
    samples: list[Sample] = [make_sample(PRESETS["tiny"], "train", index) for index in range(16)]
    model = build(words, dropout=0.0)
    batch = model.collate(model.precompute(samples))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(150):
        loss = model(batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.3
    same = F.normalize(model.encode(batch)["image"], dim=-1) @ model.encode(batch)["text"].T
    assert (same.argmax(dim=1) == torch.arange(16)).float().mean() > 0.9
