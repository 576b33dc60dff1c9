"""The one loader: shards in, batches out. `Loader` for training, `in_order` for evaluation.

A split that fits the memory budget is decoded once and held (data/memory.py); a larger or remote one is streamed
(data/streaming.py). The promises are the same: every sample once per epoch over all ranks and workers, an exact position to
resume from, and every dropped sample counted by its reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from data.decode import Tally
from data.keep import WHOLE, digest, note_missing
from data.memory import Collate, MemoryBatches, decoded, fits, load
from data.sample import Sample
from data.shards import DataError, Split
from data.streaming import StreamBatches, deal_streams

WORKERS_WITHOUT_MEMORY = ("DataLoader worker (pid", "shared memory", "No space left", "Function not implemented", "Cannot allocate memory")
NO_MEMORY = (
    "the loader's workers ended, usually for want of shared memory ({error}). Set --workers 0, or give them more: "
    "`docker run --shm-size=8g` or --ipc=host, or a larger /dev/shm"
)
MEMORY_BUDGET = 4 << 30  # bytes of uint8 pixels


class Loader:
    """Endless training batches: what `collate(samples, rng)` returns, computed in the workers.

    batch_size: samples per batch and rank.
    collate: a picklable callable; its generator is seeded by (seed, rank, number of the batch), regardless of the worker.
    needs: fields of Sample that must not be empty; samples without one are dropped and counted.
    max_drop_share: if a larger share of the samples is dropped, the loader raises DataError.
    precompute: applied once to all samples held in memory; streamed samples go to `collate` as they are.
    state: a value returned by `state()`; batches go on right after it. Data, seed, batch size and world must be the same (see `deal`).

    Raises DataError for data that cannot be used.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        collate: Collate,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        needs: Collection[str] = ("captions",),
        memory_budget: int = MEMORY_BUDGET,
        max_drop_share: float = 0.1,
        state: dict[str, Any] | None = None,
        precompute: Callable[[Sequence[Sample]], Sequence[Sample]] | None = None,
    ) -> None:
        if batch_size < 1 or workers < 0 or not 0 <= rank < world:
            expected = "expected batch_size >= 1, workers >= 0 and 0 <= rank < world"
            raise ValueError(f"batch_size {batch_size}, workers {workers}, rank {rank} of {world}: {expected}")
        self._setting = {"seed": seed, "batch_size": batch_size, "world": world, "data": split.hash, "keep": digest(split)}
        if state:
            _compare(self._setting, state)
        self._tallies: dict[int, Tally] = {}
        self._source: MemoryBatches | StreamBatches
        if state["kind"] == "memory" if state else fits(split, memory_budget):
            self._tallies[0] = Tally()
            note_missing(split, self._tallies[0])
            options: dict[str, Any] = {"needs": needs, "max_drop_share": max_drop_share, "budget": memory_budget}
            samples = load(split, tally=self._tallies[0], threads=max(workers, 2), **options)
            samples = list(precompute(samples)) if precompute else samples
            self._source = MemoryBatches(samples, batch_size=batch_size, collate=collate, seed=seed, rank=rank, world=world, state=state)
            self.samples: int | None = len(samples)
            self.workers = workers
        else:
            self._tallies[-1] = Tally()  # beside those of the streams
            note_missing(split, self._tallies[-1])
            self._source = StreamBatches(
                split,
                batch_size=batch_size,
                collate=collate,
                seed=seed,
                rank=rank,
                world=world,
                workers=workers,
                needs=needs,
                max_drop_share=max_drop_share,
                state=state,
            )
            self.samples = split.samples
            self.workers = self._source.workers

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Continues after the last batch that was taken, also when called again."""
        for item in self._items():
            if isinstance(item, DataError):
                raise item
            batch, position, tallies = item
            self._tallies |= tallies
            self._source.advance(position)
            yield batch

    def _items(self) -> Iterator[Any]:
        """What the source yields, from the workers. Raises DataError if they run out of memory."""
        try:
            yield from DataLoader(
                self._source,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_into_shared_memory,
                worker_init_fn=_leave_signals_to_the_parent,
                generator=torch.Generator(),  # or it would draw from the global one, and a resumed run would differ
            )
        except (RuntimeError, OSError) as error:
            if self.workers and any(words in str(error) for words in WORKERS_WITHOUT_MEMORY):
                raise DataError(NO_MEMORY.format(error=error)) from error
            raise

    def state(self) -> dict[str, Any]:
        """The position right after the last batch that was yielded, ready for json."""
        return self._source.state() | self._setting

    @property
    def epoch(self) -> int:
        """Completed passes over the split (streaming: of the slowest stream)."""
        return self._source.epoch

    @property
    def drops(self) -> Counter[str]:
        """Dropped samples by reason, up to the last batch taken, and notes such as "caption cut". Streaming counts every epoch."""
        return sum((tally.drops for tally in self._tallies.values()), Counter[str]())

    @property
    def dropped_examples(self) -> list[str]:
        """A few of them, as "shard:key reason"."""
        return [example for tally in self._tallies.values() for example in tally.examples]


def deal(states: Sequence[dict[str, Any]], world: int) -> list[dict[str, Any]]:
    """The positions of all ranks (`Loader.state`), for another number of ranks. They go on with the same samples: none is lost or repeated.

    Raises DataError for streams that cannot be divided among them.
    """
    if len(states) == world:
        return list(states)
    batch = states[0]["batch_size"] * len(states) // world
    dealt = deal_streams(states, world) if states[0]["kind"] == "streaming" else [states[0]] * world
    return [state | {"batch_size": batch, "world": world} for state in dealt]


def in_order(
    split: Split,
    *,
    batch_size: int,
    workers: int = 0,
    needs: Collection[str] = (),
    drops: Counter[str] | None = None,
    memory_budget: int = MEMORY_BUDGET,
    max_drop_share: float = 0.1,
) -> Iterator[list[Sample]]:
    """Every usable sample exactly once, in lists of `batch_size` (the last one shorter), for evaluation.

    The order is that of the keys if the split fits the memory budget, otherwise that of shards and files (our own writers
    make them the same). It depends neither on `batch_size` nor on `workers` (threads that decode). A key that an earlier
    shard has already used becomes `key#2`, so that results can be traced by key. `drops` counts the samples left out.
    """
    tally = Tally(drops)
    note_missing(split, tally)
    if fits(split, memory_budget):
        samples = iter(load(split, needs=needs, tally=tally, max_drop_share=max_drop_share, budget=memory_budget, threads=workers))
    else:
        samples = decoded(split, needs=needs, tally=tally, threads=workers)
    uses: Counter[str] = Counter()
    batch: list[Sample] = []
    for sample in samples:
        uses[sample.key] += 1
        batch.append(sample if uses[sample.key] == 1 else replace(sample, key=f"{sample.key}#{uses[sample.key]}"))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
    tally.check(max_drop_share, f"{split.name}/{split.split}")


def _compare(now: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in now.items():
        then = ({"keep": WHOLE} | saved)[name]  # older positions are of whole splits
        if value != then and None not in (value, then):
            raise DataError(f"the saved position has {name} {then}, now it is {value}: resume with the same, or start a new run")


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C reaches the whole group of processes, and so does torchrun's SIGTERM; a parent that saves first still needs its workers.

    They notice by themselves when it is gone.
    """
    os.setpgid(0, 0)


def _into_shared_memory(item: Any) -> Any:
    """Serialises the workers' batches. The queue could do it, but in a thread whose errors are lost, and the parent would wait forever."""
    if get_worker_info() is not None and not isinstance(item, DataError):
        try:
            for value in item[0].values():
                if isinstance(value, torch.Tensor):
                    value.share_memory_()
        except RuntimeError as error:
            return DataError(NO_MEMORY.format(error=error))
    return item
