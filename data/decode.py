"""From the bytes of a shard to samples. Unusable samples are dropped, counted by reason and named; nothing is executed.

Only members with known extensions are read: images by PIL's JPEG, PNG and WebP decoders, texts, json, and class numbers (`.cls`).
A sample with a member that could run code when loaded is refused as a whole.
"""

from __future__ import annotations

import functools
import io
import json
import re
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from lzma import LZMAError
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from webdataset.tariterators import base_plus_ext

from data.captions import decode_text
from data.remote import REMOTE
from data.sample import IMAGE_EXTENSIONS, Problems, Sample, from_record, sound
from data.shards import CLASS_NAMES, DataError, class_names
from data.tars import BehindTheEnd, Read, lost, members_of

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 28  # of an encoded image
MAX_TEXT_BYTES = 1 << 24
MAX_CAPTION = 10_000  # characters
MAX_CAPTIONS = 1_000  # of a sample
MAX_IMAGES = 256  # of a sample
REFUSED = frozenset(("pkl", "pickle", "pyd", "pt", "pth", "ckpt", "joblib", "dill"))  # pickles
SAMPLE_FORMAT = 339  # TIFF's tag: 2 for signed integers
FORMATS = ("JPEG", "PNG", "WEBP")  # without this list PIL would try every plugin, Ghostscript for EPS among them
DAMAGE = (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError)  # what reading a damaged tar raises
NOT_THERE = "listed to be kept, but not there"
TEXT = re.compile(r"txt|text|caption|captions|\d+\.txt")  # the extensions of captions: several members are several captions

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

    def drop(self, reason: str, where: str, count: int = 1) -> None:
        self.dropped += count
        self.note(reason, where, count)

    def note(self, reason: str, where: str, count: int = 1) -> None:
        self.drops[reason] += count
        if self.drops[reason] <= 3 or count > 1:
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


def read_shard(url: str, tally: Tally, keep: Collection[str] | None = None) -> Iterator[Members]:
    """The undecoded samples of one tar in file order; with `keep`, those with these keys. A damaged tar ends early, and what is lost is
    counted, without an exception; so are keys to keep that are not there."""
    read: set[str] = set()
    try:
        for members in _grouped(url, tally):
            read.add(members["__key__"])
            if keep is None or members["__key__"] in keep:
                yield members
        if keep is not None and (absent := sorted(set(keep) - read)):
            tally.seen += len(absent)
            tally.drop(NOT_THERE, f"{url}:{', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}", len(absent))
    except DAMAGE as error:
        ended = isinstance(error, BehindTheEnd)
        if keep is None:
            missing, exact = lost(url, read, lambda name: base_plus_ext(name)[0], least=0 if ended else 1)
        else:
            missing, exact = len(set(keep) - read), True
        if not missing:
            tally.note("junk or damage behind a shard's end", f"{url}: {error}; {len(read)} samples read before it:")
            return
        tally.seen += missing
        reason = "unreadable shard" if isinstance(error, OSError) else "truncated shard"
        tally.drop(reason, f"{url}: {error}; {len(read)} samples read, {'' if exact else 'at least '}{missing} lost:", missing)


def keys_of(url: str) -> Iterator[str]:
    """The keys in a tar, from its headers alone. A damaged tar ends early: `read_shard` counts what is lost."""
    with suppress(*DAMAGE):
        previous = None
        for info, _ in members_of(url):
            key, extension = base_plus_ext(info.name)
            if info.isreg() and key and extension and key != previous and not info.name.rpartition("/")[2].startswith("."):
                previous = key
                yield sound(key)


class Unusable(Exception):
    """The reason why a sample cannot be used, in the words under which it is counted; and optionally a detail."""


def decode(members: Members, needs: Collection[str], tally: Tally) -> Sample | None:
    """One sample, or None after counting the reason. `needs` names the fields of Sample that must not be empty."""
    tally.seen += 1
    where = f"{members['__url__']}:{members['__key__']}"
    try:
        _refuse(members)
        sample = describe(members, decode_image(image_bytes(members)[1]), tally, images=True)
        for need in needs:
            if not getattr(sample, need):
                there = f"; json: {' '.join(map(str, list(sample.extra)[:20]))}" if sample.extra else ""
                raise Unusable(f"no {need}", f"members: {_extensions(members)}{there}")
    except Unusable as reason:
        tally.drop(reason.args[0], " ".join([where, *(f"({detail:.200})" for detail in reason.args[1:])]))
        return None
    if len(sample.captions) > MAX_CAPTIONS:
        tally.note(f"captions beyond {MAX_CAPTIONS}", where)
        sample = replace(sample, captions=sample.captions[:MAX_CAPTIONS])
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
    """Any PIL image as upright 8-bit RGB. Raises Unusable for values that are not brightness."""
    signed, white = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (2,), 65535 if image.format == "PNG" else 0
    if image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey(image, signed, white)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, signed: bool, white: int) -> Image.Image:
    """Grey of more than 8 bits, which PIL's own conversion would clip at 255. White is 255 if no value exceeds it, else `white`; without
    one, as in TIFFs, that of the smallest number of bits that holds the values: cameras and scanners have 10, 12, 14 or 16."""
    values = np.asarray(image)
    if image.mode == "I" and not signed:  # which PIL reads as signed all the same
        values = values.view(np.uint32)
    ranges = [255, white] if white else [2**bits - 1 for bits in (8, 10, 12, 14, *range(16, 33))]
    if image.mode == "F":
        ranges = [1, *(whole for whole in ranges if whole <= 65535)]
    whole = next((whole for whole in ranges if values.min() >= 0 and values.max() <= whole), None)  # none for NaN
    if whole is None:
        raise Unusable("image whose values are not brightness")
    grey = (values.astype(np.int64) >> 8 if whole == 65535 else np.rint(values * (255 / whole))).astype(np.uint8)
    clear = image.info.get("transparency")
    return Image.fromarray(np.where(values == clear, np.uint8(255), grey) if isinstance(clear, int) else grey)


def is_read(extension: str) -> bool:
    """Whether members with this extension are read."""
    return extension in ("json", "cls", *IMAGE_EXTENSIONS) or TEXT.fullmatch(extension) is not None or is_further(extension)


def is_further(extension: str) -> bool:
    """Whether it is that of a further image, such as 1.jpg."""
    number, _, kind = extension.partition(".")
    return number.isdecimal() and kind in IMAGE_EXTENSIONS


def _refuse(members: Members) -> None:
    for extension in members:
        if extension.rpartition(".")[2] in REFUSED:
            raise Unusable(f"refused .{extension}")
    key = members["__key__"]
    if key.startswith("/") or ".." in key.split("/"):
        raise Unusable("unsafe key")
    if "__problem__" in members:
        raise Unusable(members["__problem__"])


def image_bytes(members: Members, number: int = 0) -> tuple[str, bytes]:
    """The extension and the encoded bytes of a sample's image, or of the further one of this number. Raises Unusable."""
    for extension in IMAGE_EXTENSIONS:
        name = f"{number}.{extension}" if number else extension
        if name in members:
            return extension, members[name]
    if number:
        raise Unusable("one of the sample's images is missing", f"number {number}")
    raise Unusable("no image", f"members: {_extensions(members)}")


def further_images(members: Members, record: dict[str, Any]) -> list[tuple[str, bytes]]:
    """As `image_bytes`, of all images after the first: as many as the json's `images` says. Numbered members without that field, and that
    field without a numbered member, mean something else. Raises Unusable."""
    count = record.get("images")
    if isinstance(count, bool) or not isinstance(count, int) or not any(map(is_further, members)):
        return []
    if not 1 <= count <= MAX_IMAGES:
        raise Unusable("number of images", f"expected 1 to {MAX_IMAGES}, found {count}")
    return [image_bytes(members, number) for number in range(1, count)]


def describe(members: Members, image: np.ndarray, tally: Tally, *, images: bool = False) -> Sample:
    """The sample of an image with its text and json members, and with `images` also its further images; fields that cannot be read are
    counted. Raises Unusable."""
    where = f"{members['__url__']}:{members['__key__']}"

    def text_of(extension: str) -> str:
        text, encoding = decode_text(members[extension])
        if not encoding:
            tally.note("text in an unknown encoding", f"{where}.{extension} ({members[extension][:40]!r})")
        elif encoding in ("Windows-1252", "damaged UTF-8"):
            tally.note("text that is not Unicode", f"{where}.{extension} ({text[:40]!r})")
        return text

    try:
        record = json.loads(text_of("json")) if "json" in members else {}
    except (ValueError, RecursionError):
        raise Unusable("bad json") from None
    record = {"captions": record} if isinstance(record, list) else record
    bad: Problems = {}
    if not isinstance(record, dict):
        bad["json"] = [f"expected an object, found {record!r:.80}"]
        record = {}
    text = "\n".join(text_of(extension) for extension in members if TEXT.fullmatch(extension))
    if "cls" in members and record.get("label") is None:
        record["label"] = _class(text_of("cls"), bad)
    if isinstance(record.get("label"), int) and not isinstance(record["label"], bool):
        record["label"] = _class_name(record["label"], members["__url__"], bad)
    further = further_images(members, record)
    others = [decode_image(encoded) if images else image for _, encoded in further]
    sample = from_record(members["__key__"], image, text, record, bad, others)
    for name, reasons in bad.items():
        for reason in reasons:
            tally.note(f"bad {name}", f"{where} ({reason})")
    return sample


def _class(text: str, bad: Problems) -> int | str | None:
    """A class's number, or its name."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", text):
        return int(float(text))
    if not 0 < len(text) <= 200 or not text.isprintable() or re.fullmatch(r"[-+.\d eE]+|nan|inf", text):
        bad["cls"] = [f"expected a class's number or name, found {text!r:.40}"]
        return None
    return text


def _class_name(number: int, url: str, bad: Problems) -> str | int | None:
    """The name that the shard's classnames.txt gives a number; the number if there is no such file, which a warning says once."""
    names = _names_beside(url.rpartition("/")[0])
    if not names:
        return number
    if 0 <= number < len(names) and names[number]:
        return names[number]
    bad["cls"] = [f"class {number}, but classnames.txt names 0 to {len(names) - 1}"]
    return None


@functools.cache
def _names_beside(folder: str) -> tuple[str, ...]:
    names = class_names(folder) if folder.startswith(("/", *REMOTE)) else ()
    if not names and folder.startswith(REMOTE):
        warnings.warn(
            f"{folder}/{CLASS_NAMES}: neither there nor in the parent folder, so classes are numbers. Put it beside the tars, "
            "one name per line",
            stacklevel=2,
        )
    return names


def _extensions(members: Members) -> str:
    return " ".join(f".{extension}" for extension in members if not extension.startswith("__"))


def _grouped(url: str, tally: Tally) -> Iterator[Members]:
    """Neighbouring members with the same key (name up to the first dot of the file name, as WebDataset defines it) in one dict.

    Replaces webdataset's own grouping, which after a damaged tar lets half a sample run into the next shard.
    """
    seen: set[str] = set()
    sample: Members | None = None
    ended: list[BehindTheEnd] = []
    for info, read in _whole(members_of(url, lambda reason: tally.note(reason, f"{url}:")), ended):
        key, extension = base_plus_ext(info.name)
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            tally.note("link, device or sparse file in a tar", f"{url}:{info.name}")
            continue
        hidden = info.name.rpartition("/")[2].startswith(".")
        if hidden or not key or not extension:
            tally.note("hidden member" if hidden else "member without an extension", f"{url}:{info.name}")
            continue
        key, extension = sound(key), extension.lower()
        if sample is None or sample["__key__"] != key:
            if sample is not None:
                yield sample
            sample = {"__key__": key, "__url__": url}
            if key in seen:
                sample["__problem__"] = "duplicate key"
            seen.add(key)
        if extension in sample:
            sample["__problem__"] = "duplicate member"
            continue
        limit = MAX_BYTES if extension in IMAGE_EXTENSIONS or is_further(extension) else MAX_TEXT_BYTES if is_read(extension) else 0
        if info.size <= limit:
            sample[extension] = read()
        else:
            sample[extension] = b""  # only its name matters, to refuse or ignore it
            if limit:
                sample["__problem__"] = "member too large"
    if sample is not None:
        yield sample
    if ended:
        raise ended[0]


def _whole(members: Iterator[tuple[tarfile.TarInfo, Read]], ended: list[BehindTheEnd]) -> Iterator[tuple[tarfile.TarInfo, Read]]:
    """The members. An error after their end is kept in `ended`, so that the last sample still counts."""
    try:
        yield from members
    except BehindTheEnd as error:
        ended.append(error)
