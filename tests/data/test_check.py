from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.check import check
from data.loader import Loader, in_order
from data.shards import DataError, find
from tests.data.kit import collate_keys, encode, good_members, make_split, picture, write_tar
from tests.processes import command

IMAGE = encode(picture(1))
Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


def img2dataset_shard(folder: Path, shard: int, count: int) -> None:
    """A shard as img2dataset 1.4x writes it, with the files it leaves beside."""
    members = []
    for number in range(count):
        key = f"{shard:05d}{number:04d}"
        columns = {
            "caption": f"A cat №{number}",
            "url": "https://example.org/cat.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": 8,
            "height": 8,
            "original_width": 640,
            "original_height": 480,
            "exif": "{}",
            "sha256": "0" * 64,
        }
        text = columns["caption"].encode()
        members += [(f"{key}.jpg", encode(picture(number), "JPEG")), (f"{key}.json", json.dumps(columns).encode()), (f"{key}.txt", text)]
    write_tar(folder / f"{shard:05d}.tar", members)
    (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1 not read")
    (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 3}')


def test_img2dataset_output_is_read_unchanged_and_gets_an_index(tmp_path: Path, printed: Printed) -> None:
    folder = tmp_path / "cats"
    for shard in range(2):
        img2dataset_shard(folder, shard, 3)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    samples = [sample for batch in in_order(find(folder, "train"), batch_size=4) for sample in batch]
    assert [sample.key for sample in samples] == ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002"]
    assert samples[1].captions == ("A cat №1",)
    assert samples[1].extra["original_width"] == 640
    assert next(iter(Loader(find(folder, "train"), batch_size=6, collate=collate_keys)))["keys"].sort().values[-1] == 10002
    assert check(folder, "train")
    assert "6 usable samples of 6 in 2 shards" in printed()
    split = find(folder, "train")
    assert (split.name, split.samples, split.decoded_bytes) == ("cats", 6, 6 * 8 * 8 * 3)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"} == before


def test_a_good_set_is_described(tmp_path: Path, printed: Printed) -> None:
    assert check(make_split(tmp_path / "toy", [3, 2]), "train")
    text = printed()
    for words in ("toy/train: 5 usable samples of 5 in 2 shards", "8 x 8 median", "2.0 per image (2 to 2)", "agrees with the tars"):
        assert words in text


@pytest.mark.parametrize(
    ("members", "hint"),
    [
        ([(f"{n}.v2.{e}", IMAGE) for n in range(4) for e in ("png", "txt")], "a key ends at the first dot"),
        ([(f"{n}.{e}", IMAGE) for n in range(4) for e in ("img", "txt")], "have the members .img, .txt. Expected .jpg"),
        ([(f"images/{n}.png", IMAGE) for n in range(4)] + [(f"texts/{n}.txt", b"t") for n in range(4)], "folders included"),
        ([(f"{n}.png", IMAGE) for n in range(4)] + [(f"{n}.txt", b"t") for n in range(4)], "must be neighbours"),
        ([("README", b"")], "no usable sample"),
    ],
)
def test_a_wrong_key_layout_is_explained(tmp_path: Path, printed: Printed, members: list, hint: str) -> None:
    write_tar(tmp_path / "set" / "0.tar", members)
    assert not check(tmp_path / "set", "train")
    text = printed()
    assert hint in text
    assert "UNUSABLE" in text
    assert not (tmp_path / "set" / "index.json").exists()


def test_images_alone_can_be_trained_on_and_are_noted(tmp_path: Path, printed: Printed) -> None:
    write_tar(tmp_path / "set" / "0.tar", [(f"{n}.png", IMAGE) for n in range(4)])
    assert check(tmp_path / "set", "train")
    text = printed()
    assert "no sample has a caption, a label or a question" in text
    assert "UNUSABLE" not in text
    assert json.loads((tmp_path / "set" / "index.json").read_text())["samples"] == 4
    write_tar(tmp_path / "other" / "0.tar", good_members(4))
    assert check(tmp_path / "other", "train")
    assert "no sample has" not in printed()


def test_drops_are_named(tmp_path: Path, printed: Printed) -> None:
    write_tar(tmp_path / "set" / "0.tar", [*good_members(30), ("x.png", b"?"), ("y\x1b[31m.png", b"?")])
    write_tar(tmp_path / "set" / "1.tar", good_members(2))
    assert check(tmp_path / "set", "train")
    text = printed()
    assert "2 x undecodable image" in text
    assert "0.tar:x undecodable image" in text
    assert "\x1b" not in text
    assert "2 keys occur in several shards" in text
    assert json.loads((tmp_path / "set" / "index.json").read_text())["dropped"] == {"undecodable image": 2}


def test_a_stale_index_is_found_and_rewritten(tmp_path: Path, printed: Printed) -> None:
    folder = make_split(tmp_path / "toy", [3, 2])
    write_tar(folder / "train" / "00002.tar", good_members(4, start=50))
    assert not check(folder, "train")
    assert "does not list 00002.tar" in printed()
    assert check(folder, "train", rewrite=True)
    split = find(folder, "train")
    assert (split.name, split.samples) == ("toy", 9)
    path = Path(split.urls[0])
    path.write_bytes(path.read_bytes().replace(b"picture 1", b"picture 7"))  # the same size, so `find` cannot see it
    assert not check(folder, "train")
    assert "the tars have changed" in printed()


def test_the_command_and_its_exit_status(tmp_path: Path) -> None:
    done = command("data.check", str(make_split(tmp_path / "toy", [2])))
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "empty").mkdir()
    done = command("data.check", str(tmp_path / "empty"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises((DataError, FileNotFoundError)):
        check(tmp_path / "nowhere", "train")
