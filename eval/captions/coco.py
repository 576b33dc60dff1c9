"""COCO results files: captions of any model, in the format of COCO's evaluation server, scored against annotation files.

results      [{"image_id": 404464, "caption": "black and white photo of a man standing in front of a building"}, ...]
annotations  {"images": [{"id": 404464, ...}, ...], "annotations": [{"image_id": 404464, "id": 1, "caption": "..."}, ...]}
instances    {"categories": [{"id": 1, "name": "person"}, ...], "annotations": [{"image_id": 404464, "category_id": 1}, ...], ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Object, Sample
from eval import EvalError
from eval.base.given import content_of, expect
from eval.base.records import Record
from eval.harness.ask import summarise
from eval.tasks.captioning import Captioning
from eval.tasks.chair import CHAIR

NO_IMAGE = np.empty((0, 0, 3), np.uint8)


def score(results: Path, annotations: Path, instances: Path | None = None, *, subset: bool = False) -> tuple[list[Record], list[Record]]:
    """Cells (metric, value, interval or the reason why not) and one record per image, both as in `eval.json` and beside it.

    Every annotated image must have its caption, unless `subset`: then those are scored that have one, as the example that
    comes with COCO's own evaluation does. Raises EvalError for files that are not in these formats or do not belong together.
    """
    captions, samples = read_results(results), read_annotations(annotations)
    if unknown := [key for key in captions if key not in samples]:
        raise EvalError(f"{results}: image_id {unknown[0]} and {len(unknown) - 1} more are not annotated in {annotations}")
    if (missing := [key for key in samples if key not in captions]) and not subset:
        raise EvalError(
            f"{results}: {len(missing)} of {len(samples)} images have no caption, the first is image_id {missing[0]}; "
            "add them, or score those that have one with --subset"
        )
    asked = [samples[key] for key in samples if key in captions]
    task = Captioning("results", asked)
    numbered = [{"i": i, "key": sample.key, "caption": captions[sample.key]} for i, sample in enumerate(asked)]
    records = task.grade(numbered)
    cells = summarise(task.measures, records)
    if instances:
        asked = _with_objects(asked, instances)
        chair = CHAIR("results", asked, sorted({thing.name for sample in asked for thing in sample.objects}))
        records = [record | chair.record(record["caption"], sample) for record, sample in zip(records, asked, strict=True)]
        cells += summarise(chair.measures, records)
    return cells, records


def read_results(path: Path) -> dict[str, str]:
    """image id -> caption."""
    entries = content_of(path)
    expect(isinstance(entries, list) and bool(entries), path, 'a list of {"image_id": ..., "caption": ...}', entries)
    found: dict[str, str] = {}
    for entry in entries:
        good = isinstance(entry, dict) and isinstance(entry.get("image_id"), int | str) and isinstance(entry.get("caption"), str)
        expect(good, path, 'entries {"image_id": number, "caption": string}', entry)
        if str(entry["image_id"]) in found:
            raise EvalError(f"{path}: image_id {entry['image_id']} has two captions, expected one for each image")
        found[str(entry["image_id"])] = entry["caption"]
    return found


def read_annotations(path: Path) -> dict[str, Sample]:
    """image id -> sample without a picture, in the order of the images; images without captions are left out."""
    captions: dict[str, list[str]] = {str(image["id"]): [] for image in _entries(path, "images", ("id",))}
    for each in _entries(path, "annotations", ("image_id", "caption")):
        if str(each["image_id"]) not in captions:
            raise EvalError(f"{path}: an annotation is of image_id {each['image_id']}, which is not among the images")
        expect(isinstance(each["caption"], str), path, "captions that are strings", each)
        captions[str(each["image_id"])].append(each["caption"])
    return {key: Sample(key=key, image=NO_IMAGE, captions=tuple(texts)) for key, texts in captions.items() if texts}


def _with_objects(samples: Sequence[Sample], path: Path) -> list[Sample]:
    names = {each["id"]: each["name"] for each in _entries(path, "categories", ("id", "name"))}
    things: dict[str, list[Object]] = {}
    for each in _entries(path, "annotations", ("image_id", "category_id")):
        expect(each["category_id"] in names, path, "a category_id that is among the categories", each)
        things.setdefault(str(each["image_id"]), []).append(Object(names[each["category_id"]], (0, 0, 0, 0)))
    if not any(sample.key in things for sample in samples):
        raise EvalError(f"{path} annotates no object of the images that have captions: is it of the same split?")
    return [replace(sample, objects=tuple(things.get(sample.key, ()))) for sample in samples]


def _entries(path: Path, name: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    content = content_of(path)
    entries = content.get(name) if isinstance(content, dict) else None
    expect(isinstance(entries, list), path, f'an object with a list "{name}"', content)
    for entry in entries or []:
        expect(isinstance(entry, dict) and set(fields) <= set(entry), path, f'"{name}" with the fields {", ".join(fields)}', entry)
    return entries or []
