"""From the bytes of a shard to samples. Unusable samples are dropped, counted by reason and named; nothing is executed.

Only members with known extensions are read: images by PIL's JPEG, PNG and WebP decoders, `.txt` as UTF-8 and
`.json`. A sample with a member that could run code when loaded is refused as a whole.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import IO, Any, Self

import numpy as np
from PIL import Image, ImageOps
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext

from data.sample import IMAGE_EXTENSIONS, Sample, from_record
from data.shards import DataError

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 28  # of an encoded image
MAX_TEXT_BYTES = 1 << 24
MAX_CAPTION = 10_000  # characters
REFUSED = frozenset(("pkl", "pickle", "pyd", "pt", "pth", "ckpt", "joblib", "dill"))  # pickles
FORMATS = ("JPEG", "PNG", "WEBP")  # without this list PIL would try every plugin, Ghostscript for EPS among them

# PIL warns from 89 Mpixel on and raises at twice that; `decode_image` has its own limit and counts what exceeds it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Members = dict[str, Any]  # one undecoded sample: extension -> bytes, and the strings "__key__" and "__url__"


class Tally:
    """Counts of the samples read: `drops` by reason, a few examples of them, and the number `seen`.

    `drops` also holds notes such as "caption cut" about samples that were kept; `dropped` counts only samples that were not.
    """

    def __init__(self, drops: Counter[str] | None = None) -> None:
        self.drops: Counter[str] = Counter() if drops is None else drops
        self.examples: list[str] = []
        self.seen = 0
        self.dropped = 0

    def drop(self, reason: str, where: str) -> None:
        self.dropped += 1
        self.note(reason, where)

    def note(self, reason: str, where: str) -> None:
        self.drops[reason] += 1
        if self.drops[reason] <= 3:
            self.examples.append(f"{where if where.isprintable() else ascii(where)} {reason}")

    def add(self, other: Tally) -> None:
        self.drops.update(other.drops)
        self.examples = (self.examples + other.examples)[:20]
        self.seen += other.seen
        self.dropped += other.dropped

    def check(self, max_drop_share: float, name: str) -> None:
        """Raise DataError if no usable sample was seen so far, or more than `max_drop_share` of the samples were dropped."""
        advice = "Look at it with `make check-data DATA=...`"
        if self.dropped == self.seen:
            raise DataError(f"no usable sample in {name}: {self.summary()}. {advice}")
        if self.dropped > max_drop_share * self.seen:
            allowed = f"more than {max_drop_share:.0%} allowed"
            raise DataError(f"{self.dropped} of {self.seen} samples of {name} were dropped ({allowed}): {self.summary()}. {advice}")

    def summary(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.drops.most_common()) or "the shards are empty"
        return f"{reasons}; for example {'; '.join(self.examples[:3])}" if self.examples else reasons


def read_shard(url: str, tally: Tally) -> Iterator[Members]:
    """The undecoded samples of one tar in file order. A damaged tar ends early and is counted, without an exception."""
    try:
        # Paths are opened here, only urls by webdataset: its opener would take a path with a colon for a url.
        with open(url, "rb") if url.startswith("/") else gopen(url) as stream:
            yield from _grouped(url, stream)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        tally.seen += 1
        tally.drop("unreadable shard" if isinstance(error, OSError) else "truncated shard", f"{url}: {error}")


class Unusable(Exception):
    """The reason why a sample cannot be used, in the words under which it is counted."""


def decode(members: Members, needs: Collection[str], tally: Tally) -> Sample | None:
    """One sample, or None after counting the reason. `needs` names the fields of Sample that must not be empty."""
    tally.seen += 1
    where = f"{members['__url__']}:{members['__key__']}"
    try:
        _refuse(members)
        sample = describe(members, decode_image(image_bytes(members)[1]))
        for need in needs:
            if not getattr(sample, need):
                raise Unusable(f"no {need}")
    except Unusable as reason:
        tally.drop(str(reason), f"{where} (members: {_extensions(members)})" if str(reason) == "no image" else where)
        return None
    if any(len(caption) > MAX_CAPTION for caption in sample.captions):
        tally.note("caption cut", where)
        sample = replace(sample, captions=tuple(caption[:MAX_CAPTION] for caption in sample.captions))
    return sample


def decode_image(encoded: bytes) -> np.ndarray:
    """uint8 RGB `[height, width, 3]`, upright, on white where it is transparent. Raises Unusable."""
    return np.asarray(open_image(encoded)[0])


def open_image(encoded: bytes, formats: tuple[str, ...] = FORMATS) -> tuple[Image.Image, str]:
    """The image as upright 8-bit RGB, and the name of its format. Raises Unusable."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise Unusable("image too large")
        image.load()
        return to_rgb(image), image.format or ""
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable("image too large") from None
    except Unusable:
        raise
    except Exception as error:  # damaged files raise almost anything, and none may stop training
        raise Unusable("undecodable image") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB."""
    if image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _refuse(members: Members) -> None:
    for extension in members:
        if extension.rpartition(".")[2] in REFUSED:
            raise Unusable(f"refused .{extension}")
    key = members["__key__"]
    if key.startswith("/") or ".." in key.split("/"):
        raise Unusable("unsafe key")
    if "__problem__" in members:
        raise Unusable(members["__problem__"])


def image_bytes(members: Members) -> tuple[str, bytes]:
    """The extension and the encoded bytes of a sample's image. Raises Unusable."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return extension, members[extension]
    raise Unusable("no image")


def describe(members: Members, image: np.ndarray) -> Sample:
    """The sample of an image with its `.txt` and `.json` members. Raises Unusable."""
    text = members["txt"].decode("utf-8", "replace") if "txt" in members else None
    try:
        record = json.loads(members["json"]) if "json" in members else {}
    except (ValueError, RecursionError):
        raise Unusable("bad json") from None
    try:
        return from_record(members["__key__"], image, text, record)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise Unusable("bad record") from None


def _extensions(members: Members) -> str:
    return " ".join(f".{extension}" for extension in members if not extension.startswith("__"))


def _grouped(url: str, stream: IO[bytes]) -> Iterator[Members]:
    """Neighbouring members with the same key (name up to the first dot of the file name, as WebDataset defines it) in one dict.

    Replaces webdataset's own grouping, which after a damaged tar lets half a sample run into the next shard.
    """
    seen: set[str] = set()
    sample: Members | None = None
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictHeader) as tar:
        for info in tar:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep a record of every member
            key, extension = base_plus_ext(info.name)
            if key is None or not info.isreg():
                continue
            if sample is None or sample["__key__"] != key:
                if sample is not None:
                    yield sample
                sample = {"__key__": key, "__url__": url}
                if key in seen:
                    sample["__problem__"] = "duplicate key"
                seen.add(key)
            extension = extension.lower()
            if extension in sample:
                sample["__problem__"] = "duplicate member"
                continue
            limit = MAX_BYTES if extension in IMAGE_EXTENSIONS else MAX_TEXT_BYTES if extension in ("txt", "json") else 0
            if info.size <= limit:
                file = tar.extractfile(info)
                sample[extension] = file.read() if file else b""
            else:
                sample[extension] = b""  # only its name matters, to refuse or ignore it
                if limit:
                    sample["__problem__"] = "member too large"
    if sample is not None:
        yield sample


class _StrictHeader(tarfile.TarInfo):
    """Only a block of zeros ends a tar. tarfile silently stops at a damaged or missing header, too."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
