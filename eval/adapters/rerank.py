"""Two-stage retrieval (ALBEF, arXiv 2107.07651, section 5): embeddings select a shortlist, which the model's score re-ranks."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from eval.base.capabilities import Images, Ranker, Texts

SHORTLIST = 16


class Pairs(Protocol):
    adapter: str

    def pairs(self, images: Images, texts: Texts) -> np.ndarray: ...


class ReRanked:
    """Re-ranks the `SHORTLIST` best candidates of the first ranker by the scores of the second; all others follow in their old order.

    Only the order of the values within a row is meaningful; ties remain ties.
    """

    queries: int | None = 1  # the captions of an image are much alike, and each costs a shortlist

    def __init__(self, first: Ranker, second: Pairs) -> None:
        self.first, self.second = first, second
        self.adapter = f"{first.adapter}, the best {SHORTLIST} re-ranked by {second.adapter}"

    def prepare(self, images: Images, texts: Texts) -> None:
        self.first.prepare(images, texts)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        scores = self.first.matrix(images, texts)
        chosen = _shortlist(scores)
        found = self.second.pairs(
            [image for image, columns in zip(images, chosen, strict=True) for _ in columns], [texts[j] for row in chosen for j in row]
        )
        return _reordered(scores, chosen, found.reshape(chosen.shape))

    def by_text(self, images: Images, texts: Texts) -> np.ndarray:
        scores = self.first.by_text(images, texts)
        chosen = _shortlist(scores)
        flat = chosen.ravel()
        order = np.argsort(flat, kind="stable")  # a picture's pairs are neighbours, so it is encoded once
        found = np.empty(len(flat), np.float32)
        found[order] = self.second.pairs([images[flat[k]] for k in order], [texts[k // chosen.shape[1]] for k in order])
        return _reordered(scores, chosen, found.reshape(chosen.shape))


def _shortlist(scores: np.ndarray) -> np.ndarray:
    """Columns `[Q, K]` of the best of each row of `[Q, C]`; the first wins ties."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :SHORTLIST]


def _reordered(scores: np.ndarray, chosen: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float32 `[Q, C]`: ranks by `found` `[Q, K]`, from 1 up, where chosen; elsewhere the old scores, shifted to at most 0."""
    moved = (scores.astype(np.float64) - scores.max(axis=1, keepdims=True, initial=0.0)).astype(np.float32)
    for row, columns, values in zip(moved, chosen, found, strict=True):
        row[columns] = 1 + np.unique(values, return_inverse=True)[1]
    return moved
