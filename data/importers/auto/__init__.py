"""`auto PATH`: recognise the format of a file or folder, say which it is, and import it.

A format is a function `Place -> Found | None`, tried in the order of `FORMATS`. One that is recognised but cannot be imported raises
DataError, which says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from data.importers.auto import boxes, files, folders, parquet, referring
from data.importers.auto.place import Found, Layout, Library, Place
from data.importers.write import write_split
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
    files.vqa,
    files.clevr_scenes,
    files.addresses,
    files.flickr_tokens,
    referring.records,
    files.records,
    folders.pictures_with_texts,
)
CLASSES = (folders.splits_of_classes, folders.classes)  # of folders without annotations
SPLITS = {"train": "train", "training": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testdev": "test", "testing": "test"}
ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")
SPLITS |= {"testa": "testA", "testb": "testB"}  # of RefCOCO: people, and other objects


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
    if found is None:
        path, found = _inside(place)
    print(f"{path}: {found.format}")
    named = {_named(name, path, split): rows for name, rows in found.splits.items() if split is None or name in (split, "") or _one(found)}
    if not named:
        raise DataError(f"{path} has no split {split!r}, only {', '.join(map(repr, found.splits))}")
    library = Library(place.pictures)
    for name, rows in named.items():
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
        library.report()
        found.dropped.clear()  # what was counted while the file was read is told with the first split


def _recognised(place: Place, formats: Sequence[Callable[[Place], Found | None]]) -> Found | None:
    return next(filter(None, (recognise(place) for recognise in formats)), None)


def _inside(place: Place) -> tuple[Path, Found]:
    """The only annotation file in a folder, which also holds its pictures; without one, the folder as classes. Raises DataError if there
    are several, and if nothing is recognised."""
    files = [path for path in place.inside if path.is_file() and path.suffix.lower() in ANNOTATIONS]
    found = {path: found for path in files if (found := _recognised(replace(place, path=path, images=place.pictures), FORMATS))}
    if len(found) > 1:
        several = ", ".join(path.name for path in found)
        raise DataError(f"{place.path} holds several annotation files: {several}. Name one, for example {next(iter(found))}")
    if not found and (classes := _recognised(place, CLASSES)):
        return place.path, classes
    if not found:
        unknown = f"{place.path}: no format that is known here ({place.described})"
        raise DataError(f"{unknown}. See `make import ARGS=--help` for importers by name")
    return next(iter(found.items()))


def _one(found: Found) -> bool:
    return len(found.splits) == 1


def _named(name: str, path: Path, wanted: str | None) -> str:
    """The split's name: as asked for, as the data say, or as the path does."""
    if wanted is not None:
        return wanted
    if name:
        return SPLITS.get(name.lower(), name)
    words = [word for part in (path.stem, path.parent.name) for word in re.split(r"[^a-z]+", part.lower())]
    said = next((SPLITS[word] for word in words if word in SPLITS), None)
    if said is None:
        raise DataError(f"{path}: neither the data nor the name say which split it is: name it, for example with --split train")
    return said
