"""`auto PATH`: recognise the format of a file or folder, say which it is, and import it.

A format is a function `Place -> Found | None`, tried in the order of `FORMATS`. One that is recognised but cannot be imported raises
DataError, which says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Annotated

import tyro

from data.importers.auto import boxes, files, folders, parquet, referring
from data.importers.auto.place import SPLITS, Found, Layout, Library, Place, any_pictures, archive, split_in, unpack
from data.importers.auto.record import merged
from data.importers.write import Row, write_split
from data.shards import DataError

# From the most to the least particular.
FORMATS = (
    folders.shards,
    referring.pickled,
    folders.saved_by_datasets,
    parquet.tables,
    folders.with_metadata,
    referring.refer,
    referring.mdetr,
    boxes.coco,
    boxes.visual_genome,
    files.for_another_importer,
    files.vqa,
    files.vqa_answers,
    files.clevr_scenes,
    files.addresses,
    files.flickr_tokens,
    referring.records,
    files.records,
    folders.pictures_with_texts,
)
CLASSES = (folders.splits_of_classes, folders.classes)  # of folders without annotations
ANNOTATIONS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".token", ".parquet")
MANY = 50  # texts in a folder that tell of a picture each
DEEP = 3  # folders, from the one that is named down to one of annotations


def import_auto(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    images: Path | None = None,
    split: str | None = None,
    size: int | None = None,
    boxes: Layout | None = None,
) -> None:
    """Recognise what a file or folder is, and import it.

    Args:
        path: an annotation file (json, jsonl, csv, tsv, txt, parquet), or a folder of pictures, of such files, or with one of them.
        out: data set folder to write, such as .data/mine.
        images: folder of the pictures. By default they are looked for beside the file. Sub-folders are searched by file name.
        split: name of the split to write: train, val or test. By default as the data say, else as the file's name does.
        size: shrink images so that the shorter side has this many pixels.
        boxes: what the four numbers of boxes with phrases are, if that is not clear: xywh (left, top, width, height) or xyxy (left, top,
            right, bottom).
    """
    if not path.exists():
        raise DataError(f"{path} is not there. Expected an annotation file, or a folder of pictures or annotations")
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images} is not a folder")
    place = Place(path, images, boxes)
    found = _recognised(place, FORMATS)
    for file, each in [(path, found)] if found else _inside(place, split):
        print(f"{file}: {each.format}")
        _write(each, file, replace(place, path=file, images=images or (path if path.is_dir() else None)), out, split, size)


def _write(found: Found, path: Path, place: Place, out: Path, split: str | None, size: int | None) -> None:
    named = _by_name(found, path, split)
    if not named:
        raise DataError(f"{path} has no split {split!r}, only {', '.join(map(repr, found.splits))}")
    library = Library(place.pictures)
    for name, rows in named.items():
        try:
            write_split(
                library.located(rows, found.dropped),
                images=library.root,
                out=out,
                split=name,
                size=size,
                classes=found.classes,
                dropped=found.dropped,
                needs=found.needs,
            )
        except DataError as error:
            if found.dropped["no image file"] and not library.names:
                raise DataError(f"{error}. {_where(library.root)}") from error
            raise
        library.report()
        found.dropped.clear()  # what was counted while the file was read is told with the first split


def _where(root: Path) -> str:
    """Where the pictures may be that are not in a folder."""
    packed = next(filter(archive, [*Place(root).inside, *Place(root.absolute().parent).inside]), None)
    where = f"If they are in {packed}, {unpack(packed)}; else name" if packed else "Name"
    return f"There are no pictures in {root}. {where} their folder with --images"


def _recognised(place: Place, formats: Sequence[Callable[[Place], Found | None]]) -> Found | None:
    return next(filter(None, (recognise(place) for recognise in formats)), None)


def _inside(place: Place, split: str | None) -> list[tuple[Path, Found]]:
    """The annotation files in a folder, which also holds their pictures, one for each split; without any, the folder as classes. Raises
    DataError if several tell of one split, and if nothing is recognised."""
    found: dict[Path, Found] = {}
    refused: list[DataError] = []
    for path in chain.from_iterable(takewhile(lambda _: not found, _annotations(place))):
        try:
            if each := _recognised(replace(place, path=path, images=place.pictures), FORMATS):
                found[path] = each
        except DataError as error:
            refused.append(error)
    found = _joined({path: each for path, each in found.items() if not any(path in other.read for other in found.values())})
    if not found and (classes := _recognised(place, CLASSES)):
        return [(place.path, classes)]
    if not found:
        raise refused[0] if refused else DataError(_unknown(place))
    return list(_apart(found, place.path, split).items())


def _apart(found: dict[Path, Found], root: Path, wanted: str | None) -> dict[Path, Found]:
    """The files, of which each tells of splits of its own; or the one with the split that is wanted. Raises DataError."""
    if len(found) == 1:
        return found
    told = {path: {_told(name) or split_in(path.stem, path.parent.name) for name in each.splits} for path, each in found.items()}
    chosen = {path: found[path] for path in found if wanted in (None, *told[path])}
    splits = [split for path in chosen for split in told[path]]
    if not chosen or None in splits or len(set(splits)) < len(splits):
        names = ", ".join(path.relative_to(root).as_posix() for path in found)
        raise DataError(f"{root} holds several annotation files: {names}. Name one, for example {next(iter(found))}")
    return chosen


def _annotations(place: Place) -> Iterator[list[Path]]:
    """The files in a folder that may be annotations, those in the folders in it, and so on. Texts of one picture each are none."""
    folders = [place.path] if place.path.is_dir() else []
    for _ in range(DEEP):
        there = [[each for each in Place(folder).inside if each.suffix.lower() in ANNOTATIONS and each.is_file()] for folder in folders]
        yield [each for some in there if len(some) < MANY for each in some]
        folders = [each for folder in folders for each in Place(folder).inside if each.is_dir()]


def _joined(found: dict[Path, Found]) -> dict[Path, Found]:
    """Files that are parts of one set, such as POPE's three, as the first of them."""
    joined: dict[Path, Found] = {}
    for path, each in found.items():
        first = next((other for other in joined.values() if each.part_of and other.part_of == each.part_of), None)
        if first is None:
            joined[path] = each
        else:
            splits = {name: [*first.splits.get(name, ()), *each.splits.get(name, ())] for name in {*first.splits, *each.splits}}
            first.splits, first.format = (
                {name: merged(rows) for name, rows in splits.items()},
                f"{first.format}; {path.name}: {each.format}",
            )
            first.dropped += each.dropped
    return joined


def _unknown(place: Place) -> str:
    packed = next(filter(archive, place.inside), None)
    if packed:
        return f"{place.path}: {packed.name} is an archive: {unpack(packed)}"
    bare = place.path.is_dir() and any_pictures(place.path)
    why = ": there are pictures, but no annotations, no texts of the same names and no folder for each of several classes" if bare else ""
    return f"{place.path}: no format that is known here ({place.described}{why}). See `make import ARGS=--help` for importers by name"


def _by_name(found: Found, path: Path, wanted: str | None) -> dict[str, Iterable[Row]]:
    """Split -> rows: all of them, or those of the split that is wanted, which is the name of the only one whatever the data say."""
    splits: dict[str, Iterable[Row]] = {}
    for name, rows in found.splits.items():
        if wanted is None or name == "" or len(found.splits) == 1 or _told(wanted) == _told(name):
            called = wanted or _told(name) or split_in(path.stem, path.absolute().parent.name)
            if called is None:
                raise DataError(f"{path}: neither the data nor the name say which split it is: name it, for example with --split train")
            splits[called] = chain(splits[called], rows) if called in splits else rows
    return splits


def _told(name: str) -> str:
    """The name here of a split that others call dev, validation, restval, ..."""
    return SPLITS.get(name.lower(), name)
