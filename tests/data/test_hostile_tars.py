"""Tars that claim more than they hold: every size is checked before it is believed, and nothing hangs or fills the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.decode import Tally, decode, read_shard
from data.loader import in_order
from data.shards import DataError, find
from tests.data.kit import encode, good_members, make_split, picture, write_tar
from tests.data.test_bad_input import huge_png

pytestmark = pytest.mark.timeout(120)

END = bytes(1024)


def header(size: int, kind: bytes = tarfile.REGTYPE, pax: dict[str, str] | None = None, name: str = "x.png") -> bytes:
    """A member's header, with any size it may claim; `pax`: the attributes before it, which may claim another."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = size, kind, pax or {}
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def good(count: int = 3) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in good_members(count):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()[: tar.offset]


def read(path: Path) -> tuple[list[str], Tally]:
    """Keys and counts, in seconds, whatever the file claims."""
    tally = Tally()
    start = time.process_time()
    keys = [members["__key__"] for members in read_shard(str(path), tally)]
    assert time.process_time() - start < 20
    return keys, tally


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "100000000000"}
CLAIMS = {
    "member": header(10**11),
    "of a foreign type": header(10**11, b"V"),
    "beyond any disk": header(1 << 62),
    "beyond any number": header((1 << 70) - 1),
    "negative": header(-1024),
    "long name": header(10**11, tarfile.GNUTYPE_LONGNAME),
    "attributes": header(10**11, tarfile.XHDTYPE),
    "attributes of all": header(10**11, tarfile.XGLTYPE),
    "negative attributes": header(-512, tarfile.XHDTYPE),
    "old sparse": header(10**11, tarfile.GNUTYPE_SPARSE),
    "sparse map without an end": header(5, pax=SPARSE),
    "by attribute": header(5, pax={"size": "100000000000"}),
    "backwards by attribute": header(5, pax={"size": "-5120"}),
    "attributes of attributes": header(5, pax={"comment": "c"})[:1024] * 3000,
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claimed_size_ends_the_shard(tmp_path: Path, claim: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(compress(good() + CLAIMS[claim] + b"some content".ljust(512, b"x") + END))
    tracemalloc.start()
    keys, tally = read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()
    assert keys[:2] == ["000000", "000001"]  # the third may be incomplete
    assert len(keys) <= 3
    assert tally.drops["truncated shard"] == tally.dropped >= 1


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_not_decompressed(tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """6 GB of zeros in a file of kilobytes: as content of a member, and as the end of a tar."""
    if compress is not bz2.compress:
        monkeypatch.setattr("data.tars.FREE_EXPANSION", 1 << 26)
    part = compress(bytes(1 << 24))
    for name, start in (("member", good() + header(6 << 30)), ("end", good())):
        path = tmp_path / f"{name}.tar.gz"
        path.write_bytes(compress(start) + part * 384)
        assert path.stat().st_size < 10 << 20
        keys, tally = read(path)
        assert keys[:2] == ["000000", "000001"]
        assert tally.drops == {"truncated shard": 1}
        assert "more than 200 times its size" in tally.examples[0] or "nothing but zeros" in tally.examples[0]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shards_are_read_and_their_damage_is_counted(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "0.tar"
    whole = compress(good(40) + END)
    path.write_bytes(whole)
    assert len(read(path)[0]) == 40
    path.write_bytes(whole[: len(whole) // 2])
    keys, tally = read(path)
    assert len(keys) < 40
    assert tally.drops == {"truncated shard": 1}
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 64 + whole[len(whole) // 2 + 64 :])
    keys, tally = read(path)
    assert tally.dropped == 1


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("junk", [b"j", b"<html>not found</html>", b"\xff\0z" * 50_000, b"\0" * 1024 + b"junk", b"\x1f\x8b\x08"])
def test_junk_behind_a_shard_is_counted_and_costs_no_sample(tmp_path: Path, compress: Callable[[bytes], bytes], junk: bytes) -> None:
    whole = compress(write_tar(tmp_path / "whole.tar", good_members(5)).read_bytes())
    (tmp_path / "junk.tar.gz").write_bytes(whole + junk)
    (tmp_path / "inside.tar.gz").write_bytes(compress((tmp_path / "whole.tar").read_bytes() + junk))
    for name in ("junk.tar.gz", "inside.tar.gz"):
        drops: Counter[str] = Counter()
        found = [sample.key for batch in in_order(find(tmp_path / name, "test"), batch_size=2, drops=drops) for sample in batch]
        assert len(found) == 5
        assert drops == {"junk or damage behind a shard's end": 1}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_no_cut_of_a_compressed_shard_is_silent(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """Every length, from nothing to the last byte: all samples are read, or their loss is counted, and the cut is always reported."""
    whole = compress(write_tar(tmp_path / "whole.tar", good_members(3)).read_bytes())
    for size in {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 40, len(whole))}:
        (tmp_path / "cut.tar.gz").write_bytes(whole[:size])
        tally = Tally()
        usable = [sample for each in read_shard(str(tmp_path / "cut.tar.gz"), tally) if (sample := decode(each, (), tally)) is not None]
        assert tally.drops.total() == 1
        assert len(usable) == 3 if "junk or damage behind a shard's end" in tally.drops else tally.dropped >= 1


def test_an_index_tells_what_junk_hides(tmp_path: Path) -> None:
    """Two tars in one file, of which the second is junk: the index knows its samples."""
    folder = make_split(tmp_path / "set", [5], split="test") / "test"
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["samples"] = 8
    (folder / "index.json").write_text(json.dumps(index))
    [tar] = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes() + b"junk" * 100)
    tally = Tally()
    assert len(list(read_shard(str(tar), tally))) == 5
    assert tally.drops == {"truncated shard": 3}


def test_a_name_that_begins_like_a_compressed_file_is_a_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("BZh91.png", encode(picture(1))), ("BZh91.txt", b"t")])
    assert read(path)[0] == ["BZh91"]


def test_what_a_damaged_shard_lost_is_counted_where_it_can_be_known(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "set", [40, 40])
    path = folder / "train" / "00000.tar"
    content = path.read_bytes()

    def lost(damaged: bytes) -> int:
        path.write_bytes(damaged)
        tally = Tally()
        kept = len(list(read_shard(str(path), tally)))
        assert tally.drops == {"truncated shard": tally.dropped}
        assert tally.seen == tally.dropped  # the others are seen when they are decoded
        known = any((folder / "train" / name).exists() for name in ("index.json", "00000_stats.json"))
        assert ("at least" not in tally.examples[0]) == known == (kept + tally.dropped == 40)
        return tally.dropped

    for place in (b"000010.json", b"000030.png"):  # a header in the middle: what comes behind it is still there
        whole = 40 - int(place[:6]) + (place[7:] == b"png")
        assert lost(content.replace(place, b"\xff" * len(place))) == whole
    half = content[: len(content) // 2]
    known = lost(half)  # by the index
    assert 15 < known < 25
    with pytest.raises(DataError, match="bytes, index"):
        find(folder, "train")
    (folder / "train" / "index.json").unlink()
    assert lost(half) == 1  # nothing tells how many there were
    (folder / "train" / "00000_stats.json").write_text(json.dumps({"count": 50, "successes": 40}))
    assert lost(half) == known  # by img2dataset's statistics
    with pytest.raises(DataError, match=rf"{known} of 80 samples of set/train were dropped"):
        list(in_order(find(folder, "train"), batch_size=9))


def test_pictures_that_decode_to_more_than_the_budget_are_no_surprise(tmp_path: Path) -> None:
    members = [member for n in range(4) for member in ((f"{n}.png", huge_png(2000)), (f"{n}.txt", b"t"))]
    write_tar(tmp_path / "set" / "0.tar", members)
    with pytest.raises(DataError, match=r"make check-data"):
        list(in_order(find(tmp_path / "set", "train"), batch_size=1, memory_budget=20_000_000))
