"""Relative representations: represent an input by its similarities to n anchors (ASIF, section 2; arXiv 2209.15430).

    r(x) = x . a_i for the k anchors that are most similar, 0 for all others; raised to the power p; of unit length

Two rules are not needed in the paper, whose k nearest of 1.6 M anchors always have positive similarity. Anchors with a negative product
are set to 0 for any p: an even power would make them positive, a fractional one NaN. Ties go to the earlier anchor.

Anchors are multiplied in blocks that begin at the same anchors whatever the chunk: the order in which a product is summed, and so every bit
of it, does not depend on how many anchors are compared at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4096  # anchors in one matrix product
CHUNK = 2 * BLOCK  # anchors between two selections: a million are never in one matrix
ROWS = 512  # of which the products with a block of anchors are in memory
COLUMNS = 16  # rows of one side that are compared at a time with all of the other


class Relative(NamedTuple):
    """Representations of N things, `k` numbers each: which anchors int64 `[N, k]`, nearest first, and their weights float32 `[N, k]`,
    of unit length, or all 0 where no anchor is similar."""

    anchors: Tensor
    weights: Tensor

    def dense(self, n: int) -> Tensor:
        """`[N, n]` over all n anchors."""
        return self.weights.new_zeros(len(self.weights), n).scatter_(1, self.anchors, self.weights)


def relative(x: Tensor, anchors: Tensor, *, k: int, p: float, chunk: int = CHUNK) -> Relative:
    """Of absolute vectors x `[N, D]` and anchors `[n, D]`, all of unit length (or 0). With k > n all anchors are used. `chunk` is
    rounded up to whole blocks."""
    chunk = BLOCK * math.ceil(chunk / BLOCK)
    keys = torch.cat([_nearest(part, anchors, k, chunk) for part in x.split(ROWS)])
    lower, similarity = _halves(keys)
    largest = similarity.amax(dim=1, keepdim=True) if len(anchors) else similarity
    weights = (similarity / largest.clamp(min=torch.finfo(torch.float32).tiny)) ** p  # relative to the largest: no power underflows
    return Relative((-1 - lower).long(), F.normalize(weights, dim=1))


def products(one: Relative, other: Relative, n: int) -> Tensor:
    """The score of every pair, `[N, M]`: of the `n` anchors only those that the other side has are read."""
    if not n:
        return one.weights.new_zeros(len(one.weights), len(other.weights))
    found = [one.weights.new_empty(0, len(other.weights))]
    for part in rows(one, COLUMNS):
        table = one.weights.new_zeros(n, COLUMNS)  # every part has this many columns, so that all are summed alike
        table[part.anchors, torch.arange(len(part.anchors), device=table.device)[:, None]] = part.weights
        scores = F.embedding_bag(other.anchors, table, per_sample_weights=other.weights, mode="sum")  # [M, COLUMNS]
        found.append(scores.T[: len(part.anchors)])
    return torch.cat(found)


def rows(each: Relative, size: int) -> Iterator[Relative]:
    """In parts of `size` rows."""
    for start in range(0, len(each.weights), size):
        yield Relative(each.anchors[start : start + size], each.weights[start : start + size])


def _nearest(x: Tensor, anchors: Tensor, k: int, chunk: int) -> Tensor:
    """Keys of the k nearest anchors of every row, `[N, k]` or `[N, n]`, nearest first.

    Keys are distinct integers in the order of the products, which are their upper half; of equal products, the earlier anchor's is larger.
    Negative products count as 0, so that their bits have the order of their values.
    """
    n, best = len(anchors), torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    room = best.new_empty(len(x), min(n, k + chunk))
    lower, upper = _halves(room)
    for start in range(0, n, chunk):
        kept, end = best.shape[1], min(start + chunk, n)
        room[:, :kept] = best
        for first in range(start, end, BLOCK):
            products = x @ anchors[first : first + BLOCK].T
            here = slice(kept + first - start, kept + first - start + products.shape[1])
            torch.clamp(products, min=0, out=upper[:, here])
            lower[:, here] = -1 - torch.arange(first, first + products.shape[1], dtype=torch.int32, device=x.device)
        best = room[:, : kept + end - start].topk(min(k, kept + end - start), sorted=end == n).values
    return best


def _halves(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Views of int64 keys `[N, c]`: -1 - anchor as int32, and the product as float32."""
    halves = keys.view(torch.int32)  # the lower one first in memory
    return halves[:, ::2], halves[:, 1::2].view(torch.float32)
