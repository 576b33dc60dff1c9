"""The objectives against slow derivations from the papers, at chance, in chunks, in micro-batches, and over two processes."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import models.siglip.objective as siglip_objective
from models.clip import CLIP, CLIPConfig
from models.clip.objective import clip_loss
from models.contract import Losses
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.siglip import SigLIP, SigLIPConfig
from models.siglip.objective import siglip_loss
from recipes.plan.trace import Memory
from recipes.train.parallel import replicated
from recipes.train.step import backward
from tests.models.kit import pictures, randomise, texts, tokenizer
from tests.processes import on_ranks
from tests.recipes.ranks import on_ranks as threads

BATCH = 8


# ------------------------------------------------------------------------------------- a second, slow derivation


def slow_clip(image: np.ndarray, text: np.ndarray, scale: float) -> tuple[float, float]:
    """Figure 3 of the paper, one pair at a time: (image to text, text to image)."""
    n = len(image)
    to_text = to_image = 0.0
    for i in range(n):
        to_text -= math.log(math.exp(scale * image[i] @ text[i]) / sum(math.exp(scale * image[i] @ text[j]) for j in range(n)))
        to_image -= math.log(math.exp(scale * image[i] @ text[i]) / sum(math.exp(scale * image[j] @ text[i]) for j in range(n)))
    return to_text / n, to_image / n


def slow_siglip(image: np.ndarray, text: np.ndarray, scale: float, bias: float) -> tuple[float, float]:
    """Algorithm 1 of the paper, one pair at a time: (positive pairs, negative pairs)."""
    n = len(image)
    positive = negative = 0.0
    for i in range(n):
        for j in range(n):
            logit = scale * image[i] @ text[j] + bias
            if i == j:
                positive -= math.log(1 / (1 + math.exp(-logit))) / n
            else:
                negative -= math.log(1 / (1 + math.exp(logit))) / n
    return positive, negative


def test_clip_loss_equals_the_slow_one() -> None:
    image, text = _features(6)
    losses = clip_loss(image, text, torch.tensor(3.0, dtype=torch.float64))
    to_text, to_image = slow_clip(image.numpy(), text.numpy(), 3.0)
    assert losses.terms["image_to_text"].item() == pytest.approx(to_text, abs=1e-12)
    assert losses.terms["text_to_image"].item() == pytest.approx(to_image, abs=1e-12)
    assert losses.total.item() == pytest.approx((to_text + to_image) / 2, abs=1e-12)


def test_siglip_loss_equals_the_slow_one() -> None:
    image, text = _features(6)
    losses = siglip_loss(image, text, torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64))
    positive, negative = slow_siglip(image.numpy(), text.numpy(), 3.0, -1.5)
    assert losses.terms["positive"].item() == pytest.approx(positive, abs=1e-12)
    assert losses.terms["negative"].item() == pytest.approx(negative, abs=1e-12)
    assert losses.total.item() == pytest.approx(positive + negative, abs=1e-12)


def test_gradients_equal_finite_differences_of_the_slow_losses() -> None:
    image, text = _features(5)
    scale, bias = torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)
    cases: list[tuple[Any, Any, list[Tensor]]] = [
        (clip_loss, lambda *x: sum(slow_clip(*x)) / 2, [image, text, scale]),
        (siglip_loss, lambda *x: sum(slow_siglip(*x)), [image, text, scale, bias]),
    ]
    for loss, slow, values in cases:
        leaves = [value.clone().requires_grad_() for value in values]
        loss(*leaves).total.backward()
        for position, leaf in enumerate(leaves):
            expected = _finite_differences(slow, [value.numpy() for value in values], position)
            np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=1e-8)  # type: ignore[union-attr]


def _finite_differences(function: Any, values: list[np.ndarray], position: int, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros_like(values[position])
    for index in np.ndindex(gradient.shape):
        ends = []
        for sign in (1, -1):
            moved = [value.copy() for value in values]
            moved[position][index] += sign * step
            ends.append(function(*moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


# ------------------------------------------------------------------------------------------------------- chance


def test_clip_chance_is_the_loss_of_features_that_know_nothing() -> None:
    image, text = _features(512, width=256)
    losses = clip_loss(image, text, torch.tensor(1.0))
    for name, term in losses.terms.items():
        assert losses.chance[name] == math.log(512)
        assert term.item() == pytest.approx(losses.chance[name], abs=0.02)


def test_siglip_chance_is_the_best_constant() -> None:
    image, text = _features(512, width=256)
    biases = torch.linspace(-7.5, -5, 126, dtype=torch.float64)
    losses = [siglip_loss(image, text, torch.tensor(0.0), bias) for bias in biases]
    assert min(loss.total.item() for loss in losses) == pytest.approx(losses[0].chance["total"], abs=1e-4)
    assert biases[int(torch.stack([loss.total for loss in losses]).argmin())] == pytest.approx(-math.log(511), abs=0.02)


# ------------------------------------------------------------------------------------------- chunks of other ranks


@pytest.mark.parametrize("rows", [1024, 1, 2])
def test_siglip_round_all_ranks_and_in_pieces_equals_dense(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks: the mean of their losses, and of their gradients, is the dense loss'. An outer factor reaches the gradients."""
    values = [*_features(6), torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)]
    dense = [value.clone().requires_grad_() for value in values]
    expected = siglip_loss(*dense)
    (2 * expected.total).backward()
    copies = [[value.clone().requires_grad_() for value in values] for _ in range(3)]
    monkeypatch.setattr(siglip_objective, "ROWS", rows)
    pieces = [value.clone().requires_grad_() for value in values]
    (2 * siglip_loss(*pieces).total).backward()
    for mine, reference in zip(pieces, dense, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, atol=1e-12, rtol=0)

    def work(rank: int) -> Losses:
        own = slice(2 * rank, 2 * rank + 2)
        image, text, scale, bias = copies[rank]
        losses = siglip_loss(image[own], text[own], scale, bias)
        (2 * losses.total).backward()
        return losses

    losses = threads(monkeypatch, work, world=3)
    for name, term in {"total": expected.total, **expected.terms}.items():
        mean = torch.stack([one.total if name == "total" else one.terms[name] for one in losses]).mean()
        assert mean.item() == pytest.approx(term.item(), abs=1e-12), name
    assert {loss.chance["total"] for loss in losses} == {expected.chance["total"]}
    for *mine, reference in zip(*copies, dense, strict=True):
        torch.testing.assert_close(sum(one.grad for one in mine) / 3, reference.grad, atol=1e-12, rtol=0)


def test_siglips_memory_does_not_grow_with_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 pairs on each of 2 and of 8 ranks: at most some chunks of logits at once, and after the forward pass none."""

    def work(_: int) -> tuple[int, int]:
        image, text = (torch.randn(64, 4, requires_grad=True) for _ in range(2))
        with Memory() as memory:
            losses = siglip_loss(image, text, torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True))
            return memory.peak, memory.live if losses.total.requires_grad else 0

    few, many = (threads(monkeypatch, work, world=world) for world in (2, 8))
    logits = 4 * 64 * 64
    assert max(peak for peak, _ in many) < 1.1 * max(peak for peak, _ in few)
    assert max(live for _, live in many) < logits / 2


def test_siglips_memory_is_linear_in_a_ranks_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siglip_objective, "ROWS", 16)

    def work(pairs: int) -> int:
        image, text = (torch.randn(pairs, 4, requires_grad=True) for _ in range(2))
        with Memory() as memory:
            siglip_loss(image, text, torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True))
            return memory.peak

    few, many = (max(threads(monkeypatch, lambda _, pairs=pairs: work(pairs))) for pairs in (64, 512))
    assert many < 1.1 * few * 512 / 64


def test_siglip_with_a_softmax_is_clip_on_siglips_features() -> None:
    batch = _batch("siglip")
    config = replace(_model("siglip").config, loss="softmax")
    model = SigLIP(config, tokenizer(pad=0, end=99))  # type: ignore[arg-type]
    features = model.encode(batch)
    expected = clip_loss(features["image"], features["text"], model.logit_scale.exp())
    losses = model.objective(features)
    assert losses.total.item() == expected.total.item()
    assert losses.chance == expected.chance
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["logit_bias"]


# ------------------------------------------------------------------------------------- micro-batches and processes


DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_equal_the_full_batch(name: str, micro_batch: int, dtype: torch.dtype) -> None:
    expected = _gradients(name, _batch(name), micro_batch=None, dtype=dtype)
    found = _gradients(name, _batch(name), micro_batch=micro_batch, dtype=dtype)
    _assert_equal(found, expected)


def test_micro_batches_with_features_that_have_no_gradient() -> None:
    """What a frozen tower or a label hands to the objective, and a feature that the objective leaves alone."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trained = torch.nn.Linear(3, 4)
            self.frozen = torch.nn.Linear(3, 4).requires_grad_(False)

        def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            x = batch["x"]
            return {"trained": self.trained(x), "frozen": self.frozen(x), "label": batch["label"], "unused": self.trained(2 * x)}

        def objective(self, features: dict[str, Tensor]) -> Losses:
            return Losses(F.cross_entropy(features["trained"] @ features["frozen"].T, features["label"]), {}, {})

    batch = {"x": torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), "label": torch.tensor([1, 0, 3, 4, 2])}
    gradients = []
    for micro_batch in (None, 2):
        model = Model()
        backward(model, batch, micro_batch=micro_batch, autocast=contextlib.nullcontext())
        gradients.append(model.trained.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


TWO_PROCESSES = list(itertools.product(["clip", "siglip"], [None, 3], DTYPES))  # model, micro-batch, arithmetic


def test_two_processes_equal_one(tmp_path: Path) -> None:
    on_ranks(_rank, tmp_path)
    for name, micro_batch, dtype in TWO_PROCESSES:
        expected = _gradients(name, _batch(name), micro_batch=None, dtype=dtype)
        first, second = (load_file(tmp_path / f"{name}-{micro_batch}-{dtype}-{rank}.safetensors") for rank in range(2))
        _assert_equal(first, expected)
        assert all(torch.equal(first[key], second[key]) for key in first)


def _rank(rank: int, folder: Path) -> None:
    """One of two processes, each with its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for name, micro_batch, dtype in TWO_PROCESSES:
        batch = {key: rows[half] for key, rows in _batch(name).items()}
        gradients = _gradients(name, batch, micro_batch=micro_batch, dtype=dtype)
        save_file(gradients, folder / f"{name}-{micro_batch}-{dtype}-{rank}.safetensors")
    dist.destroy_process_group()


def _gradients(name: str, batch: dict[str, Tensor], *, micro_batch: int | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the optimiser would see. The loss is included: it is the mean over ranks of what each of them computed."""
    model = _model(name).to(dtype)
    with patch.object(Tensor, "float", lambda x: x.to(dtype)):  # the models' way out of autocast; in double it would round
        losses = backward(
            model,
            batch,
            micro_batch=micro_batch,
            autocast=contextlib.nullcontext(),
            passes=replicated(model) if dist.is_initialized() else None,
        )
    total = losses.total.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return {"total": total} | {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert {"logit_scale", "visual.patch_embed.proj.weight", "text.tokens.weight"} <= found.keys()
    if expected["total"].dtype == torch.float64:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0, msg=lambda message, name=name: f"{name}: {message}")
        return
    # Gradients of these models have entries up to 5, where float32 itself resolves no better than 5e-7.
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in expected.values()))
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm().item() / norm
        assert difference <= 1e-6, f"{name}: {difference:.2e} of the gradient's norm"


def _model(name: str) -> CLIP | SigLIP:
    """The same in every process."""
    torch.manual_seed(0)
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=16, patch_size=8, pool="map" if name == "siglip" else "token")
    text = TransformerConfig(width=24, depth=1, heads=2)
    model: CLIP | SigLIP
    if name == "clip":
        model = CLIP(CLIPConfig(vision=vision, text=text, embed_dim=16, context=BATCH + 2, vocab_size=100), tokenizer(pad=0, end=99))
    else:
        model = SigLIP(SigLIPConfig(vision=vision, text=text, context=BATCH + 2, vocab_size=100, bias=-2.0), tokenizer(pad=0, end=99))
    randomise(model, 0)
    return model


def _batch(name: str) -> dict[str, Tensor]:
    return {"pixels": pictures(BATCH, 16), "ids": texts(BATCH, BATCH + 2, pad=0, end=99)}


def _features(count: int, width: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    return image, text
