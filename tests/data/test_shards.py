from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.decode import Tally, decode, read_shard
from data.sample import Foil, Object, Question, Sample, from_record, to_record
from data.shards import DataError, find, splits, write_shard
from tests.data.kit import encode, good_members, make_split, picture, write_tar

FULL = Sample(
    key="000007",
    image=picture(3),
    captions=("a red dot", "ein roter Punkt (klein, rund und schön)"),
    label="dot",
    questions=(Question("how many dots?", "one", "count"),),
    foils=(Foil("a red dot", "a blue dot", "replace_attribute_colour"),),
    objects=(Object("dot", (1.0, 2.0, 3.0, 4.5), {"colour": "red"}),),
    extra={"tone": 3, "relations": [[0, "above", 1]]},
)


def test_a_written_sample_is_read_back_equal(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.tar", [(FULL, "png", encode(FULL.image))])
    tally = Tally()
    (members,) = read_shard(str(tmp_path / "00000.tar"), tally)
    sample = decode(members, ("captions", "label", "questions", "foils", "objects"), tally)
    assert sample is not None
    assert not tally.drops
    np.testing.assert_array_equal(sample.image, FULL.image)
    assert to_record(sample) == to_record(FULL)
    assert (sample.key, sample.questions, sample.objects) == (FULL.key, FULL.questions, FULL.objects)


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    entries = [write_shard(tmp_path / name / "00000.tar", [(FULL, "png", encode(FULL.image))]) for name in ("a", "b")]
    assert entries[0] == entries[1]
    assert entries[0]["decoded_bytes"] == FULL.image.nbytes
    with tarfile.open(tmp_path / "a" / "00000.tar") as tar:
        assert {(info.mtime, info.uid, info.uname) for info in tar} == {(0, 0, "")}


def test_a_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def samples():
        yield FULL, "png", encode(FULL.image)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "00000.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_find_in_a_data_set_folder(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "toy", [3, 2])
    split = find(folder, "train")
    assert (split.name, split.split, split.samples, split.decoded_bytes) == ("toy", "train", 5, 5 * 8 * 8 * 3)
    assert [Path(url).name for url in split.urls] == ["00000.tar", "00001.tar"]
    assert len(split.hash or "") == 64
    assert splits(folder) == ["train"]
    assert find(folder / "train", "train") == split


def test_the_first_shards_of_a_split(tmp_path: Path) -> None:
    split = find(make_split(tmp_path / "toy", [3, 2, 4]), "train")
    assert split.first(0) == split
    few = split.first(2)
    assert (few.urls, few.samples, few.hash) == (split.urls[:2], None, None)
    with pytest.raises(DataError, match="has 3 shards, fewer than --shards 4"):
        split.first(4)


def test_find_by_pattern_tar_and_join(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "toy", [1, 1, 1])
    other = make_split(tmp_path / "more", [4])
    pattern = f"{folder}/train/{{00000..00002}}.tar"
    assert len(find(pattern, "val").urls) == 3
    assert len(find(f"{folder}/train/00001.tar", "train").urls) == 1
    joined = find(f"{folder}::{other}", "train")
    assert (joined.name, len(joined.urls), joined.samples) == ("toy+more", 4, 7)
    assert find(f"{folder}::{pattern}", "train").samples is None
    assert find("https://example.org/{0..3}.tar", "train").urls[3] == "https://example.org/3.tar"


def test_splits_come_in_the_usual_order(tmp_path: Path) -> None:
    for name in ("zebra", "val", "test", "train"):
        make_split(tmp_path / "toy", [1], split=name)
    assert splits(tmp_path / "toy") == ["train", "val", "test", "zebra"]


def test_img2dataset_folder_is_found_without_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "out" / "00000.tar", good_members(2))
    (tmp_path / "out" / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "00000_stats.json").write_text("{}")
    split = find(tmp_path / "out", "train")
    assert (split.name, split.samples, len(split.urls)) == ("out", None, 1)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("", DataError, "names no shards"),
        ("::", DataError, "names no shards"),
        ("{tmp}/nowhere", FileNotFoundError, "make data"),
        ("{tmp}/empty", FileNotFoundError, "no split 'train'"),
        ("{tmp}/toy/train/{{00000..00007}}.tar", FileNotFoundError, "00002.tar does not exist"),
        ("pipe:touch {tmp}/executed", DataError, "shell command"),
        ("ftp://bucket/0.tar", DataError, "expected a local path or one of"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path: Path, spec: str, error: type[Exception], words: str) -> None:
    make_split(tmp_path / "toy", [1, 1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=words):
        find(spec.format(tmp=tmp_path), "train")
    assert not (tmp_path / "executed").exists()


def test_an_index_that_does_not_fit_its_tars_is_refused(tmp_path: Path) -> None:
    train = make_split(tmp_path / "toy", [2, 2]) / "train"
    with pytest.raises(DataError, match="is the split 'train', but 'val'"):
        find(train, "val")
    write_tar(train / "00002.tar", good_members(1))
    with pytest.raises(DataError, match=r"does not list 00002.tar .*make check-data DATA=.* ARGS=--write-index"):
        find(tmp_path / "toy", "train")
    (train / "00002.tar").unlink()
    write_tar(train / "00001.tar", good_members(40))
    with pytest.raises(DataError, match=r"bytes, index\.json says"):
        find(tmp_path / "toy", "train")
    (train / "00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.tar is missing, though .* lists it"):
        find(tmp_path / "toy", "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "shards": [{"file": "../../x.tar"}]}', "\udcff"])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    train = make_split(tmp_path / "toy", [2]) / "train"
    (train / "index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"index\.json"):
        find(tmp_path / "toy", "train")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["caption", "captions", "label", "questions", "foils", "objects", "extra", "key", "url"])
ITEM = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("question", "answer", "kind", "caption", "foil", "name", "box", "attributes"), JSON)
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.dictionaries(FIELDS, JSON | st.lists(ITEM, max_size=2), max_size=5), st.none() | st.text(max_size=20))
def test_any_record_is_read_or_refused(record: dict, text: str | None) -> None:
    try:
        sample = from_record("k", picture(0), text, record)
    except (TypeError, KeyError, ValueError):
        return
    assert all(isinstance(caption, str) and caption.strip() and caption.encode() for caption in sample.captions)
    assert sample.label is None or isinstance(sample.label, str)
    assert all(isinstance(question.answer, str) for question in sample.questions)
    assert isinstance(sample.extra, dict)
    json.dumps(to_record(sample))


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_json_member_is_read_or_counted(content: bytes) -> None:
    tally = Tally()
    sample = decode({"__key__": "k", "__url__": "u", "png": encode(picture(0)), "json": content}, ("captions",), tally)
    assert (sample is None) == (tally.dropped == 1)
    assert tally.seen == 1


@pytest.mark.parametrize("name", ["{a", "a}", "{a,b}", "[1]", "a b", "{0..2}"])
def test_braces_of_a_folder_that_exists_are_its_name(tmp_path: Path, name: str) -> None:
    folder = make_split(tmp_path / name, [2])
    assert splits(folder) == ["train"]
    assert find(folder, "train").samples == 2


@pytest.mark.parametrize("spec", ["/nowhere/{a", "/nowhere/{00000..00012.tar", "/nowhere/a}.tar::/x.tar"])
def test_unbalanced_braces_are_an_error_that_names_them(spec: str) -> None:
    for look in (splits, lambda spec: find(spec, "train")):
        with pytest.raises((DataError, FileNotFoundError), match=re.escape(spec.partition("::")[0])):
            look(spec)


@pytest.mark.parametrize(
    "spec", ["/x/{0..99999999999}.tar", "/x/{1..2000}/{1..2000}.tar", "https://host/{00000000..99999999}.tar", "/x" + "{a,b}" * 40 + ".tar"]
)
def test_a_pattern_of_too_many_tars_is_refused_at_once(spec: str) -> None:
    with pytest.raises(DataError, match="names more than 100,000 places"):
        find(spec, "train")


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": -3},
        {"samples": "5"},
        {"samples": 2.5},
        {"samples": True},
        {"samples": float("nan")},
        {"samples": 10**400},
        {"decoded_bytes": None},
        {"decoded_bytes": -1},
        {"hash": 5},
        {"name": None},
        {"split": ["train"]},
        {"classes": 5},
        {"classes": ["cat", 3]},
        {"classes": "cat"},
        {"shards": 5},
        {"shards": [5]},
        {"shards": [{"file": 5}]},
    ],
)
def test_an_index_with_values_that_cannot_be_is_named(fields: dict[str, Any], tmp_path: Path) -> None:
    folder = make_split(tmp_path / "my set", [2])
    path = folder / "train" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(DataError) as caught:
        find(folder, "train")
    assert str(caught.value).startswith(f"{path} is not a valid index: ")
    assert f"`make check-data DATA='{folder / 'train'}'`" in str(caught.value)


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "set", [2])
    path = folder / "train" / "index.json"
    for content in (b"", b"{", b"[" * 100_000, b"\xff\xfe{"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{path} .*Delete it; `make check-data"):
            find(folder, "train")
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(DataError, match=r"index\.json is not a file"):
        find(folder, "train")


def test_a_pattern_or_url_longer_than_a_file_name_is_no_path() -> None:
    places = "https://host/{" + ",".join(f"{n:05d}" for n in range(100)) + "}.tar"
    assert len(find(places, "train").urls) == 100


def test_a_named_pipe_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar is not a file but a pipe"):
        find(tmp_path / "x.tar", "train")
    with pytest.raises(FileNotFoundError, match="no folder with tars"):
        find(tmp_path, "train")
