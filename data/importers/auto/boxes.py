"""Objects with boxes: COCO's instances and Visual Genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.importers.auto.place import Found, Place
from data.importers.coco import add_objects, rows_of
from data.importers.write import Row
from data.sample import Object, Question
from data.shards import DataError


def coco(place: Place) -> Found | None:
    """COCO's captions and instances: whichever is named, together with the other where it lies beside."""
    content = place.json
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return None
    if not isinstance(content["images"], list) or not isinstance(content["annotations"], list):
        return None
    name = place.path.name.lower()
    boxed = "categories" in content
    kinds = content["categories"] if boxed and isinstance(content["categories"], list) else []
    if any(isinstance(each, dict) and "keypoints" in each for each in kinds):
        raise DataError(f"{place.path}: COCO's keypoints, which are not read. Import the objects, instances_....json, or the captions")
    dropped: Counter[str] = Counter()
    if not boxed:
        rows = rows_of(place.path, None, dropped)
        beside = _beside(place.path, name.replace("captions", "instances"))
        if beside is None:
            return Found("COCO's captions", {"": list(rows.values())}, needs=("captions",), dropped=dropped)
        add_objects(rows, beside, dropped)
        name = f"COCO's captions, with the objects of {beside.name}"
        return Found(name, {"": list(rows.values())}, needs=("captions",), dropped=dropped, read=(beside,))
    beside = _beside(place.path, name.replace("instances", "captions"))
    if beside is not None:
        rows = rows_of(beside, None, dropped)
        add_objects(rows, place.path, dropped)
        return Found(f"COCO's objects, with {beside.name}", {"": list(rows.values())}, needs=("objects", "captions"), dropped=dropped)
    images = [entry for entry in content["images"] if isinstance(entry, dict)]
    rows = {entry.get("id", ""): Row(str(entry.get("file_name")), extra={"id": entry.get("id")}) for entry in images}
    add_objects(rows, place.path, dropped)
    return Found("COCO's objects", {"": list(rows.values())}, needs=("objects",), dropped=dropped)


def visual_genome(place: Place) -> Found | None:
    """objects.json, attributes.json, question_answers.json."""
    content = place.json
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if "regions" in first:
        raise DataError(
            f"{place.path}: Visual Genome's regions, whose phrases describe parts of images. Import objects.json, attributes.json or "
            "question_answers.json instead"
        )
    if "relationships" in first:
        raise DataError(
            f"{place.path}: Visual Genome's relationships. For questions about them use ARO (the importer aro), which is built from them"
        )
    if isinstance(first.get("qas"), list):
        return _genome_questions(content)
    boxes = "attributes" if isinstance(first.get("attributes"), list) else "objects"
    if "image_id" not in first or not isinstance(first.get(boxes), list):
        return None
    dropped: Counter[str] = Counter()
    rows = []
    for entry in filter(lambda each: isinstance(each, dict), content):
        listed = entry.get(boxes)
        objects = [_object(each, dropped) for each in (listed if isinstance(listed, list) else [])]
        rows.append(Row(str(entry.get("image_id")), objects=[each for each in objects if each], extra={"id": entry.get("image_id")}))
    return Found(f"Visual Genome's {boxes}", {"": rows}, needs=("objects",), dropped=dropped)


def _genome_questions(content: list[Any]) -> Found:
    dropped: Counter[str] = Counter()
    rows = []
    for entry in filter(lambda each: isinstance(each, dict), content):
        asked = [each for each in entry.get("qas") or [] if isinstance(each, dict)]
        questions = [
            Question(each["question"], each["answer"].rstrip("."))
            for each in asked
            if isinstance(each.get("question"), str) and isinstance(each.get("answer"), str) and each["answer"].strip()
        ]
        if lost := len(asked) - len(questions):
            dropped["question without an answer"] += lost
        rows.append(Row(str(entry.get("id", entry.get("image_id"))), questions=questions, extra={"id": entry.get("id")}))
    return Found("Visual Genome's questions", {"": rows}, needs=("questions",), dropped=dropped)


def _object(entry: Any, dropped: Counter[str]) -> Object | None:
    """{"names": ["tree"], "attributes": ["green"], "x", "y", "w", "h"}."""
    try:
        names = entry.get("names") or [entry["name"]]
        left, top, width, height = (float(entry[side]) for side in ("x", "y", "w", "h"))
        words = [str(word) for word in entry.get("attributes") or []]
        return Object(str(names[0]), (left, top, left + width, top + height), {"attributes": ", ".join(words)} if words else {})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        dropped["object without a name or a box"] += 1
        return None


def _beside(path: Path, name: str) -> Path | None:
    """The file of that name, in any case, in the same folder; not the file itself."""
    there: Mapping[str, Path] = {each.name.lower(): each for each in path.parent.iterdir()}
    return there.get(name) if name != path.name.lower() else None
