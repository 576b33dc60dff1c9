"""What the parity tests share: random weights, random batches, and the comparison of all gradients by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from models.shared.convert import State

TOLERANCE = 1e-5


def randomise(model: nn.Module, seed: int) -> None:
    """Move every parameter away from its initial value, gains, biases and zeros included: a swapped axis must show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def tokenizer(*, pad: int, end: int) -> Any:
    """All that a model asks of its tokenizer."""
    return SimpleNamespace(pad=pad, end=end, start=None, mask=None, vocab_size=100, name="kit")


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """uint8 `[count, 3, size, size]`."""
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def texts(count: int, context: int, *, pad: int, end: int, seed: int = 1) -> Tensor:
    """Ids `[count, context]` below 90: tokens, the end, padding. The lengths differ, and one text fills the context."""
    ids = torch.randint(1, 90, (count, context), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate([context - 1, *range(2, count + 1)]):
        ids[row, length] = end
        ids[row, length + 1 :] = pad
    return ids


def assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, what
    difference = (ours - theirs).abs().max().item()
    assert difference <= TOLERANCE, f"{what} differs by {difference:.2e}"


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, convert: Callable[[State], State]) -> None:
    """Every parameter of either side has a gradient, and after conversion they are equal."""
    mine, reference = _gradients(ours), convert(_gradients(theirs))
    assert mine.keys() == reference.keys()
    for name, gradient in mine.items():
        assert gradient.abs().max() > 1e-6, f"{name}: no gradient to compare"
        assert_close(gradient, reference[name], f"gradient of {name}")


def assert_round_trip(state: Mapping[str, Tensor], there: Callable[[State], State], back: Callable[[State], State]) -> None:
    state = dict(state)
    returned = back(there(state))
    assert returned.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(returned[name], tensor), name


def _gradients(model: nn.Module) -> State:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
    return {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]
