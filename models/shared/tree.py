"""Score many texts about one image with tree attention, which computes common prefixes only once.

In a causal model the state of a token depends only on the tokens before it, so sequences share the states of their common prefixes. The
distinct prefixes of a group of sequences are the nodes of a tree, which is processed as one sequence in which each node attends only to
itself and its ancestors (tree attention: SpecInfer, Miao et al., 2023, arXiv 2305.09781, section 4). Results equal those of separate
sequences up to rounding errors.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.contract import IGNORE_INDEX

PLACES = 2048  # maximum number of nodes per forward pass, padding included; a larger tree gets a pass of its own
FEWEST, ALIKE = 256, 0.9  # beyond this number of nodes, only trees with this share of the largest one's nodes join: padding costs time


@dataclass(frozen=True)
class Forest:
    """A batch of trees, one per group of sequences. Parents precede their children; trees are padded on the right to T nodes."""

    groups: list[int]
    """`[G]`, the group of each tree"""
    tokens: list[list[Any]]
    """token of each node, without padding"""
    sees: Tensor
    """bool `[G, T, T]`, True where a node attends: at itself and its ancestors"""
    depths: Tensor
    """int64 `[G, T]`, number of ancestors of each node; 0 for padding"""
    sequences: list[int]
    """indices of the n sequences in this batch"""
    nodes: list[list[int]]
    """for each sequence the nodes of its tokens, as indices into all `G * T` nodes"""

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Attention bias `[G, 1, T, T]`: 0 where a node attends, otherwise the smallest number of the dtype."""
        return torch.zeros(self.sees.shape, dtype=dtype).masked_fill_(~self.sees, torch.finfo(dtype).min)[:, None]

    def log_likelihoods(self, logits: Tensor, following: Tensor) -> Tensor:
        """Logits `[G, T, V]` of what follows each node -> log p in nats, summed over each sequence's tokens `[n]`. `following`
        int64 `[n, L]` is what comes after each of a sequence's tokens; `IGNORE_INDEX` is not counted. Logits may be those of the last
        nodes only, `[G, T - n, V]`, where nothing is asked after the others: see `unasked`."""
        device = logits.device
        size, kept = self.depths.shape[1], logits.shape[1]
        read = torch.zeros(following.shape, dtype=torch.long, device=device)
        for row, path in zip(read, self.nodes, strict=True):
            row[: len(path)] = torch.tensor(path, device=device)
        asked = following != IGNORE_INDEX
        log_p = logits.float().log_softmax(dim=-1)
        each = torch.zeros(following.shape, device=device)
        each[asked] = log_p[read[asked] // size, read[asked] % size - (size - kept), following[asked]]
        return each.sum(dim=1)

    def unasked(self, following: Tensor) -> int:
        """How many of the first nodes of every tree nothing is asked after, for `log_likelihoods`: those of an image, above all."""
        size = self.depths.shape[1]
        places = (following != IGNORE_INDEX).nonzero().tolist()
        return min((self.nodes[row][place] % size for row, place in places), default=0)


def forests(sequences: Sequence[Sequence[Hashable]], groups: Sequence[int]) -> Iterator[Forest]:
    """Build the trees of sequences, where the i-th sequence belongs to group `groups[i]`. Batches have trees of similar size and at most
    `PLACES` nodes."""
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    trees = {group: _Tree([sequences[number] for number in numbers]) for group, numbers in members.items()}
    order = sorted(trees, key=lambda group: -len(trees[group].tokens))
    while order:
        size = max(1, len(trees[order[0]].tokens))
        alike = sum(len(trees[group].tokens) >= ALIKE * size for group in order)
        rows = max(1, min(max(alike, FEWEST // size), PLACES // size))
        together, order = order[:rows], order[rows:]
        yield _forest(together, [trees[group] for group in together], [members[group] for group in together], size)


class _Tree:
    def __init__(self, sequences: Sequence[Sequence[Hashable]]) -> None:
        self.tokens: list[Any] = []
        self.parents: list[int] = []
        self.nodes: list[list[int]] = []
        known: dict[tuple[int, Hashable], int] = {}
        for sequence in sequences:
            at, path = -1, []
            for token in sequence:
                node = known.setdefault((at, token), len(self.tokens))
                if node == len(self.tokens):
                    self.tokens.append(token)
                    self.parents.append(at)
                at = node
                path.append(at)
            self.nodes.append(path)


def _forest(groups: list[int], trees: list[_Tree], members: list[list[int]], size: int) -> Forest:
    sees, depths = np.zeros((len(trees), size, size), bool), np.zeros((len(trees), size), np.int64)
    for own, depth, tree in zip(sees, depths, trees, strict=True):
        np.fill_diagonal(own, True)  # also for padding, whose softmax would otherwise be empty
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                own[node] |= own[parent]
                depth[node] = depth[parent] + 1
    return Forest(
        groups,
        [tree.tokens for tree in trees],
        torch.from_numpy(sees),
        torch.from_numpy(depths),
        [number for numbers in members for number in numbers],
        [[place * size + node for node in path] for place, tree in enumerate(trees) for path in tree.nodes],
    )
