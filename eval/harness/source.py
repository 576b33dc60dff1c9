"""The samples of an evaluation, held in memory: the splits of one data set, each in key order.

Memory: the decoded images of all evaluated splits (height x width x 3 bytes each; 2,000 images of 256 px take 0.4 GB). Import a test set
that is too large with `--size`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.loader import MEMORY_BUDGET, in_order
from data.remote import REMOTE
from data.sample import Sample, to_record
from data.shards import Split, class_names, find, folders_of, prompt_templates, splits
from data.texts import texts
from eval import EvalError

if TYPE_CHECKING:  # avoids importing torch just to look at data
    from eval.judges.clipscore import NamedCLIP
    from eval.judges.vqascore import Judge

T = TypeVar("T")
SHIFTS = ("heldout", "style")


@dataclass(eq=False)
class Source:
    """The splits of a data set. `streams[split]()` yields samples in key order; `classes` are the class names, if declared; `templates` the
    data set's own prompts of a class; `shards` are the splits on disk."""

    name: str
    streams: dict[str, Callable[[], Iterable[Sample]]]
    classes: tuple[str, ...] | None = None
    limit: int | None = None
    templates: tuple[str, ...] = ()
    shards: dict[str, Split] = field(default_factory=dict)
    clip: NamedCLIP | None = None  # computes CLIPScore
    judge: Judge | None = None  # computes VQAScore
    _held: dict[str, list[Sample]] = field(default_factory=dict)
    _begun: dict[str, tuple[list[Sample], Iterator[Sample]]] = field(default_factory=dict)  # what was read, and the rest

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
        """The first `most` samples of a split that is not evaluated, such as train; cached."""
        if split not in self._begun:
            self._begun[split] = [], iter(self.streams[split]())
        read, rest = self._begun[split]
        read.extend(islice(rest, max(0, most - len(read))))
        return read[:most]

    def captions(self, split: str, most: int) -> list[str]:
        """The captions of the first `most` samples of a split; for splits on disk, images are not decoded."""
        if split in self.shards:
            return list(texts(self.shards[split], most))
        return [text for sample in islice(self.streams[split](), most) for text in sample.captions]

    def samples(self, split: str) -> list[Sample]:
        """All samples of a split, or about `limit` of them, evenly spaced (class folders are sorted by class) and with their partners."""
        if split not in self._held:
            found = list(self.streams[split]())
            if not found:
                raise EvalError(f"{self.name}: split {split!r} has no usable samples; inspect it with `make check-data DATA=...`")
            chosen = set(spread(list(range(len(found))), self.limit))
            kept = sorted(row for group in together(found) if chosen & set(group) for row in group)
            self._held[split] = [found[row] for row in kept]
        return self._held[split]

    def fingerprint(self, split: str) -> str:
        """Hash of all samples of the split, including pixels."""
        digest = hashlib.sha256()
        for sample in self.samples(split):
            digest.update(json.dumps([sample.key, sample.image.shape, to_record(sample)], sort_keys=True).encode())
            for image in sample.images:
                digest.update(image.tobytes())
        return digest.hexdigest()


def in_memory(name: str, splits: dict[str, list[Sample]], classes: tuple[str, ...] | None = None, limit: int | None = None) -> Source:
    return Source(name, {split: partial(iter, samples) for split, samples in splits.items()}, classes, limit)


def from_shards(spec: str | Path, limit: int | None = None) -> Source:
    """The data set at `spec`, anything that `data.shards.find` understands."""
    found = {name: find(spec, name) for name in splits(spec)}
    if not found:
        raise EvalError(f"{spec}: no splits found; expected a data set folder such as .data/scenes-tiny (written by `make data`)")

    def stream(name: str) -> Callable[[], Iterable[Sample]]:
        # Train is streamed, because only its beginning is read; evaluated splits are in key order.
        budget = 0 if name == "train" else MEMORY_BUDGET
        return lambda: (sample for batch in in_order(found[name], batch_size=64, memory_budget=budget) for sample in batch)

    one = next(iter(found.values()))
    source = Source(one.name, {name: stream(name) for name in found}, one.classes, limit, shards=found)
    places = folders_of(found.get("test") or found.get("val") or one)
    remote = [] if source.classes else [name for place in places if place.startswith(REMOTE) for name in class_names(place)]
    source.classes = source.classes or tuple(dict.fromkeys(filter(None, remote))) or None
    source.templates = next(filter(None, map(prompt_templates, places)), ())
    return source


def together(samples: Sequence[Sample]) -> list[list[int]]:
    """Groups of sample indices. Partners (each has the other's key in `extra["pair"]`) form a group; other samples are groups of one."""
    number = {sample.key: row for row, sample in enumerate(samples)}
    named = [number.get(str(sample.extra.get("pair")), row) for row, sample in enumerate(samples)]
    partner = [other if named[other] == row else row for row, other in enumerate(named)]
    return [[row] if row == other else [row, other] for row, other in enumerate(partner) if row <= other]


def spread(items: list[T], most: int | None) -> list[T]:
    """At most `most` evenly spaced items, in order."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
