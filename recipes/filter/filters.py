"""What all filters have in common: they see every sample once, and then say which to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data.fields import require
from data.sample import Sample


@dataclass
class Verdict:
    """What a filter makes of N samples: `keep`, bool `[N]`, a score for each, `[N]`, and the rule in words."""

    keep: np.ndarray
    scores: np.ndarray
    rule: str
    about: dict[str, Any] = field(default_factory=dict)


class Filter(Protocol):
    def see(self, samples: Sequence[Sample]) -> None:
        """The next samples; each is seen once, and none is kept in memory."""

    def verdict(self) -> Verdict:
        """On all samples seen, in their order. Raises ValueError where there is none."""


@dataclass(frozen=True)
class Cut:
    """Where a filter with graded scores cuts: a share of the samples to keep, or the least score."""

    share: float | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        require((self.share is None) != (self.least is None), "share, least", (self.share, self.least), "either SHARE=0.3 or --least")
        require(self.share is None or 0 < self.share <= 1, "share", self.share, "above 0, at most 1")
        require(self.least is None or math.isfinite(self.least), "least", self.least, "a finite number")

    def verdict(self, scores: np.ndarray) -> Verdict:
        """As DataComp's `get_threshold`: the least score is the one at rank int(N * share), from 0, and ties with it are kept."""
        least = self.least
        if self.share is not None:
            least = float(-np.sort(-scores)[min(int(len(scores) * self.share), len(scores) - 1)])
        assert least is not None
        rule = f"scores from {least:.4g}" + (f", the best {self.share:.0%}" if self.share is not None else "")
        return Verdict(scores >= least, scores, rule, {"share": self.share, "least": least})
