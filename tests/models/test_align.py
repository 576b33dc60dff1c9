"""ALIGN: parity with transformers' AlignModel, weights both ways, the smoothed loss, the temperature, BatchNorm, and noise."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from data.sample import Sample
from models.clip import ALIGN, ALIGNConfig
from models.clip.align import EfficientNetConfig, NoisyCollate, align_loss
from models.clip.align_convert import config_from_transformers, from_transformers, to_transformers
from models.shared.images import HALF, ImageTransform, normalise
from models.shared.text import BPETokenizer
from recipes import align
from recipes.train.step import backward
from tests.models.kit import assert_close, pictures, randomise, texts, tokenizer
from tests.recipes.ranks import on_ranks

CONTEXT = 12
BLOCKS = {
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 40],
    "kernel_sizes": [3, 3, 5],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 6, 6],
}


def theirs_at_random(size: int = 40, **vision: Any) -> transformers.AlignModel:
    """Random weights, and the statistics of random pictures: with a mean of 0 and a variance of 1 vectors would be next to nothing."""
    text = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text |= {"max_position_embeddings": CONTEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"image_size": size, "width_coefficient": 1.0, "depth_coefficient": 1.2, "hidden_dim": 64, "drop_connect_rate": 0.0}
    config = transformers.AlignConfig(text_config=text, vision_config=sizes | BLOCKS | vision, projection_dim=40)
    model = transformers.AlignModel(config).eval()
    randomise(model, 0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model.vision_model(normalise(pictures(8, size, seed=7), HALF, HALF))
        model.temperature.fill_(0.3)
    return model.eval()


def ours_like(theirs: transformers.AlignModel) -> ALIGN:
    ours = ALIGN(config_from_transformers(theirs.config), tokenizer(pad=0, end=99))
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    return ours


# ------------------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(("size", "padding"), [(40, []), (39, []), (37, [1, 2, 5])], ids=str)
def test_equals_transformers(size: int, padding: list[int]) -> None:
    """Features, logits, loss and every gradient, also in training mode, where transformers' BatchNorm is kept as it is."""
    theirs = theirs_at_random(size, depthwise_padding=padding)
    ours = ours_like(theirs).train()
    pixels, ids = pictures(5, size), texts(5, CONTEXT, pad=0, end=99)
    mask = (torch.arange(CONTEXT) <= (ids == 99).int().argmax(dim=1)[:, None]).long()
    out = theirs(input_ids=ids, attention_mask=mask, pixel_values=normalise(pixels, HALF, HALF), return_loss=True)
    out.loss.backward()
    features = ours.encode({"pixels": pixels, "ids": ids})
    assert_close(features["image"], out.image_embeds, "image features")
    assert_close(features["text"], out.text_embeds, "text features")
    assert_close(features["image"] @ features["text"].T / ours.temperature, out.logits_per_image, "logits")
    losses = ours.objective(features)
    assert_close(losses.total, out.loss, "loss")
    losses.total.backward()
    mine = {name: p.grad for name, p in ours.named_parameters()}
    reference = from_transformers({name: p.grad for name, p in theirs.named_parameters() if "pooler" not in name})
    assert mine.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient is not None
        assert name.endswith("key.bias") or gradient.abs().max() > 1e-6, name  # a softmax does not notice it
        assert_close(mine[name], gradient, f"gradient of {name}")


def test_weights_go_to_transformers_and_back_to_the_bit() -> None:
    theirs = theirs_at_random()
    state = theirs.state_dict()
    ours = ours_like(theirs)
    back = to_transformers(ours.state_dict())
    assert state.keys() - back.keys() == {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items())
    randomise(ours, 5)
    other = theirs_at_random()
    missing = other.load_state_dict(to_transformers(ours.state_dict()), strict=False)
    assert missing.unexpected_keys == []
    assert all("pooler" in name for name in missing.missing_keys)
    pixels, ids = pictures(3, 40), texts(3, CONTEXT, pad=0, end=99)
    mask = (torch.arange(CONTEXT) <= (ids == 99).int().argmax(dim=1)[:, None]).long()
    out = other(input_ids=ids, attention_mask=mask, pixel_values=normalise(pixels, HALF, HALF))
    features = ours.eval().encode({"pixels": pixels, "ids": ids})
    assert_close(features["image"], out.image_embeds, "image features")
    assert_close(features["text"], out.text_embeds, "text features")


def test_released_configuration() -> None:
    config = config_from_transformers(transformers.AlignConfig())
    blocks = replace(config.efficientnet, drop_connect_rate=0.0)
    released = ALIGNConfig.released()
    assert replace(config, efficientnet=blocks) == replace(released, random_crop=1.0, vision=replace(released.vision, image_size=600))
    with pytest.raises(ValueError, match="pooling_type = 'max'"):
        config_from_transformers(transformers.AlignConfig(vision_config={"pooling_type": "max"}))
    with pytest.raises(ValueError, match=r"no counterpart.*visual\.cls_token|no counterpart.*visual\.pos_embed"):
        to_transformers(ALIGN(ALIGNConfig.tiny(), tokenizer(pad=0, end=2)).state_dict())


# ------------------------------------------------------------------------------------------------------------ the loss


def slow(image: np.ndarray, text: np.ndarray, temperature: float, smoothing: float) -> float:
    """Targets written out: 1 - e + e / B for the right one, e / B for each other; cross-entropy by row and by column; their mean."""
    n, total = len(image), 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(n):
            logits = [float(a[i] @ b[j]) / temperature for j in range(n)]
            normaliser = math.log(sum(math.exp(each) for each in logits))
            for j in range(n):
                total -= ((1 - smoothing) * (i == j) + smoothing / n) * (logits[j] - normaliser)
    return total / (2 * n)


def unit(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(count, 7, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_loss_and_gradients_equal_the_slow_derivation(smoothing: float) -> None:
    values = [*(each.requires_grad_() for each in unit(5)), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)]
    losses = align_loss(*values, smoothing)
    losses.total.backward()
    arrays = [value.detach().numpy() for value in values]
    assert losses.total.item() == pytest.approx(slow(arrays[0], arrays[1], 0.4, smoothing), abs=1e-12)
    for position, value in enumerate(values):
        expected = np.zeros_like(arrays[position])
        for index in np.ndindex(expected.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[position][index] += step
                ends.append(slow(moved[0], moved[1], float(moved[2]), smoothing))
            expected[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(value.grad.numpy(), expected, atol=1e-8)  # type: ignore[union-attr]


def test_chance_is_ln_b_with_smoothing_too_and_the_minimum_is_above_zero() -> None:
    row = F.normalize(torch.ones(8, 3), dim=1)
    losses = align_loss(row, row, torch.tensor(1.0), 0.1)
    assert losses.total.item() == pytest.approx(math.log(8), abs=1e-6)
    assert set(losses.chance.values()) == {math.log(8)}
    eye = torch.eye(8)
    found = [align_loss(eye, eye, torch.tensor(t), 0.1).total.item() for t in np.linspace(0.05, 1, 400, dtype=np.float32)]
    best = -(0.9125 * math.log(0.9125) + 7 * 0.0125 * math.log(0.0125))
    assert min(found) == pytest.approx(best, abs=1e-4)


def test_the_temperature_divides_starts_at_one_and_stays_above_its_floor() -> None:
    model = ALIGN(ALIGNConfig.tiny(), tokenizer(pad=0, end=2))
    assert model.temperature.item() == 1
    assert model.logit_scale.exp().item() == pytest.approx(1)
    with torch.no_grad():
        model.temperature.fill_(-0.2)
    model.after_step()
    assert model.temperature.item() == pytest.approx(0.01)
    assert model.logit_scale.exp().item() == pytest.approx(100)


# ---------------------------------------------------------------------------------------------- BatchNorm, micro-batches


def small() -> ALIGN:
    blocks = EfficientNetConfig(**{name: tuple(each) for name, each in BLOCKS.items()}, width_coefficient=1.0, depth_coefficient=1.0)
    tiny = ALIGNConfig.tiny()
    config = replace(tiny, efficientnet=blocks, vision=replace(tiny.vision, image_size=40), vocab_size=100, context=CONTEXT)
    torch.manual_seed(0)
    return ALIGN(config, tokenizer(pad=0, end=99))


def some_samples(count: int) -> list[Sample]:
    return [Sample(str(row), each.permute(1, 2, 0).numpy(), captions=[f"{row}"]) for row, each in enumerate(pictures(count, 40, seed=3))]


def test_statistics_come_from_training_pictures_once_and_stay() -> None:
    """Without them a random EfficientNet says next to nothing; those of published weights are left alone."""
    model = small()
    pixels = pictures(6, 40)
    before = model.eval()._tower(pixels).norm(dim=1)
    model.remember([some_samples(16)])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert model._tower(pixels).norm(dim=1).min() > 10 * before.max()
    kept = [norm.running_mean.clone() for norm in norms]  # type: ignore[union-attr]
    model.train()
    assert not any(norm.training for norm in norms)
    model._tower(pixels)
    model.remember([some_samples(8)])
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, kept, strict=True))  # type: ignore[arg-type]


def test_micro_batches_and_two_ranks_equal_the_batch_since_batchnorm_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With BatchNorm in training mode they would not: its statistics are those of a micro-batch."""
    batch = {"pixels": pictures(6, 40), "ids": texts(6, CONTEXT, pad=0, end=99)}
    start = small()
    start.remember([some_samples(16)])

    def gradients(rows: dict[str, Tensor], size: int | None, *, free: bool = False) -> dict[str, Tensor]:
        model = small()
        model.load_state_dict(start.state_dict())
        model.train()
        for module in model.modules():
            if free and isinstance(module, torch.nn.BatchNorm2d):
                module.train()
        backward(model, rows, micro_batch=size, autocast=contextlib.nullcontext())
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients(batch, None)
    norm = math.sqrt(sum(float(each.square().sum()) for each in whole.values()))
    halves = [{name: rows[3 * rank : 3 * rank + 3] for name, rows in batch.items()} for rank in range(2)]
    one, other = on_ranks(monkeypatch, lambda rank: gradients(halves[rank], None))
    for found in (gradients(batch, 2), {name: (one[name] + other[name]) / 2 for name in one}):
        assert found.keys() == whole.keys()
        assert max(float((found[name] - each).norm()) for name, each in whole.items()) <= 1e-5 * norm
    free = gradients(batch, None, free=True)
    parts = gradients(batch, 2, free=True)
    assert max(float((parts[name] - each).norm()) for name, each in free.items()) > 1e-2 * norm


# ------------------------------------------------------------------------------------------------------------- noise


def collated(noise: float, rng: np.random.Generator | None, count: int = 400) -> list[bool]:
    """Which pictures come with a caption of their own."""
    words = BPETokenizer.train([str(number) for number in range(count)], 300)
    collate = NoisyCollate(ImageTransform(8), words, 16, noise=noise)
    samples = [Sample(f"key{row}", np.zeros((8, 8, 3), np.uint8), captions=[str(row), f"{row} again"]) for row in range(count)]
    ids = collate.captions(samples, rng)
    read = [words.decode([token for token in row if token > 2]).strip() for row in ids.tolist()]
    return [text in sample.captions for text, sample in zip(read, samples, strict=True)]


def test_a_share_of_captions_is_wrong_in_training_alone_and_always_the_same() -> None:
    assert all(collated(0.0, np.random.default_rng(0)))
    assert all(collated(0.5, None))
    once, again = (collated(0.5, np.random.default_rng(seed)) for seed in (0, 1))
    assert once == again
    assert np.mean(once) == pytest.approx(0.5, abs=0.06)
    quarter = collated(0.25, np.random.default_rng(0))
    assert np.mean(quarter) == pytest.approx(0.75, abs=0.05)
    assert all(half <= one for half, one in zip(once, quarter, strict=True))  # what is wrong at a quarter is wrong at a half


def test_arms_differ_in_what_they_say() -> None:
    tiny = align.PRESETS["tiny"]
    smoothing = next(claim for claim in align.CLAIMS if claim.name == "smoothing-against-noise")
    one, other = (arm.change(smoothing.base(tiny)) for arm in smoothing.arms)
    assert (one.model.noise, one.model.smoothing, other.model.smoothing) == (0.5, 0.1, 0.0)
    assert replace(other, model=one.model) == one
    scale = next(claim for claim in align.CLAIMS if claim.name == "scale-beats-cleanliness")
    many, few = (arm.change(scale.base(tiny)) for arm in scale.arms)
    assert (many.model.noise, many.shards, few.model.noise, few.shards) == (0.25, 0, 0.0, 5)
    assert many.budget == few.budget
