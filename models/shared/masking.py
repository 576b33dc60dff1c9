"""Random masks of image patches and text tokens, for models that learn by reconstruction; drawn in the loader's workers.

All functions take a random generator, so the masks of a batch depend only on the seed, the rank and the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.fields import require
from models.contract import IGNORE_INDEX
from models.shared.text import LONGEST, Tokenizer


def random_mask(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mask `count` of the side x side patches, uniformly at random (SimMIM, arXiv 2111.09886). Returns bool `[side, side]`."""
    chosen = rng.permutation(side * side) < _within(count, side)
    return chosen.reshape(side, side)


def block_mask(side: int, count: int, rng: np.random.Generator, *, smallest: int = 16, aspect: float = 0.3) -> np.ndarray:
    """Mask exactly `count` patches in rectangular blocks (BEiT, arXiv 2106.08254, algorithm 1). Returns bool `[side, side]`.

    Each block has at least `smallest` patches, unless fewer are left to mask, and an aspect ratio between `aspect` and
    1 / `aspect`. Patches of the last block that would exceed `count` stay visible. Blocks are clipped to the grid.
    """
    count = _within(count, side)
    mask = np.zeros((side, side), bool)
    while (left := count - int(mask.sum())) > 0:
        area = rng.uniform(min(smallest, left), left)
        ratio = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
        height, width = (min(side, max(1, round(math.sqrt(area * scale)))) for scale in (ratio, 1 / ratio))
        top, start = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
        block = np.zeros_like(mask)
        block[top : top + height, start : start + width] = True
        mask.flat[np.flatnonzero(block & ~mask)[:left]] = True
    return mask


def _within(count: int, side: int) -> int:
    if not 0 <= count <= side * side:
        raise ValueError(f"cannot mask {count} of {side} x {side} patches; expected 0 to {side * side}")
    return count


@dataclass(frozen=True)
class TokenMasking:
    """Token masking as in BERT (arXiv 1810.04805, section 3.1). Of the selected tokens (a share of `rate`), 80 % become the mask token,
    10 % a random token and 10 % stay unchanged, so that a model cannot rely on visible tokens being correct."""

    rate: float = 0.15
    whole_words: bool = False  # select all tokens of a word together
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("rate", "mask_share", "random_share"):
            require(0 <= getattr(self, name) <= 1, f"masking.{name}", getattr(self, name), "a share from 0 to 1")
        shares = self.mask_share, self.random_share
        require(sum(shares) <= 1, "masking.mask_share, random_share", shares, "two shares with a sum of at most 1")

    def __call__(
        self, tokenizer: Tokenizer, texts: Sequence[str], context: int, *, mask: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokenise and mask texts, laid out as `[start] tokens end pad...`. Returns the original ids, the masked ids and the labels
        (`IGNORE_INDEX` for tokens that are not selected).

        All are int64 `[B, T]`, where T is the length of the longest text. At least one token of a non-empty text is selected, unless the
        rate is 0.
        """
        start = [] if tokenizer.start is None else [tokenizer.start]
        rows, hidden, labels = [], [], []
        for text in texts:
            words = self._words(tokenizer, text[:LONGEST])
            words = words[: context - len(start) - 1]
            tokens = [token for word in words for token in word][: context - len(start) - 1]
            seen, asked = self._hide(words, len(tokens), tokens, mask, tokenizer, rng)
            rows.append([*start, *tokens, tokenizer.end])
            hidden.append([*start, *seen, tokenizer.end])
            labels.append([*[IGNORE_INDEX] * len(start), *asked, IGNORE_INDEX])
        return _padded(rows, tokenizer.pad), _padded(hidden, tokenizer.pad), _padded(labels, IGNORE_INDEX)

    def _words(self, tokenizer: Tokenizer, text: str) -> list[list[int]]:
        if not self.whole_words:
            return [[token] for token in tokenizer.encode(text)]
        return [tokenizer.encode(word) for word in text.split()]

    def _hide(
        self, words: list[list[int]], length: int, tokens: list[int], mask: int, tokenizer: Tokenizer, rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        wanted = 0 if self.rate == 0 or not length else max(1, round(self.rate * length))
        ends = np.cumsum([len(word) for word in words]) if words else np.zeros(0, np.int64)
        chosen: list[int] = []
        for word in rng.permutation(len(words)):
            if len(chosen) >= wanted:
                break
            chosen += [place for place in range(int(ends[word]) - len(words[word]), int(ends[word])) if place < length]
        seen, asked = list(tokens), [IGNORE_INDEX] * length
        for place in chosen:
            asked[place] = tokens[place]
            luck = rng.random()
            if luck < self.mask_share:
                seen[place] = mask
            elif luck < self.mask_share + self.random_share:
                seen[place] = int(rng.integers(tokenizer.vocab_size))
        return seen, asked


def _padded(rows: list[list[int]], value: int) -> Tensor:
    padded = torch.full((len(rows), max(map(len, rows), default=1)), value)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return padded
