"""Whatever is in a shard: a counted drop or a clear error. No hang, no execution, no silent zero."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import MAX_BYTES, MAX_CAPTION, MAX_TEXT_BYTES, Tally, Unusable, decode, decode_image, read_shard
from data.loader import Loader, in_order
from data.sample import Sample
from data.shards import DataError, find
from tests.data.kit import collate_keys, encode, good_members, picture, write_tar

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:Image size")]

IMAGE = encode(picture(1))
HOLD, STREAM = 1 << 30, 0


class Executes:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def huge_png(side: int) -> bytes:
    """A whole, valid 1-bit image of `side * side` pixels in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 7) // 8 + 1) * side, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def read_with_one_bad(
    tmp_path: Path, members: list[tuple[str, bytes]], needs: tuple[str, ...] = ("captions",)
) -> tuple[list[Sample], Counter]:
    """What is read of twelve good samples with `members` between them, by both paths."""
    write_tar(tmp_path / "set" / "0.tar", [*good_members(6), *members, *good_members(6, start=100)])
    results = []
    for budget in (HOLD, STREAM):
        drops: Counter[str] = Counter()
        batches = in_order(
            find(tmp_path / "set", "train"), batch_size=5, needs=needs, drops=drops, memory_budget=budget, max_drop_share=0.5
        )
        results.append((sorted((sample for batch in batches for sample in batch), key=lambda sample: sample.key), drops))
    assert [sample.key for sample in results[0][0]] == [sample.key for sample in results[1][0]]
    assert results[0][1] == results[1][1]
    return results[0]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.jpg", b"not a jpeg"), ("x.txt", b"t")], "undecodable image"),
        ([("x.png", b""), ("x.txt", b"t")], "undecodable image"),
        ([("x.png", IMAGE[:-30]), ("x.txt", b"t")], "undecodable image"),
        ([("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ("x.txt", b"t")], "undecodable image"),
        ([("x.txt", b"t"), ("x.json", b"{}")], "no image"),
        ([("x.v2.png", IMAGE), ("x.v2.txt", b"t")], "no image"),
        ([("x.img", IMAGE), ("x.txt", b"t")], "no image"),
        ([("x.png", IMAGE)], "no captions"),
        ([("x.png", IMAGE), ("x.txt", b" \n")], "no captions"),
        ([("x.png", IMAGE), ("x.json", b'{"caption": null}')], "no captions"),
        ([("x.png", IMAGE), ("x.json", b'{"caption": ')], "bad json"),
        ([("x.png", IMAGE), ("x.json", b"[" * 100_000)], "bad json"),
        ([("x.png", IMAGE), ("x.json", b"\xff\xfe")], "bad json"),
        ([("../../x.png", IMAGE), ("../../x.txt", b"t")], "unsafe key"),
        ([("/etc/x.png", IMAGE), ("/etc/x.txt", b"t")], "unsafe key"),
        ([("000001.png", IMAGE), ("000001.txt", b"again")], "duplicate key"),
        ([("x.png", IMAGE), ("x.png", IMAGE), ("x.txt", b"t")], "duplicate member"),
    ],
)
def test_a_bad_sample_is_dropped_and_counted(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    samples, drops = read_with_one_bad(tmp_path, members)
    assert len(samples) == 12
    assert drops == Counter({reason: 1})


@pytest.mark.parametrize("extension", ["pkl", "pickle", "pyd", "pt", "pth", "PKL", "meta.pkl"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path: Path, extension: str) -> None:
    executed = tmp_path / "executed"
    content = pickle.dumps(Executes(executed))
    samples, drops = read_with_one_bad(tmp_path, [("x.png", IMAGE), ("x.txt", b"t"), (f"x.{extension}", content)])
    assert len(samples) == 12
    assert drops == Counter({f"refused .{extension.lower()}": 1})
    assert not executed.exists()
    pickle.loads(content)  # noqa: S301
    assert executed.exists()  # it would have worked


def test_other_members_are_ignored(tmp_path: Path) -> None:
    members = [("x.png", IMAGE), ("x.txt", b"t"), ("x.npy", b"\x93NUMPY"), ("x.mp4", b"?"), ("x.zip", b"PK"), ("x.tar", b"ustar")]
    samples, drops = read_with_one_bad(tmp_path, members)
    assert len(samples) == 13
    assert not drops


def test_a_huge_image_is_refused_by_its_header(tmp_path: Path) -> None:
    samples, drops = read_with_one_bad(tmp_path, [("x.png", huge_png(30_000)), ("x.txt", b"t"), ("y.png", huge_png(12_000))])
    assert len(samples) == 12
    assert drops == Counter({"image too large": 2})


def test_a_long_caption_is_cut_and_counted(tmp_path: Path) -> None:
    samples, drops = read_with_one_bad(tmp_path, [("x.png", IMAGE), ("x.txt", b"word " * 20_000)])
    assert len(samples) == 13
    assert drops == Counter({"caption cut": 1})
    assert max(len(caption) for sample in samples for caption in sample.captions) == MAX_CAPTION


def test_lone_surrogates_do_not_reach_a_tokenizer(tmp_path: Path) -> None:
    samples, _ = read_with_one_bad(tmp_path, [("x.png", IMAGE), ("x.json", b'{"captions": ["a \\ud800 b"]}')])
    assert samples[-1].captions[0].encode() == b"a ? b"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [10, 512, 700, 3000])
def test_a_truncated_tar_gives_what_is_whole(tmp_path: Path, workers: int, cut: int) -> None:
    """Cut inside the data, inside a header and at a block's border; the samples of the other shard stay whole."""
    bad = write_tar(tmp_path / "set" / "0.tar", good_members(20))
    write_tar(tmp_path / "set" / "1.tar", good_members(20, start=50))
    end = max(offset for offset in range(0, bad.stat().st_size, 512) if bad.read_bytes()[offset : offset + 512].strip(b"\0")) + 512
    os.truncate(bad, end - cut)
    drops: Counter[str] = Counter()
    options = {"needs": ("captions",), "drops": drops, "memory_budget": STREAM, "workers": workers, "max_drop_share": 0.5}
    keys = [int(sample.key) for batch in in_order(find(tmp_path / "set", "train"), batch_size=4, **options) for sample in batch]
    assert drops == Counter({"truncated shard": 1})
    assert keys[-20:] == list(range(50, 70))
    assert keys[:-20] == list(range(len(keys) - 20))
    assert 17 <= len(keys) - 20 < 20


def test_a_damaged_header_ends_the_shard_and_is_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set" / "0.tar", good_members(20))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"000015.png", b"00\xff015.png"))  # its checksum is now wrong
    drops: Counter[str] = Counter()
    batches = in_order(find(tmp_path / "set", "train"), batch_size=50, drops=drops, max_drop_share=0.5)
    assert sum(map(len, batches)) == 14
    assert drops == Counter({"truncated shard": 6})  # the headers behind it still name what is lost


def test_what_is_no_tar_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "0.tar", good_members(12))
    (tmp_path / "set" / "1.tar").write_text("<html>404</html>")
    (tmp_path / "set" / "2.tar").write_bytes(b"")
    (tmp_path / "set" / "3.tar.gz").write_bytes(gzip.compress((tmp_path / "set" / "0.tar").read_bytes())[:-200])
    drops: Counter[str] = Counter()
    batches = list(in_order(find(tmp_path / "set", "train"), batch_size=50, drops=drops, max_drop_share=0.5))
    assert drops == Counter({"truncated shard": 3})
    assert len(batches[0]) >= 12


def test_a_member_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with gzip.open(folder / "0.tar.gz", "wb", compresslevel=1) as file:
        for extension, size in (("png", MAX_BYTES + 1), ("json", MAX_TEXT_BYTES + 1)):
            info = tarfile.TarInfo(f"{extension}.{extension}")
            info.size = size
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(-(-size // 512) * 512))
        file.write(bytes(1024))
    tally = Tally()
    tracemalloc.start()
    assert [decode(members, (), tally) for members in read_shard(str(folder / "0.tar.gz"), tally)] == [None, None]
    assert tally.drops == Counter({"member too large": 2})
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [HOLD, STREAM])
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "no usable sample"),
        ([("a", b"no extension")], "no usable sample"),
        ([(f"{n}.v1.png", IMAGE) for n in range(150)], r"members: \.v1\.png\) no image"),
        ([(f"{n}.png", IMAGE) for n in range(150)], "no captions"),
        ([*good_members(150), *[(f"x{n}.png", b"?") for n in range(100)]], "undecodable image"),
    ],
)
def test_a_useless_set_is_an_error_and_not_a_hang(tmp_path: Path, budget: int, workers: int, members: list, words: str) -> None:
    for shard in range(2):
        write_tar(tmp_path / "set" / f"{shard}.tar", members)
    with pytest.raises(DataError, match=words):
        list(islice(Loader(find(tmp_path / "set", "train"), batch_size=4, collate=collate_keys, workers=workers, memory_budget=budget), 90))
    with pytest.raises(DataError, match=words):
        list(in_order(find(tmp_path / "set", "train"), batch_size=4, needs=("captions",), workers=workers, memory_budget=budget))


def test_a_few_bad_samples_are_no_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "0.tar", [*good_members(95), *[(f"x{n}.png", b"?") for n in range(5)]])

    def load(budget: int, **options: float) -> Loader:
        return Loader(find(tmp_path / "set", "train"), batch_size=95, collate=collate_keys, memory_budget=budget, **options)

    for budget in (HOLD, STREAM):
        loader = load(budget)
        list(islice(loader, 3))
        assert loader.drops["undecodable image"] >= 5
        with pytest.raises(DataError, match=r"of 10\d .*more than 1% allowed\): undecodable image [56]; for example /.*0.tar:x0"):
            list(islice(load(budget, max_drop_share=0.01), 3))


def test_nonsense_settings_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "0.tar", good_members(2))
    for options in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world": 2}, {"batch_size": 1, "workers": -1}):
        with pytest.raises(ValueError, match="expected batch_size"):
            Loader(find(tmp_path / "set", "train"), collate=collate_keys, **options)


def image_of(mode: str) -> Image.Image:
    image = Image.new("RGB", (4, 2), (200, 100, 50)).convert("L" if mode in ("LA", "I;16") else mode if mode != "PA" else "P")
    if mode == "I;16":
        return Image.fromarray(np.full((2, 4), 120 * 257, np.uint16))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "format"),
    [(mode, "PNG") for mode in ("RGB", "L", "1", "P", "I;16", "RGBA", "LA")]
    + [(mode, "JPEG") for mode in ("RGB", "L", "CMYK")]
    + [(mode, "WEBP") for mode in ("RGB", "RGBA")],
)
def test_every_mode_becomes_rgb(mode: str, format: str) -> None:
    buffer = io.BytesIO()
    image_of(mode).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    array = decode_image(buffer.getvalue())
    assert array.shape == (2, 4, 3)
    assert array.dtype == np.uint8
    wanted = [120] * 3 if mode in ("L", "LA", "I;16") else [200, 100, 50]
    if mode != "1":
        np.testing.assert_allclose(array[0, 0], wanted, atol=12)


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    for image, options in ((clear, {}), (palette, {"transparency": 0})):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        assert decode_image(buffer.getvalue()).min() == 255


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (16, 8), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # a camera held upright
    buffer = io.BytesIO()
    image.save(buffer, format, exif=exif)
    assert decode_image(buffer.getvalue()).shape == (16, 8, 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    for original in (encode(picture(5, 16), "JPEG"), encode(picture(5, 16), "PNG"), encode(picture(5, 16), "WEBP")):
        damaged = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(Unusable):
            assert decode_image(bytes(damaged)).dtype == np.uint8
    path = write_tar(tmp_path / "0.tar", good_members(3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 9 * 1024))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for members in read_shard(str(path), Tally()):
        assert isinstance(members["__key__"], str)
