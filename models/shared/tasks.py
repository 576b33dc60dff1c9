"""Mixtures of tasks: what a sample is used for, drawn by weight from the tasks that its annotations allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from data.sample import Sample

Made = TypeVar("Made")
Draw = np.random.Generator


def drawn(
    sample: Sample, rng: Draw, mixture: Mapping[str, float], tasks: Mapping[str, Callable[[Sample, Draw], Made | None]]
) -> tuple[str, Made] | None:
    """A task of the mixture (name -> weight) with what it makes of the sample; None if it can be used for none. A task that the sample's
    annotations do not allow makes None, and another one is drawn."""
    left = dict(mixture)
    while left:
        names = sorted(left)
        weights = np.array([left[name] for name in names], float)
        task = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        made = tasks[task](sample, rng)
        if made is not None:
            return task, made
        del left[task]
    return None
