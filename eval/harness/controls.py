"""Controls: the untrained model, and images shuffled between samples.

Chance is computed exactly by each task (`Task.chance`). The oracle is in eval/scenes/oracle.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import models
from data.sample import Sample
from eval.harness.source import together


def derangement(n: int, seed: int = 0) -> list[int]:
    """A random permutation of range(n) without fixed points (a single cycle). Requires n >= 2."""
    if n < 2:
        raise ValueError(f"cannot derange {n} item(s): shuffling images needs at least two samples")
    order = np.random.default_rng(seed).permutation(n)
    where = np.empty(n, np.int64)
    where[order] = np.roll(order, -1)
    return [int(i) for i in where]


def exchanged(samples: Sequence[Sample], seed: int = 0) -> list[int]:
    """For each sample the index of the sample whose image replaces its own, never itself or its partner.

    The two images of a pair are replaced by those of another pair. Requires at least two samples that are not partners.
    """
    groups = together(samples)
    other = [0] * len(samples)
    for group, place in zip(groups, derangement(len(groups), seed), strict=True):
        for position, row in enumerate(group):
            other[row] = groups[place][position % len(groups[place])]
    return other


def untrained(folder: Path, device: str, seed: int = 0) -> nn.Module:
    """The model of a run folder, freshly initialised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # constructors draw from the global generator; its state is restored
        return models.load(folder, device, weights=False)
