"""Relative representations: represent an input by its similarities to n anchors (ASIF, section 2; arXiv 2209.15430).

    r(x) = x . a_i for the k anchors that are most similar, 0 for all others; raised to the power p; of unit length

Two rules are not needed in the paper, whose k nearest of 1.6 M anchors always have positive similarity. Anchors with a negative product
are set to 0 for any p: an even power would make them positive, a fractional one NaN. Ties go to the earlier anchor.

Products are summed in float64 and rounded to float32, so that they do not depend on the chunk size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16_384  # anchors compared at a time: a million are never in one matrix
LAST = 0xFFFFFFFF


class Relative(NamedTuple):
    """Representations of N things, `k` numbers each: which anchors int64 `[N, k]`, nearest first, and their weights float32 `[N, k]`,
    of unit length, or all 0 where no anchor is similar."""

    anchors: Tensor
    weights: Tensor

    def dense(self, n: int) -> Tensor:
        """`[N, n]` over all n anchors."""
        return self.weights.new_zeros(len(self.weights), n).scatter_(1, self.anchors, self.weights)


def relative(x: Tensor, anchors: Tensor, *, k: int, p: float, chunk: int = CHUNK) -> Relative:
    """Of absolute vectors x `[N, D]` and anchors `[n, D]`, all of unit length (or 0). With k > n all anchors are used."""
    keys = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for start in range(0, len(anchors), chunk):
        products = (x.double() @ anchors[start : start + chunk].double().T).float()
        keys = torch.cat([keys, _keys(products, start)], dim=1)
        keys = keys.topk(min(k, keys.shape[1])).values  # [N, <= k]
    similarity = _similarity(keys).clamp(min=0)
    largest = similarity.amax(dim=1, keepdim=True) if len(anchors) else similarity
    weights = (similarity / largest.clamp(min=torch.finfo(torch.float32).tiny)) ** p  # relative to the largest: no power underflows
    return Relative(LAST - (keys & LAST), F.normalize(weights, dim=1))


def products(one: Relative, other: Relative, n: int, *, chunk: int = CHUNK) -> Tensor:
    """The score of every pair, `[N, M]`, without a matrix over all n anchors."""
    found = one.weights.new_zeros(len(one.weights), len(other.weights))
    for start in range(0, n, chunk):
        a, b = (_part(each, start, min(chunk, n - start)) for each in (one, other))
        found += a @ b.T
    return found


def rows(each: Relative, size: int) -> Iterator[Relative]:
    """In parts of `size` rows."""
    for start in range(0, len(each.weights), size):
        yield Relative(each.anchors[start : start + size], each.weights[start : start + size])


def _part(each: Relative, start: int, size: int) -> Tensor:
    """Columns of the dense form, `[N, size]`. What lies outside of them falls into one more column, which is dropped."""
    places = each.anchors - start
    inside = (places >= 0) & (places < size)
    return Relative(places.where(inside, size), each.weights * inside).dense(size + 1)[:, :size]


def _keys(products: Tensor, start: int) -> Tensor:
    """Distinct integers in the order of float32 `[N, c]`; of equals the first is larger. They hold the product and the anchor."""
    bits = (products + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats below 0 have their bits in the opposite order
    places = torch.arange(start, start + products.shape[1], device=products.device)
    return (ordered.long() << 32) | (LAST - places)


def _similarity(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
