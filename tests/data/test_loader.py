"""The promises of the loader: each sample once per epoch, an exact resume, the same order for any number of workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch

from data.decode import Tally
from data.loader import Loader, deal, in_order
from data.shards import DataError, find
from data.streaming import StreamBatches
from tests.data.kit import collate_broken, collate_keys, good_members, make_split, write_tar
from tests.processes import ready

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:This DataLoader will create")]

STREAM = 0  # a memory budget that nothing fits
HOLD = 1 << 30
SIZES = [7, 5, 1, 6, 5, 4]
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("data") / "toy", SIZES)


def make(folder: Path, budget: int, **options) -> Loader:
    return Loader(find(folder, "train"), **{"batch_size": 4, "collate": collate_keys, "memory_budget": budget} | options)


def taken(loader: Loader, batches: int) -> list[tuple[list[int], float]]:
    return [(batch["keys"].tolist(), float(batch["draw"])) for batch in islice(loader, batches)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_gives_each_sample_once_per_epoch(folder: Path, world: int, workers: int) -> None:
    epochs, batch = 3, 2
    loaders = [make(folder, HOLD, batch_size=batch, rank=rank, world=world, workers=workers) for rank in range(world)]
    rounds = -(-epochs * TOTAL // (batch * world))
    ranks = [taken(loader, rounds) for loader in loaders]
    order = [key for global_batch in zip(*ranks, strict=True) for keys, _ in global_batch for key in keys]
    for epoch in range(epochs):
        assert sorted(order[epoch * TOTAL : (epoch + 1) * TOTAL]) == list(range(TOTAL))
    assert order[:TOTAL] != order[TOTAL : 2 * TOTAL] != list(range(TOTAL))


def test_memory_order_is_the_same_for_any_number_of_workers(folder: Path) -> None:
    runs = [taken(make(folder, HOLD, workers=workers), 20) for workers in (0, 1, 2, 3)]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert taken(make(folder, HOLD, seed=1), 20) != runs[0]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streaming_gives_each_sample_once_per_epoch(folder: Path, world: int, workers: int) -> None:
    for epoch in range(3):
        keys = []
        for rank in range(world):
            source = stream(folder, rank=rank, world=world, workers=workers)
            for number in range(len(source.positions)):
                keys += [members["__key__"] for members in source._shuffled(number, epoch, Tally())]
        assert sorted(map(int, keys)) == list(range(TOTAL))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 1), (2, 2), (3, 2)])
def test_streams_run_through_their_epochs_one_after_another(folder: Path, world: int, workers: int) -> None:
    """What the loader delivers is the samples of epoch 0, then 1, ... of each stream, in batches taken from the streams in turn."""
    for rank in range(world):
        loader = make(folder, STREAM, rank=rank, world=world, workers=workers)
        batches = taken(loader, 12)
        source = stream(folder, rank=rank, world=world, workers=workers)
        count = len(source.positions)
        for number in range(count):
            expected = [int(m["__key__"]) for epoch in range(40) for m in source._shuffled(number, epoch, Tally())]
            got = [key for keys, _ in batches[number::count] for key in keys]
            assert got == expected[: len(got)]
            assert len(got) == 4 * len(batches[number::count])


def stream(folder: Path, **options) -> StreamBatches:
    fixed = {"batch_size": 4, "collate": collate_keys, "seed": 0, "needs": (), "max_drop_share": 0.1, "state": None}
    return StreamBatches(find(folder, "train"), **fixed | options)


def test_streaming_shuffles_shards_and_samples(folder: Path) -> None:
    first, second = (list(stream(folder, rank=0, world=1, workers=0)._shuffled(0, epoch, Tally())) for epoch in (0, 1))
    keys = [[members["__key__"] for members in epoch] for epoch in (first, second)]
    assert keys[0] != keys[1] != sorted(keys[1])
    assert taken(make(folder, STREAM, seed=3), 3) != taken(make(folder, STREAM, seed=4), 3)


@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize(
    ("workers", "resumed"),
    [
        (0, 0),
        pytest.param(1, 1, marks=pytest.mark.slow),
        (2, 2),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(0, 2, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        (3, 2),
    ],
)
def test_resume_continues_exactly(folder: Path, budget: int, workers: int, resumed: int) -> None:
    whole = taken(make(folder, budget, workers=workers), 24)  # more than three epochs
    for stop in (0, 4, 15):
        loader = make(folder, budget, workers=workers)
        assert taken(loader, stop) == whole[:stop]
        state = json.loads(json.dumps(loader.state()))
        again = make(folder, budget, workers=resumed, state=state)
        assert again.epoch == loader.epoch
        assert taken(again, 24 - stop) == whole[stop:]


def test_another_number_of_ranks_goes_on_with_the_samples_in_memory(folder: Path) -> None:
    whole = [key for keys, _ in taken(make(folder, HOLD, batch_size=4), 12) for key in keys]
    states: list = [None] * 4
    order = []
    for world, then in ((4, 2), (2, 1), (1, 4), (4, 1)):
        loaders = [make(folder, HOLD, batch_size=4 // world, rank=rank, world=world, state=states[rank]) for rank in range(world)]
        steps = zip(*(taken(loader, 3) for loader in loaders), strict=True)
        order += [key for step in steps for keys, _ in step for key in keys]
        states = deal(json.loads(json.dumps([loader.state() for loader in loaders])), then)
    assert order == whole


def test_another_number_of_ranks_goes_on_with_the_streams(folder: Path) -> None:
    """Each stream of four ranks runs through its epochs, whichever ranks read it later."""
    seen: dict[tuple[int, ...], list[int]] = {(0, rank): [] for rank in range(4)}
    states: list = [None] * 4
    for world, then in ((4, 2), (2, 1), (1, 4), (4, 4)):
        loaders = [make(folder, STREAM, batch_size=4 // world, rank=rank, world=world, state=states[rank]) for rank in range(world)]
        for loader in loaders:
            for _ in range(5):
                state = loader.state()
                own = state["streams"]["own"]
                ((keys, _),) = taken(loader, 1)
                seen[tuple(own[state["batches"] % len(own)])] += keys
        states = deal(json.loads(json.dumps([loader.state() for loader in loaders])), then)
    for (number, rank), keys in seen.items():
        source = stream(folder, rank=rank, world=4, workers=0)
        expected = [int(m["__key__"]) for epoch in range(12) for m in source._shuffled(number, epoch, Tally())]
        assert keys == expected[: len(keys)]
        assert len(keys) > 15
    with pytest.raises(DataError, match="has 4 streams of shards, which 3 processes cannot share: resume with 1, 2, 4"):
        deal(states, 3)


@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_again_continues(folder: Path, budget: int, workers: int) -> None:
    whole = taken(make(folder, budget, workers=workers), 12)
    loader = make(folder, budget, workers=workers)
    assert taken(loader, 5) + taken(loader, 7) == whole


@pytest.mark.parametrize("budget", [HOLD, STREAM])
def test_the_global_torch_generator_is_left_alone(folder: Path, budget: int) -> None:
    before = torch.get_rng_state()
    taken(make(folder, budget, workers=1), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_a_saved_position_decides_between_memory_and_streaming(folder: Path) -> None:
    loader = make(folder, STREAM)
    whole = taken(loader, 3) + taken(loader, 5)
    first = make(folder, STREAM)
    taken(first, 3)
    assert taken(make(folder, HOLD, state=first.state()), 5) == whole[3:]


def test_a_position_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make_split(tmp_path / "other", [3, 3])
    unknown = make_split(tmp_path / "unknown", [3, 3], index=False)
    for budget in (HOLD, STREAM):
        state = make(folder, budget, workers=3).state()
        with pytest.raises(DataError, match="the saved position has data"):
            make(other, budget, state=state)
        for options in ({"seed": 1}, {"batch_size": 5}, {"world": 2}):
            with pytest.raises(DataError, match=f"the saved position has {next(iter(options))}"):
                make(folder, budget, state=state, **options)
        with pytest.raises(DataError, match=f"{TOTAL} samples, this one has 6|3 streams per rank, but 2 shards"):
            make(unknown, budget, state=state)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("budget", [HOLD, STREAM])
def test_in_order_is_exactly_once_in_key_order(folder: Path, budget: int, batch_size: int, workers: int) -> None:
    batches = list(in_order(find(folder, "train"), batch_size=batch_size, workers=workers, memory_budget=budget))
    assert [int(sample.key) for batch in batches for sample in batch] == list(range(TOTAL))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 0 < len(batches[-1]) <= batch_size


def test_in_order_sorts_keys_and_tells_equal_ones_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", good_members(2, start=5))
    write_tar(tmp_path / "b.tar", good_members(6, start=0))
    split = find(tmp_path, "val")
    expected = [*(f"{n:06d}" for n in range(6)), "000005#2", "000006"]
    assert [sample.key for (sample,) in in_order(split, batch_size=1)] == expected


def test_fewer_shards_than_workers_or_ranks(folder: Path) -> None:
    with pytest.warns(UserWarning, match="6 shards per rank, so 9 loader workers become 6"):
        loader = make(folder, STREAM, workers=9)
    assert loader.workers == 6
    assert len(taken(loader, 7)) == 7
    with pytest.raises(DataError, match=r"6 shards for 7 ranks.*Use fewer ranks"):
        make(folder, STREAM, world=7)
    assert len(taken(make(folder, HOLD, world=7, rank=6), 5)) == 5


def test_an_error_in_collate_reaches_the_caller(folder: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="collate is broken"):
            taken(make(folder, HOLD, collate=collate_broken, workers=workers), 1)


@pytest.fixture
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How processes start, while the test runs."""
    ready()
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.parametrize(
    ("method", "budgets"), [pytest.param("spawn", [STREAM], marks=pytest.mark.slow), ("forkserver", [HOLD, STREAM])], indirect=["method"]
)
def test_workers_need_not_be_forked(folder: Path, method: str, budgets: list[int]) -> None:
    """What travels to the workers is pickled by both methods; a fresh interpreter costs seconds."""
    for budget in budgets:
        assert multiprocessing.get_start_method() == method
        assert taken(make(folder, budget, workers=1), 9) == taken(make(folder, budget), 9)


@pytest.mark.parametrize("budget", [HOLD, STREAM])
def test_signals_to_the_group_are_the_parents_affair(folder: Path, budget: int) -> None:
    """Ctrl-C, and torchrun's SIGTERM."""
    batches = iter(make(folder, budget, workers=1))
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    assert os.getpgrp() not in {os.getpgid(worker.pid) for worker in workers}


def test_drops_of_workers_reach_the_caller(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / "bad" / f"{shard}.tar", [*good_members(19, start=20 * shard), (f"{20 * shard + 19:06d}.png", b"no png")])
    for workers in (0, 1, 2):
        loader = make(tmp_path / "bad", STREAM, workers=workers, batch_size=19)
        taken(loader, 4)  # two passes over 38 usable samples
        assert set(loader.drops) == {"undecodable image"}
        assert loader.drops.total() >= 2
        assert ".tar:0000" in loader.dropped_examples[0]
        assert loader.dropped_examples[0].endswith("undecodable image")
    held = make(tmp_path / "bad", HOLD)
    assert held.drops == Counter({"undecodable image": 2})
    assert held.samples == 38


def test_shards_are_streamed_from_urls(folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder / "train"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        split = find(f"{base}/{{00000..00005}}.tar", "train")
        assert [int(sample.key) for batch in in_order(split, batch_size=9) for sample in batch] == list(range(TOTAL))
        batches = list(islice(Loader(split, batch_size=TOTAL, collate=collate_keys, workers=1), 2))
        assert sorted(batches[0]["keys"].tolist()) == list(range(TOTAL))
        drops: Counter[str] = Counter()
        list(in_order(find(f"{base}/{{00005..00006}}.tar", "train"), batch_size=9, drops=drops, max_drop_share=0.5))
        server.shutdown()
    assert drops.total() == 1
