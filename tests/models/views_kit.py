"""What the tests of SLIP, CLIP-rocket and DeCLIP share: small models in double precision, batches of views, and gradients by name."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip.projector import BatchNorm
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes.train.step import backward
from tests.models.kit import pictures, randomise, texts, tokenizer
from tests.recipes.ranks import on_ranks

BATCH, CONTEXT = 6, 10
SMALL: dict[str, Any] = {
    "vision": VisionConfig(width=32, depth=1, heads=2, image_size=32, patch_size=8),
    "text": TransformerConfig(width=24, depth=1, heads=2),
    "embed_dim": 16,
    "context": CONTEXT,
    "vocab_size": 100,
}
Gradients = dict[str, Tensor]


def build(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config, tokenizer(pad=0, end=99))
    randomise(model, 1)
    return model.double()


@contextlib.contextmanager
def double() -> Iterator[None]:
    """The models' way out of autocast would round."""
    with patch.object(Tensor, "float", lambda x: x.double()):
        yield


def batch(size: int = BATCH) -> dict[str, Tensor]:
    """CLIP's batch and two smaller views."""
    pairs = {"pixels": pictures(size, 32, 2), "ids": texts(size, CONTEXT, pad=0, end=99)}
    return pairs | {name: pictures(size, 16, seed) for seed, name in enumerate(("view1", "view2"), 3)}


def gradients(model: nn.Module) -> Gradients:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def step(model: Any, rows: dict[str, Tensor], micro_batch: int | None = None) -> tuple[dict[str, Tensor], Gradients]:
    """Losses by name and gradients."""
    model.zero_grad()
    with double():
        losses = backward(model, rows, micro_batch=micro_batch, autocast=contextlib.nullcontext())
    return {"total": losses.total.detach()} | {name: term.detach() for name, term in losses.terms.items()}, gradients(model)


def assert_equal(found: tuple[dict[str, Tensor], Gradients], expected: tuple[dict[str, Tensor], Gradients]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_learns(model: nn.Module, found: Gradients, *, but: tuple[str, ...] = ()) -> None:
    """Everything that is trained has a gradient to compare. A bias in front of BatchNorm has none to speak of: the mean takes it away."""
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert found.keys() == trained
    silent = {name for name, gradient in found.items() if gradient.abs().max() < 1e-7}
    assert silent == set(but)


def before_norms(head: nn.Sequential, name: str) -> set[str]:
    """Names of the biases of a head's linear layers that BatchNorm follows."""
    follow = zip(head, [*head, None][1:], strict=False)
    return {
        f"{name}.{place}.bias"
        for place, (layer, after) in enumerate(follow)
        if isinstance(layer, nn.Linear) and isinstance(after, BatchNorm)
    }


def assert_exact_in_parts(model: Any, rows: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    """Micro-batches of 1 and 4, and two ranks, have the losses and gradients of the whole batch."""
    whole = step(model, rows)
    for size in (1, 4):
        assert_equal(step(model, rows, size), whole)
    assert_equal(two_ranks(model, rows, patch), whole)


def two_ranks(model: Any, rows: dict[str, Tensor], patch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], Gradients]:
    """Means over two ranks, each with half of the batch."""
    copies, half = [copy.deepcopy(model) for _ in range(2)], len(rows["ids"]) // 2

    def work(rank: int) -> Any:
        mine = {name: values[rank * half : (rank + 1) * half] for name, values in rows.items()}
        losses = backward(copies[rank], mine, micro_batch=None, autocast=contextlib.nullcontext())
        return {"total": losses.total.detach()} | {name: term.detach() for name, term in losses.terms.items()}, gradients(copies[rank])

    for each in copies:
        each.zero_grad()
    with double():  # once for both threads
        one, two = on_ranks(patch, work)
    first, second = ({name: (value + two[part][name]) / 2 for name, value in one[part].items()} for part in range(2))
    return first, second


# ------------------------------------------------------------------------------------------------- slow derivations


def slow_mlp(head: nn.Sequential, x: Tensor) -> Tensor:
    """A head by torch's own layers, in training mode, from its parameters in order."""
    for layer in head:
        if isinstance(layer, BatchNorm):
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + layer.bias
        else:
            x = x.clamp(min=0)
    return x


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def slow_clip(image: Tensor, text: Tensor, scale: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pair, one at a time: (image to text, text to image)."""
    n, found = len(image), []
    for rows, columns in ((image, text), (text, image)):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(n):
            logits = torch.stack([scale * (rows[i] * columns[j]).sum() for j in range(n)])
            log_p = logits - torch.log(torch.exp(logits).sum())
            total = total - sum(((1 - smoothing) * (i == j) + smoothing / n) * log_p[j] for j in range(n))
        found.append(total / n)
    return found[0], found[1]
