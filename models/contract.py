"""What the loop, the loader and the harness may ask of a model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IGNORE_INDEX = -100  # label of a token that is not to be predicted


class Losses(NamedTuple):
    """What a model's forward returns: the scalar to minimise, its named terms, and what a term (or "total") is at chance."""

    total: Tensor
    terms: dict[str, Tensor]
    chance: dict[str, float]
