"""Training batches from a split held in memory: decoded once, shuffled exactly, in the same order for any number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from data.decode import Members, Tally, decode, read_shard
from data.sample import Sample
from data.shards import DataError, Split

JPEG_EXPANSION = 10  # decoded bytes per byte of shard, assumed without an index

Collate = Callable[[list[Sample], np.random.Generator], dict[str, torch.Tensor]]


class MemoryBatches(IterableDataset[Any]):
    """Endless batches: the permutations of all epochs, concatenated and cut into global batches of `batch_size * world` samples;
    each rank takes its slice. So every sample occurs once per epoch over all ranks; a batch may span two epochs.
    """

    def __init__(
        self, samples: list[Sample], *, batch_size: int, collate: Collate, seed: int, rank: int, world: int, state: dict[str, Any] | None
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.collate = collate
        self.seed = seed
        self.rank = rank
        self.step = batch_size * world
        self.seen = state["seen"] if state else 0  # by all ranks together
        self.permutation: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self.packed: tuple[torch.Tensor, list[Sample], list[tuple[int, ...]]] | None = None
        if state and state["samples"] != len(samples):
            raise DataError(
                f"the saved position is in a set of {state['samples']} samples, this one has {len(samples)}: "
                "the data changed since. Start a new run, or bring the old shards back"
            )

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], int, dict[int, Tally]]]:
        """Yields batch, samples seen after it, and an empty tally: drops were counted before. Several workers make the batches in turn."""
        worker, start = get_worker_info(), self.seen
        for index in itertools.count(worker.id if worker else 0, worker.num_workers if worker else 1):
            first = start + index * self.step
            mine = first + self.rank * self.batch_size
            samples = [self._sample_at(position) for position in range(mine, mine + self.batch_size)]
            yield self.collate(samples, np.random.default_rng([self.seed, self.rank, first // self.step])), first + self.step, {}

    def advance(self, seen: int) -> None:
        self.seen = seen

    def state(self) -> dict[str, Any]:
        return {"kind": "memory", "seen": self.seen, "samples": len(self.samples)}

    @property
    def epoch(self) -> int:
        return self.seen // len(self.samples)

    def _sample_at(self, position: int) -> Sample:
        epoch, offset = divmod(position, len(self.samples))
        if epoch != self.permutation[0]:
            self.permutation = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.samples)))
        return self.samples[self.permutation[1][offset]]

    def __getstate__(self) -> dict[str, Any]:
        """Spawned workers get the pixels as one shared tensor; pickled arrays would be a copy for each worker."""
        if self.packed is None:
            images = [image for sample in self.samples for image in sample.images]
            pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).share_memory_()
            nothing = np.empty(0, np.uint8)
            samples = [replace(sample, image=nothing, others=(nothing,) * len(sample.others)) for sample in self.samples]
            self.packed = (pixels, samples, [image.shape for image in images])
            self._unpack()  # or this process would hold the pixels twice
        return self.__dict__ | {"samples": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unpack()

    def _unpack(self) -> None:
        assert self.packed is not None
        pixels, samples, shapes = self.packed
        flat = np.split(pixels.numpy(), np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        images = (image.reshape(shape) for image, shape in zip(flat, shapes, strict=True))
        self.samples = [replace(each, image=next(images), others=tuple(next(images) for _ in each.others)) for each in samples]


def fits(split: Split, budget: int) -> bool:
    """Whether the decoded images of a split stay within `budget` bytes; estimated from the size of the tars without an index."""
    if split.decoded_bytes is not None:
        return split.decoded_bytes <= budget
    if not all(url.startswith("/") for url in split.urls):
        return False
    return sum(Path(url).stat().st_size for url in split.to_read) * JPEG_EXPANSION <= budget


def load(split: Split, *, needs: Collection[str], tally: Tally, max_drop_share: float, budget: int, threads: int = 0) -> list[Sample]:
    """All usable samples of a split in key order. Raises DataError if there are none, if too many were dropped, or if they take more
    than twice the `budget` that `fits` expected."""
    samples = []
    left = 2 * budget
    for sample in decoded(split, needs=needs, tally=tally, threads=threads):
        samples.append(sample)
        left -= sample.decoded_bytes
        if left < 0:
            raise DataError(
                f"the pictures of {split.name}/{split.split} take more than {2 * budget / 1e9:.1f} GB decoded, many times the size of the "
                "tars: `make check-data DATA=...` writes an index.json with their size, by which they are streamed"
            )
    tally.check(max_drop_share, f"{split.name}/{split.split}")
    return sorted(samples, key=lambda sample: sample.key)  # stable: equal keys stay in the order of their shards


def decoded(split: Split, *, needs: Collection[str], tally: Tally, threads: int = 0) -> Iterator[Sample]:
    """Every usable sample by shard, then by position in it. Threads help because PIL decodes outside the interpreter lock."""

    def decode_one(members: Members) -> tuple[Sample | None, Tally]:
        own = Tally()
        return decode(members, needs, own), own

    raw = (members for url in split.to_read for members in read_shard(url, tally, split.kept(url)))
    if threads < 2:
        yield from (sample for members in raw if (sample := decode(members, needs, tally)) is not None)
        return
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(raw, 64 * threads)):
            for sample, own in pool.map(decode_one, chunk):
                tally.add(own)
                if sample is not None:
                    yield sample
