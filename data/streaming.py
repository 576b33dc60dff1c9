"""Training batches from streamed shards: too large for memory, or remote.

A rank reads several streams, one per worker. In every epoch the shards are permuted and dealt to the ranks, then to the
streams; each stream shuffles undecoded samples in a buffer and continues with the next epoch at the end of its shards.
So every sample occurs once per epoch over all ranks and streams. Resuming replays a stream's epoch undecoded.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import detshuffle

from data.decode import Members, Tally, decode, read_shard
from data.memory import Collate
from data.sample import Sample
from data.shards import DataError, Split

SHUFFLE_BUFFER = 2000  # undecoded samples per stream
CHECK_AFTER = 100  # samples of a stream, before the share of dropped ones is meaningful
EMPTY_EPOCHS = 8  # a stream without a usable sample for this many epochs is an error; one bad shard must not be

Position = tuple[int, int]  # epoch, and undecoded samples already taken from it


class StreamBatches(IterableDataset[Any]):
    """Endless batches, taken from the streams in turn.

    The number of streams is part of the state, so the batches after a resume do not depend on the new number of workers.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        collate: Collate,
        seed: int,
        rank: int,
        world: int,
        workers: int,
        needs: Collection[str],
        max_drop_share: float,
        state: dict[str, Any] | None,
    ) -> None:
        self.urls = split.to_read
        per_rank = len(self.urls) // world
        if per_rank == 0:
            which = "shards with samples to keep" if split.keep else "shards"
            raise DataError(
                f"{split.name}/{split.split} has {len(self.urls)} {which} for {world} ranks, and each rank reads shards of its own. "
                "Use fewer ranks, or write the data as more, smaller shards"
            )
        if workers > per_rank:
            warnings.warn(f"{split.name} has {per_rank} shards per rank, so {workers} loader workers become {per_rank}", stacklevel=3)
        self.split = split
        self.batch_size = batch_size
        self.collate = collate
        self.seed = seed
        self.rank = rank
        self.world = world
        self.needs = tuple(needs)
        self.max_drop_share = max_drop_share
        self.batches = state["batches"] if state else 0  # of this rank
        self.positions = [tuple(p) for p in state["positions"]] if state else [(0, 0)] * max(1, min(workers, per_rank))
        self.streams = (state or {}).get("streams") or _of_rank(rank, world, len(self.positions))
        if len(self.positions) > per_rank:
            raise DataError(f"the saved position has {len(self.positions)} streams per rank, but {per_rank} shards are left for each")
        count = len(self.positions)
        self.workers = math.gcd(count, min(count, workers)) if workers else 0  # so that each worker serves whole streams

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], Position, dict[int, Tally]] | DataError]:
        """Yields batch, position of its stream after it, and the stream's tally so far; or a DataError to be raised.

        (An exception from a worker would reach the user wrapped in the worker's traceback.)
        """
        worker, count = get_worker_info(), len(self.positions)
        streams = [self._stream(number, *position) for number, position in enumerate(self.positions)]
        try:
            for index in itertools.count(self.batches + (worker.id if worker else 0), worker.num_workers if worker else 1):
                samples, position, tally = next(streams[index % count])
                batch = self.collate(samples, np.random.default_rng([self.seed, self.rank, index]))
                yield batch, position, {index % count: copy.deepcopy(tally)}
        except DataError as error:
            yield error

    def advance(self, position: Position) -> None:
        self.positions[self.batches % len(self.positions)] = position
        self.batches += 1

    def state(self) -> dict[str, Any]:
        positions = [list(position) for position in self.positions]
        return {"kind": "streaming", "batches": self.batches, "positions": positions, "streams": self.streams}

    @property
    def epoch(self) -> int:
        return min(epoch for epoch, _ in self.positions)

    def _stream(self, number: int, epoch: int, offset: int) -> Iterator[tuple[list[Sample], Position, Tally]]:
        """The samples of one stream in batches, endlessly, beginning `offset` undecoded samples into `epoch`."""
        tally = Tally()
        samples: list[Sample] = []
        empty_epochs = 0
        while empty_epochs < EMPTY_EPOCHS:
            empty_epochs += offset == 0
            for place, members in enumerate(self._shuffled(number, epoch, tally), start=1):
                if place <= offset:
                    continue
                sample = decode(members, self.needs, tally)
                if sample is None:
                    if tally.seen >= CHECK_AFTER:
                        tally.check(self.max_drop_share, f"{self.split.name}/{self.split.split}")
                    continue
                empty_epochs = 0
                samples.append(sample)
                if len(samples) == self.batch_size:
                    yield samples, (epoch, place), tally
                    samples = []
            epoch, offset = epoch + 1, 0
        name = f"{self.split.name}/{self.split.split}"
        raise DataError(
            f"no usable sample in {EMPTY_EPOCHS} passes over {name}: {tally.summary()}. Look at it with `make check-data DATA=...`"
        )

    def _shuffled(self, number: int, epoch: int, tally: Tally) -> Iterator[Members]:
        """The undecoded samples of one stream in one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.urls))
        (number, rank), (world, count) = self.streams["own"][number], self.streams["of"]
        urls = (self.urls[shard] for shard in order[rank::world][number::count])
        in_file_order = (members for url in urls for members in read_shard(url, tally, self.split.kept(url)))
        seed = int(np.random.SeedSequence([self.seed, rank, number, epoch]).generate_state(1)[0])
        return detshuffle(bufsize=SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, seed=seed).run(in_file_order)


def deal_streams(states: Sequence[dict[str, Any]], world: int) -> list[dict[str, Any]]:
    """`StreamBatches.state` of all ranks, for another number of ranks: each stream goes on, on a rank that may be another.

    Raises DataError if the streams cannot be divided among them.
    """
    streams = [state.get("streams") or _of_rank(rank, len(states), len(state["positions"])) for rank, state in enumerate(states)]
    found = sorted(each for mine, state in zip(streams, states, strict=True) for each in zip(mine["own"], state["positions"], strict=True))
    if len(found) % world:
        fit = ", ".join(str(ranks) for ranks in range(1, len(found) + 1) if len(found) % ranks == 0)
        raise DataError(f"the saved position has {len(found)} streams of shards, which {world} processes cannot share: resume with {fit}")
    dealt = [list(zip(*found[rank::world], strict=True)) for rank in range(world)]
    return [states[0] | {"positions": [*places], "streams": {"own": [*own], "of": streams[0]["of"]}} for own, places in dealt]


def _of_rank(rank: int, world: int, count: int) -> dict[str, Any]:
    """The streams of a rank when a run starts: (number, rank) of each, and how many ranks and streams of each there are."""
    return {"own": [[number, rank] for number in range(count)], "of": [world, count]}
