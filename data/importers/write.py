"""The last step of every importer: rows of file names and texts become the shards of one split."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from data.captions import decode_text
from data.decode import FORMATS, MAX_BYTES, Tally, Unusable, open_image
from data.files import new_folder
from data.sample import Foil, Object, Question, from_record
from data.shards import UNKNOWN_ENCODING, DataError, Encoded, write_index, write_shard

SAMPLES_PER_SHARD = 1000
SOURCES = (*FORMATS, "BMP", "GIF", "TIFF")  # formats read; the last three are written as PNG
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """An image file (relative to the images folder), optionally a box to cut out, and its annotations. A page has `others`, more image
    files, and `page`, its texts and the numbers of its images in order.

    With `content`, the encoded image, nothing is read from the folder, and `file` only tells where it came from. The boxes of `objects`
    are in pixels of the image before it is shrunk, or with `shares` in shares of its sides.
    """

    file: str
    content: bytes | None = None
    key: str | None = None  # of the sample, where other samples refer to it; without dots
    box: Box | None = None  # left, top, right, bottom in pixels
    captions: list[str] = field(default_factory=list)
    foils: list[Foil] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    shares: bool = False
    label: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    page: list[str | int] = field(default_factory=list)


def write_split(
    rows: Iterable[Row],
    *,
    images: Path,
    out: Path,
    split: str,
    needs: Collection[str],
    size: int | None = None,
    classes: Sequence[str] | None = None,
    dropped: Counter[str] | None = None,
) -> None:
    """Write `out/split` from rows, whole or not at all, and print how many were written and dropped (`dropped`: those before).
    A sample has at least one of the fields `needs`.

    Keys are running numbers in the order of the rows, unless a row has its own; the file name is kept in `extra["file"]`. Files are
    copied as they are unless they must be cut or shrunk or are in a format that the loader does not read.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"--images {images} is not a folder")
    if size is not None and size < 1:
        raise DataError(f"--size is {size}, expected 1 or more pixels")
    tally = Tally(dropped)
    write_samples(_samples(rows, images=images, size=size, needs=needs, tally=tally), out=out, split=split, classes=classes, tally=tally)


def write_samples(samples: Iterator[Encoded], *, out: Path, split: str, tally: Tally, classes: Sequence[str] | None = None) -> None:
    """Write `out/split` from what `write_shard` takes, whole or not at all, and print how many were written and dropped."""
    folder = out / split
    if Path(split).name != split or split.startswith("."):
        raise DataError(f"--split {split!r} is not a plain name such as train")
    if folder.exists():
        raise DataError(f"{folder} is already there. Remove it to import again, or choose another --out or --split")
    shards: list[dict[str, Any]] = []
    unique = _unique(samples)
    with new_folder(folder) as partial:
        for first in unique:
            path = partial / f"{len(shards):05d}.tar"
            shards.append(write_shard(path, chain([first], islice(unique, SAMPLES_PER_SHARD - 1))))
        if not shards:
            raise DataError(f"none of {tally.seen} images could be used: {tally.summary() if tally.drops else 'there are no rows'}")
        write_index(partial, name=out.absolute().name, split=split, shards=shards, classes=classes, dropped=tally.drops)
    print(f"{folder}: {sum(shard['samples'] for shard in shards)} samples in {len(shards)} shards")
    if tally.drops:
        print(f"left out: {tally.summary()}")


def read_text(path: Path) -> str:
    """UTF-8 or UTF-16; Windows-1252 and Latin-1 as well, which is said. Raises DataError for a file that cannot be read, or is in another
    encoding."""
    try:
        text, encoding = decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Expected a file: is its path right?") from error
    if not encoding:
        raise DataError(f"{path} is {UNKNOWN_ENCODING}")
    if encoding == "Windows-1252":
        print(f"{path} is not UTF-8: it is read as Windows-1252 (Latin-1). If letters come out wrong, save it as UTF-8")
    elif encoding == "damaged UTF-8":
        lost = text.count("\ufffd")
        print(f"{path} is damaged UTF-8: {lost} bytes are invalid and are replaced by \N{REPLACEMENT CHARACTER}")
    return text


def read_one_of_many(path: Path, dropped: Counter[str]) -> str:
    """As `read_text`, but what is wrong with the file is counted; without a text if it cannot be read."""
    try:
        text, encoding = decode_text(path.read_bytes())
    except OSError:
        dropped["text file that cannot be read"] += 1
        return ""
    if not encoding:
        dropped["text in an unknown encoding"] += 1
    elif encoding in ("Windows-1252", "damaged UTF-8"):
        dropped[f"text read as {encoding}"] += 1
    return text


def _unique(samples: Iterable[Encoded]) -> Iterator[Encoded]:
    """Keys come from file names, which may be equal in two folders: the later ones get a number, `key-2`."""
    used: set[str] = set()
    for sample, extension, encoded, *further in samples:
        key = sample.key
        names = (f"{key}-{number}" for number in count(2))
        while key in used:
            key = next(names)
        used.add(key)
        yield (sample if key == sample.key else replace(sample, key=key)), extension, encoded, *further


def _samples(rows: Iterable[Row], *, images: Path, size: int | None, needs: Collection[str], tally: Tally) -> Iterator[Encoded]:
    root = images.resolve()
    written = 0
    total = len(rows) if isinstance(rows, Sized) else None
    for row in track(rows, description="importing", total=total, disable=not sys.stderr.isatty()):
        tally.seen += 1
        try:
            found = _read_inside(root, row.file) if row.content is None else row.content
            encoded, extension, image, shrink = _prepared(found, size, row.box)
            further = [_prepared(_read_inside(root, name), size, None) for name in row.others]
            foils = [asdict(foil) for foil in row.foils]
            record: dict[str, Any] = {"captions": row.captions, "label": row.label, "foils": foils, "extra": {"file": row.file} | row.extra}
            record |= {"page": row.page} if row.page else {}
            scale = (image.shape[1], image.shape[0]) if row.shares else (shrink, shrink)
            objects = tuple(replace(each, box=_scaled(each.box, *scale)) for each in row.objects)
            sample = from_record(row.key or f"{written:08d}", image, None, record, others=[other for _, _, other, _ in further])
            sample = replace(sample, questions=tuple(row.questions), objects=objects)
            if needs and not any(getattr(sample, need) for need in needs):
                raise Unusable(f"no {' or '.join(needs)}")
        except Unusable as reason:
            tally.drop(reason.args[0], row.file)
        else:
            written += 1
            yield sample, extension, encoded, *((kind, content) for content, kind, _, _ in further)


def _read_inside(root: Path, name: str) -> bytes:
    """The bytes of a file in the folder `root`. A foreign table must not pull other files of this machine into a data set."""
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise Unusable("path outside the images folder")
        if not path.is_file():
            raise Unusable("no image file")
        if path.stat().st_size > MAX_BYTES:
            raise Unusable("image too large")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # unreadable, a name that no file can have, a loop of links
        raise Unusable("unreadable file") from None


def _prepared(encoded: bytes, size: int | None, box: Box | None) -> tuple[bytes, str, np.ndarray, float]:
    """Encoded bytes to store, their extension, the decoded image, and its scale: below 1 if it was shrunk."""
    image, format = open_image(encoded, SOURCES)
    if box:
        image = _cut(image, box)
    shrink = min(1.0, size / min(image.size)) if size else 1.0
    if shrink == 1 and format in EXTENSIONS and not box:
        return encoded, EXTENSIONS[format], np.asarray(image), 1.0
    if shrink < 1:
        image = image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if format in ("JPEG", "MPO", "WEBP"):
        image.save(buffer, "JPEG", quality=95)
        return buffer.getvalue(), "jpg", np.asarray(image), shrink
    image.save(buffer, "PNG")
    return buffer.getvalue(), "png", np.asarray(image), shrink


def _scaled(box: Box, across: float, down: float) -> Box:
    left, top, right, bottom = box
    return left * across, top * down, right * across, bottom * down


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """The part of the box inside the image."""
    left, top, right, bottom = (round(min(max(at, 0), most)) for at, most in zip(box, image.size * 2, strict=True))
    if left >= right or top >= bottom:
        raise Unusable("box outside the image")
    return image.crop((left, top, right, bottom))
