"""Lists of samples to keep: the same samples in memory and streamed, exact resuming, equal keys in several shards, and what is missing."""

from __future__ import annotations

import copy
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from data.decode import NOT_THERE, Tally, keys_of
from data.files import FileError
from data.keep import digest, keeping, shard_names, write_list
from data.loader import Loader, in_order
from data.memory import decoded
from data.shards import DataError, Split, find, write_index
from data.streaming import StreamBatches
from data.texts import texts
from tests.data.kit import collate_keys, encode, good_members, make_split, picture, write_tar

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:This DataLoader will create")]

STREAM, HOLD = 0, 1 << 30
SIZES = [7, 5, 1, 6, 5, 4]
KEPT = [0, 1, 5, 6, 7, 8, 11, 13, 14, 15, 24, 25, 26, 27]  # none of shard 2 (12) and of shard 4 (19 to 23)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("data") / "toy", SIZES)


FORMS = ("ours", "keys", "names")


@pytest.fixture(params=FORMS)
def listed(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """The same samples in a list of ours, as keys alone, and as file names."""
    path = tmp_path / "list"
    if request.param == "ours":
        split = find(folder, "train")
        rows = [(url, key, {"clip": 0.5}) for url, key in located(split) if int(key) in KEPT]
        write_list(path, split, rows, by={"clip": {}})
    else:
        path.write_text("".join(f"{n:06d}{'.png' if request.param == 'names' else ''}\r\n" for n in KEPT))
    return path


def in_every_form(*settings: tuple[int, int]) -> list[Any]:
    """Settings of loaders with lists of every form. All are the same once they are read: of the others, the first setting is enough."""
    return [
        pytest.param(form, *each, marks=[pytest.mark.slow] if form != "ours" and each != settings[0] else [])
        for form in FORMS
        for each in settings
    ]


def located(split: Split) -> list[tuple[str, str]]:
    return [(url, key) for url in split.urls for key in keys_of(url)]


def make(folder: Path, listed: Path, budget: int, **options) -> Loader:
    split = keeping(find(folder, "train"), listed)
    return Loader(split, **{"batch_size": 2, "collate": collate_keys, "memory_budget": budget} | options)


def taken(loader: Loader, batches: int) -> list[tuple[list[int], float]]:
    return [(batch["keys"].tolist(), float(batch["draw"])) for batch in islice(loader, batches)]


def test_without_a_list_a_split_is_itself(folder: Path) -> None:
    split = find(folder, "train")
    assert keeping(split, "") is split
    assert split.to_read == split.urls


def test_a_kept_split_knows_its_size(folder: Path, listed: Path) -> None:
    whole, split = find(folder, "train"), keeping(find(folder, "train"), listed)
    assert split.samples == len(KEPT)
    assert split.keep is not None
    assert split.keep.of == sum(SIZES)
    assert split.decoded_bytes == pytest.approx(whole.decoded_bytes * len(KEPT) / sum(SIZES), abs=1)
    assert split.hash == whole.hash
    assert [Path(url).name for url in split.to_read] == ["00000.tar", "00001.tar", "00003.tar", "00005.tar"]


@pytest.mark.parametrize(("listed", "workers", "world"), in_every_form((0, 1), (0, 2), (2, 1), (2, 2)), indirect=["listed"])
@pytest.mark.parametrize("budget", [HOLD, STREAM])
def test_each_kept_sample_comes_once_per_epoch_and_no_other(folder: Path, listed: Path, budget: int, workers: int, world: int) -> None:
    epochs = 3
    if budget == STREAM:
        for epoch in range(epochs):
            keys: list[int] = []
            for rank in range(world):
                fixed = {"batch_size": 2, "collate": collate_keys, "seed": 0, "needs": (), "max_drop_share": 0.1, "state": None}
                source = StreamBatches(keeping(find(folder, "train"), listed), rank=rank, world=world, workers=workers, **fixed)
                keys += [int(m["__key__"]) for number in range(len(source.positions)) for m in source._shuffled(number, epoch, Tally())]
            assert sorted(keys) == KEPT
    loaders = [make(folder, listed, budget, rank=rank, world=world, workers=workers) for rank in range(world)]
    rounds = -(-epochs * len(KEPT) // (2 * world))
    seen = [taken(loader, rounds) for loader in loaders]
    order = [key for step in zip(*seen, strict=True) for keys, _ in step for key in keys]
    assert set(order) == set(KEPT)
    if budget == HOLD:
        assert all(sorted(order[e * len(KEPT) : (e + 1) * len(KEPT)]) == KEPT for e in range(epochs))
    assert not any(loader.drops for loader in loaders)


@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize(("listed", "workers", "resumed"), in_every_form((0, 0), (2, 0)), indirect=["listed"])
def test_resuming_is_exact(folder: Path, listed: Path, budget: int, workers: int, resumed: int) -> None:
    whole = taken(make(folder, listed, budget, workers=workers), 16)
    for stop in (1, 9):
        loader = make(folder, listed, budget, workers=workers)
        assert taken(loader, stop) == whole[:stop]
        state = json.loads(json.dumps(loader.state()))
        assert taken(make(folder, listed, budget, workers=resumed, state=state), 16 - stop) == whole[stop:]


@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize("index", [True, False])
def test_resuming_with_another_list_is_refused(tmp_path: Path, budget: int, index: bool) -> None:
    folder = make_split(tmp_path / "toy", SIZES, index=index)
    (tmp_path / "one").write_text("".join(f"{n:06d}\n" for n in KEPT))
    (tmp_path / "other").write_text("".join(f"{n:06d}\n" for n in [*KEPT[:-1], 2]))
    state = make(folder, tmp_path / "one", budget).state()
    with pytest.raises(DataError, match="the saved position has keep"):
        make(folder, tmp_path / "other", budget, state=state)
    whole = Loader(find(folder, "train"), batch_size=2, collate=collate_keys, memory_budget=budget)
    with pytest.raises(DataError, match=r"has keep [0-9a-f]{64}, now it is of all samples"):
        Loader(find(folder, "train"), batch_size=2, collate=collate_keys, memory_budget=budget, state=state)
    older = {name: value for name, value in whole.state().items() if name != "keep"}
    Loader(find(folder, "train"), batch_size=2, collate=collate_keys, memory_budget=budget, state=older)
    with pytest.raises(DataError, match="has keep of all samples, now it is"):
        make(folder, tmp_path / "one", budget, state=older)


def test_texts_and_evaluation_keep_to_the_list(folder: Path, listed: Path) -> None:
    split = keeping(find(folder, "train"), listed)
    assert list(texts(split)) == [text for n in KEPT for text in (f"picture {n}", f"image {n}")]
    for budget in (HOLD, STREAM):
        assert [int(s.key) for batch in in_order(split, batch_size=4, memory_budget=budget) for s in batch] == KEPT


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Two shards with the same keys, as img2dataset's subsets and folders of photos have them, and other pixels."""
    for shard in (0, 1):
        members = [
            member
            for n in range(4)
            for member in ((f"{n:06d}.png", encode(picture(n + 20 * shard))), (f"{n:06d}.txt", b"a picture"), (f"{n:06d}.json", b"{}"))
        ]
        write_tar(tmp_path / "twins" / "train" / f"{shard:05d}.tar", members)
    return tmp_path / "twins"


@pytest.mark.parametrize("budget", [HOLD, STREAM])
def test_equal_keys_of_several_shards_are_told_apart(twins: Path, tmp_path: Path, budget: int) -> None:
    split = find(twins, "train")
    first, second = split.urls
    write_list(tmp_path / "list", split, [(first, "000001", {}), (second, "000001", {}), (second, "000003", {})])
    kept = keeping(split, tmp_path / "list")
    assert kept.samples == 3
    found = [(s.key, int(s.image[0, 0, 0])) for batch in in_order(kept, batch_size=4, memory_budget=budget) for s in batch]
    assert sorted(found) == [("000001", 7), ("000001#2", 21 * 7), ("000003", 23 * 7)]


def test_a_key_alone_means_all_its_samples(twins: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("000002\n000002\n")
    assert keeping(find(twins, "train"), tmp_path / "list").samples == 2


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["/d/train/00000.tar", "/d/train/00001.tar"], ["00000.tar", "00001.tar"]),
        (["/a/train/00000.tar", "/b/train/00000.tar"], ["a/train/00000.tar", "b/train/00000.tar"]),
        (["/a/train/00000.tar", "/b/train/00000.tar", "/b/train/00001.tar"], ["a/train/00000.tar", "b/train/00000.tar", "00001.tar"]),
        (["/00000.tar", "/a/00000.tar"], ["/00000.tar", "a/00000.tar"]),
        (["https://x/a/0.tar", "https://x/b/0.tar"], ["a/0.tar", "b/0.tar"]),
    ],
)
def test_shards_have_the_shortest_names_that_tell_them_apart(urls: list[str], names: list[str], tmp_path: Path) -> None:
    assert list(map(shard_names(urls).get, urls)) == names
    split = Split("x", "train", None, tuple(urls))
    write_list(tmp_path / "list", split, [(url, f"{n}", {}) for n, url in enumerate(urls)])
    kept = keeping(split, tmp_path / "list")
    assert [kept.kept(url) for url in urls] == [{f"{n}"} for n in range(len(urls))]


def test_a_list_stays_valid_where_the_data_move(folder: Path, listed: Path, tmp_path: Path) -> None:
    moved = make_split(tmp_path / "toy", SIZES)
    assert digest(keeping(find(moved, "train"), listed)) == digest(keeping(find(folder, "train"), listed))


def test_two_data_sets_with_shards_of_the_same_name(tmp_path: Path) -> None:
    both = f"{make_split(tmp_path / 'a', [3, 2])}::{make_split(tmp_path / 'b', [4])}"
    split = find(both, "train")
    write_list(tmp_path / "list", split, [(split.urls[0], "000001", {}), (split.urls[2], "000003", {})])
    kept = keeping(split, tmp_path / "list")
    assert [s.key for batch in in_order(kept, batch_size=9) for s in batch] == ["000001", "000003"]
    (tmp_path / "short").write_text('{"shard": "00000.tar", "key": "000001"}\n')
    with pytest.raises(DataError, match=r"the shard '00000.tar' may be .*a/train/00000.tar or .*b/train/00000.tar"):
        keeping(split, tmp_path / "short")


@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize("form", ["{key}", '{{"shard": "00000.tar", "key": "{key}"}}'])
def test_a_few_missing_keys_are_counted_and_named(tmp_path: Path, budget: int, form: str) -> None:
    folder = make_split(tmp_path / "toy", [20], index=False)
    keys = [*(f"{n:06d}" for n in range(15)), "nowhere"]
    (tmp_path / "list").write_text("".join(form.format(key=key) + "\n" for key in keys))
    loader = make(folder, tmp_path / "list", budget)
    assert {key for keys, _ in taken(loader, 15) for key in keys} <= set(range(15))
    assert loader.drops[NOT_THERE] >= 1
    assert any("nowhere" in example for example in loader.dropped_examples)


@pytest.mark.parametrize("shard", ['{{"shard": "00009.tar", "key": "{key}"}}', "{key}"])
def test_many_missing_keys_are_an_error_that_names_some(folder: Path, tmp_path: Path, shard: str) -> None:
    keys = ["000001", "gone-1", "gone-2"]
    (tmp_path / "list").write_text("".join(shard.format(key=key) + "\n" for key in keys))
    with pytest.raises(DataError, match=r"[23] of 3 listed samples are not in toy/train, such as .*gone-1.*make filter"):
        keeping(find(folder, "train"), tmp_path / "list")


def test_many_missing_keys_in_a_known_shard_are_an_error_too(folder: Path, tmp_path: Path) -> None:
    """Found when the shard is read: the list has no shard that is not there."""
    lines = [json.dumps({"shard": "00000.tar", "key": key}) for key in ("000001", "000002", "gone")]
    (tmp_path / "list").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"1 of 3 samples of toy/train were dropped.*listed to be kept, but not there 1.*00000.tar:gone"):
        make(folder, tmp_path / "list", HOLD)


def test_a_list_of_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    other = find(make_split(tmp_path / "other", [9, 9]), "train")
    write_list(tmp_path / "list", other, [(other.urls[0], "000001", {})])
    with pytest.raises(DataError, match=r"written for other data: for other/train with the hash .* and toy/train has"):
        keeping(find(folder, "train"), tmp_path / "list")


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("", DataError, "lists no samples"),
        ("\n\n", DataError, "lists no samples"),
        ('{"list": 1, "hash": null}\n', DataError, "lists no samples"),
        ('{"list": 9}\n000001\n', DataError, "has the version 9, expected 1"),
        ('000001\n{"key": 3}\n', DataError, "line 2: expected"),
        ('{"shard": 1, "key": "000001"}\n', DataError, "line 1: expected"),
        ('{"shard": "00000.tar"}\n', DataError, "line 1: expected"),
        ("{not json\n", DataError, "line 1: expected"),
        (b"\xff\xfe\x00\x80", FileError, "is not UTF-8"),
        (None, FileError, "cannot be read: No such file"),
    ],
)
def test_broken_lists_say_what_is_expected(folder: Path, tmp_path: Path, text: str | bytes | None, error: type, why: str) -> None:
    path = tmp_path / "list"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=why) as caught:
        keeping(find(folder, "train"), path)
    assert "make filter" in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_first_shards_of_a_kept_split(folder: Path, listed: Path) -> None:
    split = keeping(find(folder, "train"), listed).first(2)
    assert split.samples == 7
    assert [int(s.key) for batch in in_order(split, batch_size=9) for s in batch] == KEPT[:7]
    lone = keeping(find(folder, "train"), listed)
    assert lone.first(0) is lone


def test_no_kept_sample_in_the_first_shards_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("000027\n")
    with pytest.raises(DataError, match=r"list keeps no sample of the first 2 shards of toy/train"):
        keeping(find(folder, "train"), tmp_path / "list").first(2)


def test_more_ranks_than_shards_with_kept_samples(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("000000\n000001\n")
    with pytest.raises(DataError, match="has 1 shards with samples to keep for 2 ranks"):
        make(folder, tmp_path / "list", STREAM, world=2)


def test_what_a_damaged_shard_loses_is_counted_among_the_kept(tmp_path: Path) -> None:
    """Its last 6 of 10 samples are lost, of which the list has one; the index knows 10."""
    path = write_tar(tmp_path / "toy" / "train" / "00000.tar", good_members(10))
    intact = find(tmp_path / "toy", "train")
    content = path.read_bytes()
    write_index(path.parent, name="toy", split="train", shards=[{"file": "00000.tar", "samples": 10, "decoded_bytes": 1, "sha256": "x"}])
    path.write_bytes(content[: content.index(b"000004.png")] + content[content.index(b"000004.png") :][:600])
    (tmp_path / "list").write_text("".join(json.dumps({"shard": "00000.tar", "key": f"{n:06d}"}) + "\n" for n in (0, 1, 2, 9)))
    tally = Tally()
    kept = [s.key for s in decoded(keeping(intact, tmp_path / "list"), needs=(), tally=tally)]
    assert kept == ["000000", "000001", "000002"]
    assert tally.drops == {"truncated shard": 1}
    assert (tally.seen, tally.dropped) == (4, 1)


def test_a_kept_split_can_be_copied_and_hashed(folder: Path, listed: Path) -> None:
    split = keeping(find(folder, "train"), listed)
    assert digest(copy.deepcopy(split)) == digest(split)
    assert isinstance(hash(split), int)


def test_tensors_are_those_of_the_kept(folder: Path, listed: Path) -> None:
    loader = make(folder, listed, HOLD)
    batch = next(iter(loader))
    assert torch.equal(batch["pixel"], batch["keys"] * 7 % 256)
    assert loader.samples == len(KEPT)
