"""COCO captions: one json with `images` and `annotations` (also Flickr8k, Flickr30k, NoCaps, ... in that format)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from data.captions import usable
from data.importers.write import Row, read_text, write_split
from data.sample import Object
from data.shards import DataError

OWN_FIELDS = ("file_name", "width", "height")


def import_coco(
    *,
    captions: Path,
    images: Path,
    out: Path,
    split: str,
    instances: Path | None = None,
    size: int | None = None,
    label: str | None = None,
) -> None:
    """COCO captions json.

    Args:
        captions: the json file, such as captions_train2017.json.
        instances: the objects of the same images, such as instances_train2017.json: for CHAIR, and for questions about objects.
        images: folder that the file names in it are relative to.
        out: data set folder to write, such as .data/coco.
        split: name of the split to write: train, val or test.
        size: shrink images so that the shorter side has this many pixels.
        label: field of the entries under "images" that becomes the sample's class label.
    """
    dropped: Counter[str] = Counter()
    found = rows_of(captions, label, dropped)
    if instances:
        add_objects(found, instances, dropped)
    rows = list(found.values())
    classes = sorted({row.label for row in rows if row.label is not None}) if label else None
    write_split(rows, images=images, out=out, split=split, size=size, classes=classes, dropped=dropped, needs=("captions",))


def rows_of(path: Path, label: str | None, dropped: Counter[str]) -> dict[Any, Row]:
    """The rows of a captions json, by their ids. What cannot be used is counted."""
    entries, annotations = _parts(path)
    rows: dict[Any, Row] = {}
    for entry in entries:
        file, image_id = (entry.get("file_name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not _is_id(image_id):
            dropped["image entry without id or file_name"] += 1
        elif image_id in rows:
            dropped["image entry with a used id"] += 1
        else:
            value = entry.get(label) if label else None
            extra = {name: value for name, value in entry.items() if name not in OWN_FIELDS}
            rows[image_id] = Row(file=file, label=None if value is None else str(value), extra=extra)
    for annotation in annotations:
        image_id, caption = (annotation.get("image_id"), annotation.get("caption")) if isinstance(annotation, dict) else (None, None)
        captions, others = usable([caption])
        if others:
            kind = next(iter(others)) if isinstance(annotation, dict) and "caption" in annotation else "captions"
            dropped["annotation whose caption is not a string" if kind == "captions" else f"bad {kind}"] += 1
        elif not _is_id(image_id) or image_id not in rows:
            dropped["annotation of an unknown image"] += 1
        else:
            rows[image_id].captions.extend(captions)
    return rows


def add_objects(rows: Mapping[Any, Row], path: Path, dropped: Counter[str]) -> None:
    """Add the objects of an instances json to the rows of their images. Crowds, whose boxes hold many, are left out and counted."""
    content = json.loads(read_text(path))
    _, annotations = _parts(path)
    listed = content.get("categories")
    known = [each for each in listed if isinstance(each, dict) and {"id", "name"} <= each.keys()] if isinstance(listed, list) else []
    names = {each["id"]: each["name"] for each in known}
    if not names:
        raise DataError(
            f'{path} has no categories: expected "images", "annotations" and "categories": [{{"id": 1, "name": "person"}}, ...]'
        )
    for annotation in annotations:
        try:
            row, name = rows.get(annotation["image_id"]), str(names[annotation["category_id"]])
            left, top, width, height = map(float, annotation["bbox"])
        except (KeyError, TypeError, ValueError):
            dropped["annotation without image_id, bbox or a known category"] += 1
            continue
        if row is None:
            dropped["object of an unknown image"] += 1
        elif annotation.get("iscrowd"):
            dropped["crowd of objects"] += 1
        else:
            row.objects.append(Object(name, (left, top, left + width, top + height)))


def _is_id(value: Any) -> TypeGuard[int | float | str]:
    """Pandas writes whole numbers as 7.0."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _parts(path: Path) -> tuple[list[Any], list[Any]]:
    try:
        content = json.loads(read_text(path))
        entries, annotations = content["images"], content["annotations"]
        if not isinstance(entries, list) or not isinstance(annotations, list):
            raise TypeError("not lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{path} is not COCO captions json ({error!r}): expected {{"images": [...], "annotations": [...]}}') from error
    return entries, annotations
