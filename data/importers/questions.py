"""Writing questions: with pictures from a folder, or onto a data set that was imported before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from data.decode import Tally, decode, image_bytes, read_shard
from data.importers.write import Row, write_samples, write_split
from data.sample import Question
from data.shards import DataError, Encoded, Split, find

MAX_KEY = 80  # bytes: a tar's header has 100 for a name


@dataclass(frozen=True)
class Asked:
    """The questions about one picture, by its file name; `id` is its number where the questions give one."""

    file: str
    id: int | None = None
    questions: list[Question] = field(default_factory=list)


def write_questions(
    asked: Sequence[Asked], *, images: Path | None, onto: Path | None, out: Path, split: str, size: int | None, dropped: Counter[str]
) -> None:
    """Write `out/split` from the pictures in the folder `images`, or from the same split of the data set `onto`, whose other
    annotations are kept. Pictures without questions are left out and counted, and so are questions without a picture.

    Keys are file names, so that answers carry the ids of their images; of equal ones in several folders all but the first get a number.
    """
    if (images is None) == (onto is None):
        raise DataError("name the pictures by one of --images (a folder) and --onto (a data set imported before)")
    if images is not None:
        rows = [Row(each.file, key=_key(each.file), questions=each.questions, extra=_id(each)) for each in asked if each.questions]
        write_split(rows, images=images, out=out, split=split, size=size, dropped=dropped, needs=("questions",))
    elif onto is not None:
        if size is not None:
            raise DataError("--size shrinks the pictures of --images; those of --onto are kept as they are")
        existing, tally = find(onto, split), Tally(dropped)
        write_samples(_extended(existing, asked, tally), out=out, split=split, classes=existing.classes, tally=tally)


def _extended(split: Split, asked: Sequence[Asked], tally: Tally) -> Iterator[Encoded]:
    by_name: dict[str, list[Asked]] = defaultdict(list)
    for each in asked:
        by_name[PurePosixPath(each.file).stem].append(each)
    by_id = {number: each for each in asked if (number := each.id if each.id is not None else _number(each.file)) is not None}
    found: Counter[str] = Counter()
    for url in split.urls:
        for members in read_shard(url, tally):
            sample = decode(members, (), tally)
            if sample is None:
                continue
            file, number = PurePosixPath(str(sample.extra.get("file"))), sample.extra.get("id")
            fitting = [each for each in by_name.get(file.stem, ()) if _same(PurePosixPath(each.file), file)]
            if len(fitting) > 1:
                fitting = [each for each in fitting if each.file == str(file)]
            about = fitting[0] if fitting else by_id.get(number if isinstance(number, int) else -1)
            if about is None or not about.questions:
                tally.drop("no questions", sample.key)
                continue
            found[about.file] += 1
            if found[about.file] == 2:
                tally.note("questions about a file name in several folders", about.file)
            extension, encoded = image_bytes(members)
            further = [image_bytes(members, number) for number in range(1, len(sample.images))]
            yield replace(sample, questions=(*sample.questions, *about.questions)), extension, encoded, *further
    for each in asked:
        if each.questions and each.file not in found:
            tally.note("questions about a missing picture", each.file)


def _same(one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether the folders agree as far as both names give them."""
    return all(a == b for a, b in zip(one.parent.parts[::-1], other.parent.parts[::-1], strict=False))


def _key(file: str) -> str | None:
    """None if the file name cannot be a key."""
    stem = PurePosixPath(file).stem
    return stem if stem and "." not in stem and stem.isprintable() and len(stem.encode()) <= MAX_KEY else None


def _id(each: Asked) -> dict[str, int]:
    return {} if each.id is None else {"id": each.id}


def _number(file: str) -> int | None:
    """310196 of COCO_val2014_000000310196.jpg."""
    digits = PurePosixPath(file).stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else None
