"""The samples of an evaluation, held in memory: the splits of one data set, each in key order.

Memory: the decoded pictures of all evaluated splits (height x width x 3 bytes each; 2,000 of 256 px are 0.4 GB). Import with
`--size` when a test set is larger than that allows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.loader import MEMORY_BUDGET, in_order
from data.sample import Sample, to_record
from data.shards import Split, find, splits
from data.texts import texts
from eval import EvalError

if TYPE_CHECKING:  # data can be looked at without waiting for torch
    from eval.judges.clipscore import NamedCLIP
    from eval.judges.vqascore import Judge

T = TypeVar("T")
SHIFTS = ("heldout", "style")


@dataclass(eq=False)
class Source:
    """`streams[split]()` yields that split's samples in key order; `classes` are the class names, if declared; `shards` are the splits
    on disk."""

    name: str
    streams: dict[str, Callable[[], Iterable[Sample]]]
    classes: tuple[str, ...] | None = None
    limit: int | None = None
    shards: dict[str, Split] = field(default_factory=dict)
    clip: NamedCLIP | None = None  # judges how well texts fit pictures (CLIPScore)
    judge: Judge | None = None  # judges whether pictures show what texts say (VQAScore)
    _held: dict[str, list[Sample]] = field(default_factory=dict)
    _begun: dict[str, list[Sample]] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        """The main split: test, else val, else the only split."""
        for split in ("test", "val"):
            if split in self.streams:
                return split
        if len(self.streams) != 1:
            raise EvalError(f"{self.name}: expected a split named test or val, found {sorted(self.streams)}; name one split in --data")
        return next(iter(self.streams))

    @property
    def shifts(self) -> list[str]:
        return [split for split in SHIFTS if split in self.streams and split != self.primary]

    @property
    def evaluated(self) -> list[str]:
        return [self.primary, *self.shifts]

    def beginning(self, split: str, most: int) -> list[Sample]:
        """The first `most` samples of a split that is not evaluated, such as train; read once."""
        if len(self._begun.get(split, ())) < most:
            self._begun[split] = list(islice(self.streams[split](), most))
        return self._begun[split][:most]

    def captions(self, split: str, most: int) -> list[str]:
        """The captions of the first `most` samples of a split; on disk, its pictures are not decoded."""
        if split in self.shards:
            return list(texts(self.shards[split], most))
        return [text for sample in islice(self.streams[split](), most) for text in sample.captions]

    def samples(self, split: str) -> list[Sample]:
        """All samples of a split, or `limit` of them, evenly spread (a class-folder set is sorted by class), with their partners."""
        if split not in self._held:
            found = list(self.streams[split]())
            if not found:
                raise EvalError(f"{self.name}: split {split!r} has no usable samples; look at it with `make check-data DATA=...`")
            chosen = set(spread(list(range(len(found))), self.limit))
            kept = sorted(row for group in together(found) if chosen & set(group) for row in group)
            self._held[split] = [found[row] for row in kept]
        return self._held[split]

    def fingerprint(self, split: str) -> str:
        """Hash of everything in the split's samples, pixels included."""
        digest = hashlib.sha256()
        for sample in self.samples(split):
            digest.update(json.dumps([sample.key, sample.image.shape, to_record(sample)], sort_keys=True).encode())
            digest.update(sample.image.tobytes())
        return digest.hexdigest()


def in_memory(name: str, splits: dict[str, list[Sample]], classes: tuple[str, ...] | None = None, limit: int | None = None) -> Source:
    return Source(name, {split: partial(iter, samples) for split, samples in splits.items()}, classes, limit)


def from_shards(spec: str | Path, limit: int | None = None) -> Source:
    """The data set at `spec`, anything that `data.shards.find` understands."""
    found = {name: find(spec, name) for name in splits(spec)}
    if not found:
        raise EvalError(f"{spec}: no splits here; expected a data set folder such as .data/scenes-tiny (written by `make data`)")

    def stream(name: str) -> Callable[[], Iterable[Sample]]:
        # Only the beginning of train is read, so it is streamed; evaluated splits are in key order.
        budget = 0 if name == "train" else MEMORY_BUDGET
        return lambda: (sample for batch in in_order(found[name], batch_size=64, memory_budget=budget) for sample in batch)

    one = next(iter(found.values()))
    return Source(one.name, {name: stream(name) for name in found}, one.classes, limit, found)


def together(samples: Sequence[Sample]) -> list[list[int]]:
    """Groups of sample indices: partners together (`extra["pair"]` holds the partner's key, in both), all others alone."""
    number = {sample.key: row for row, sample in enumerate(samples)}
    named = [number.get(str(sample.extra.get("pair")), row) for row, sample in enumerate(samples)]
    partner = [other if named[other] == row else row for row, other in enumerate(named)]
    return [[row] if row == other else [row, other] for row, other in enumerate(partner) if row <= other]


def spread(items: list[T], most: int | None) -> list[T]:
    """At most `most` of the items, evenly spaced, in order."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
