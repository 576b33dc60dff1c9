"""Phrases with the boxes of what they name: RefCOCO and its relatives, in the forms in which they are passed on.

    refer      refs(unc).json, the REFER toolkit's list (there a pickle), with instances.json beside it
    mdetr      MDETR's json in COCO's form, whose images have captions: RefCOCO's, and Flickr30k's with parts of captions
    records    an image, one phrase or several, and a box in each record: json, an object a line, or a table

Boxes become objects, and the phrases `extra["referring"]`, [phrase, number of the object] each. An object without a known category is
called by its first phrase.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.captions import list_of
from data.importers.auto.files import entries_of
from data.importers.auto.place import Found, Layout, Place
from data.importers.auto.record import IDS, PATHS, first, lowered
from data.importers.write import Box, Row
from data.sample import Object
from data.shards import DataError

PHRASES = (
    *("expressions", "expression", "referring_expression", "refexp", "phrases", "phrase", "sents", "sent", "sentences", "sentence"),
    *("raw", "text", "caption", "query"),
)
BOXES = ("bbox", "box", "gt_bbox", "gt_box", "bounding_box", "bboxes", "boxes", "xyxy", "xywh", "bbox_xyxy", "bbox_xywh")
SIZES = ("width", "height")
ENOUGH = 10  # boxes from which their form follows without the sizes of images
MOST = 0.9  # share of the boxes that have to allow a form; others are bad boxes
UNPICKLE = "import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))"
NO_BOX, NO_PHRASE, NO_AREA = "box that is not four numbers", "phrase that is not a text", "box without an area"
OUTSIDE, SEVERAL, UNKNOWN = "box outside the image", "phrase of several boxes", "phrase of an unknown object"


@dataclass
class Named:
    """The phrases and objects of one image, as they are found."""

    file: str
    extra: dict[str, Any] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    phrases: list[list[Any]] = field(default_factory=list)

    def add(self, phrase: str, box: Box, name: str | None = None) -> None:
        """Objects with the same box are one; a phrase that is known of it is not repeated."""
        place = next((number for number, each in enumerate(self.objects) if each.box == box), len(self.objects))
        if place == len(self.objects):
            self.objects.append(Object(name or phrase, box))
        if [phrase, place] not in self.phrases:
            self.phrases.append([phrase, place])

    def row(self, *, shares: bool = False) -> Row:
        extra = self.extra | ({"referring": self.phrases} if self.phrases else {})
        return Row(self.file, captions=self.captions, objects=self.objects, extra=extra, shares=shares)


def pickled(place: Place) -> Found | None:
    """RefCOCO as it is published, refs(unc).p: a pickle, which is never read."""
    found = place.path if place.ending in (".p", ".pkl", ".pickle") else None
    if place.path.is_dir():
        found = next((each for each in place.inside if each.name.startswith("refs(") and each.suffix == ".p"), None)
    if found is None:
        return None
    raise DataError(
        f"{found} is a pickle: reading one can run any code, so none is read here. If you trust where it comes from, write it as json "
        f"once, beside instances.json, and import that:\n  python -c {UNPICKLE!r} {str(found)!r} {str(found.with_suffix('.json'))!r}"
    )


def refer(place: Place) -> Found | None:
    """[{"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent": "the lady in blue"}, ...]}, ...]. Boxes, names and pictures are in
    instances.json."""
    content = place.json
    listed = content if isinstance(content, list) else []
    if not listed or not isinstance(listed[0], dict) or not {"ann_id", "sentences"} <= listed[0].keys():
        return None
    beside = place.path.absolute().parent / "instances.json"
    if not beside.is_file():
        raise DataError(f"{place.path}: RefCOCO's phrases. Their boxes are in instances.json: put it beside")
    files, names, boxes = _instances(Place(beside))
    dropped: Counter[str] = Counter()
    splits: dict[str, dict[str, Named]] = {}
    for entry in listed:
        if not isinstance(entry, dict):
            dropped["entry that is not an object"] += 1
            continue
        annotation = boxes.get(_key(entry.get("ann_id")))
        file = files.get(_key(entry.get("image_id")))
        phrases = _texts(entry.get("sentences"), dropped)
        if annotation is None or file is None:
            dropped[UNKNOWN] += max(len(phrases), 1)
            continue
        box = _absolute(_numbers(annotation.get("bbox")), "xywh", dropped)
        if box is None:
            continue
        split = entry.get("split")
        by_file = splits.setdefault(split if isinstance(split, str) else "", {})
        image = by_file.setdefault(file, Named(file, extra={"id": entry.get("image_id")}))
        for phrase in phrases:
            image.add(phrase, box, names.get(_key(annotation.get("category_id"))))
    rows = {split: [each.row() for each in images.values()] for split, images in splits.items()}
    return Found(f"RefCOCO's phrases, with {beside.name}", rows, needs=("objects",), dropped=dropped)


def mdetr(place: Place) -> Found | None:
    """{"images": [{"id", "file_name", "caption", "dataset_name"}], "annotations": [{"image_id", "bbox", "tokens_positive"}]}. There is an
    image for every phrase or caption. Of RefCOCO the caption is the phrase, of others the parts that `tokens_positive` names."""
    content = place.json
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or not isinstance(content.get("annotations"), list):
        return None
    if not any(isinstance(each, dict) and "tokens_positive" in each for each in content["annotations"][:20]):
        return None
    dropped: Counter[str] = Counter()
    images: dict[str, Named] = {}
    asked: dict[Any, tuple[Named, str, bool]] = {}
    for entry in content["images"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or _key(entry.get("id")) is None:
            dropped["image entry without id or file_name"] += 1
            continue
        if not _is_text(entry.get("caption")):
            dropped[NO_PHRASE] += 1
            continue
        caption, whole = entry["caption"].strip(), "ref" in str(entry.get("dataset_name", "")).lower()
        image = images.setdefault(entry["file_name"], Named(entry["file_name"], extra={"id": entry.get("original_id")}))
        if not whole and caption not in image.captions:
            image.captions.append(caption)
        asked[_key(entry["id"])] = image, entry["caption"], whole
    found: dict[tuple[Any, str], list[Box]] = {}
    for annotation in content["annotations"]:
        known = asked.get(_key(annotation.get("image_id"))) if isinstance(annotation, dict) else None
        if known is None:
            dropped["annotation of an unknown image"] += 1
            continue
        _, caption, whole = known
        phrase = caption.strip() if whole else _part(caption, annotation.get("tokens_positive"))
        if not phrase:
            dropped[NO_PHRASE] += 1
        elif box := _absolute(_numbers(annotation.get("bbox")), "xywh", dropped):
            found.setdefault((_key(annotation["image_id"]), phrase), []).append(box)
    for (number, phrase), boxes in found.items():
        if len(boxes) == 1:
            asked[number][0].add(phrase, boxes[0])
        else:
            dropped[SEVERAL] += 1
    rows = [each.row() for each in images.values()]
    return Found("MDETR's phrases with boxes", {"": rows}, needs=("objects",), dropped=dropped)


def records(place: Place) -> Found | None:
    """An image, a phrase and a box in each record. The box is xywh or xyxy, in pixels or in shares of the sides, the same in all records:
    as the field's name says, or as --boxes does, or as all records together allow."""
    dropped: Counter[str] = Counter()
    entries = [lowered(entry) for entry in entries_of(place, dropped)]
    names = {name for entry in entries[:100] for name in entry}
    box_name = next((name for name in BOXES if name in names), None)
    phrase_name = next((name for name in PHRASES if name in names), None)
    if box_name is None or phrase_name is None or not names & {*PATHS, *IDS, "img", "picture"} or "conversations" in names:
        return None
    found: list[tuple[str, str, list[str], tuple[float, ...], tuple[float, float] | None]] = []
    for entry in entries:
        file, numbers = _file(entry), _numbers(entry.get(box_name))
        phrases = _texts(entry.get(phrase_name), dropped)
        if file is None:
            dropped["record without a picture"] += 1
        elif numbers is None:
            dropped[NO_BOX] += 1
        elif phrases:
            split = entry.get("split")
            found.append((split if isinstance(split, str) else "", file, phrases, numbers, _size(entry)))
    if not found:
        return None
    shares = _most(max(numbers) <= 1 for _, _, _, numbers, _ in found)
    sized = [(numbers, (1.0, 1.0) if shares else size) for _, _, _, numbers, size in found]
    layout = place.boxes or _said(box_name) or _layout(place.path, sized)
    splits: dict[str, dict[str, Named]] = {}
    for split, file, phrases, numbers, size in found:
        box = _absolute(numbers, layout, dropped, (1.0, 1.0) if shares else size)
        if box is not None:
            image = splits.setdefault(split, {}).setdefault(file, Named(file))
            for phrase in phrases:
                image.add(phrase, box)
    rows = {split: [each.row(shares=shares) for each in images.values()] for split, images in splits.items()}
    unit = "shares of the sides" if shares else "pixels"
    return Found(f"phrases with boxes ({box_name}: {layout} in {unit}), {len(found):,} records", rows, needs=("objects",), dropped=dropped)


def _layout(path: Path, boxes: Sequence[tuple[tuple[float, ...], tuple[float, float] | None]]) -> Layout:
    """Which of the two forms the boxes of a file have, as most of them allow: left, top, right, bottom grow, and left and width stay within
    an image whose (width, height) is known. Raises DataError if both are possible, or neither."""
    corners = _most(c > a and d > b for (a, b, c, d), _ in boxes)
    sized = [(box, size) for box, size in boxes if size]
    sides = (
        _most(a + c <= width * 1.01 and b + d <= height * 1.01 for (a, b, c, d), (width, height) in sized)
        if sized
        else not corners or len(boxes) < ENOUGH
    )
    if corners != sides:
        return "xyxy" if corners else "xywh"
    raise DataError(
        f"{path}: its boxes can be left, top, width, height, or left, top, right, bottom: {list(boxes[0][0])}. Say which they are: "
        "--boxes xywh or --boxes xyxy"
    )


def _most(found: Iterable[bool]) -> bool:
    values = list(found)
    return sum(values) >= MOST * len(values)


def _absolute(
    numbers: tuple[float, ...] | None, layout: Layout, dropped: Counter[str], size: tuple[float, float] | None = None
) -> Box | None:
    """Left, top, right, bottom; None, counted, for what is no box of the image, whose (width, height) may be known."""
    if numbers is None:
        dropped[NO_BOX] += 1
        return None
    left, top, right, bottom = numbers
    if layout == "xywh":
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        dropped[NO_AREA] += 1
        return None
    if right <= 0 or bottom <= 0 or (size and (left >= size[0] or top >= size[1])):
        dropped[OUTSIDE] += 1
        return None
    return left, top, right, bottom


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Four finite numbers, also as a text, or as the only box of a list."""
    if isinstance(value, str):
        value = list_of(value) or value.strip("[]() ").split(",")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        (value,) = value
    if not isinstance(value, list) or len(value) != 4 or any(isinstance(each, bool) for each in value):
        return None
    try:
        numbers = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _texts(value: Any, dropped: Counter[str]) -> list[str]:
    """One phrase or several, plain or as {"raw": ...} or {"sent": ...}; others are counted."""
    listed = (list_of(value) or [value]) if isinstance(value, str) else value if isinstance(value, list) else [value]
    texts = [first(each, ("raw", "sent", "sentence", "text")) if isinstance(each, Mapping) else each for each in listed]
    found = [each.strip() for each in texts if _is_text(each)]
    if lost := len(texts) - len(found):
        dropped[NO_PHRASE] += lost
    return list(dict.fromkeys(found))


def _part(caption: str, spans: Any) -> str:
    """The parts of a caption between [start, end] in characters, joined."""
    try:
        return " ".join(caption[int(start) : int(end)].strip() for start, end in spans).strip()
    except (TypeError, ValueError):
        return ""


def _instances(place: Place) -> tuple[dict[Any, str], dict[Any, str], dict[Any, Mapping[str, Any]]]:
    """Of COCO's instances: image -> file, category -> name, annotation -> itself, each by its id."""
    content = place.json
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in ("images", "annotations")):
        raise DataError(f'{place.path} is not COCO instances json: expected {{"images": [...], "annotations": [...], "categories": [...]}}')
    listed = content.get("categories")
    images, annotations, categories = (
        [each for each in some if isinstance(each, dict)]
        for some in (content["images"], content["annotations"], listed if isinstance(listed, list) else [])
    )
    files = {_key(each.get("id")): each["file_name"] for each in images if isinstance(each.get("file_name"), str)}
    names = {_key(each.get("id")): each["name"] for each in categories if isinstance(each.get("name"), str)}
    return files, names, {_key(each.get("id")): each for each in annotations}


def _key(value: Any) -> str | None:
    """An id: tools write 7, 7.0 or "7"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _file(entry: Mapping[str, Any]) -> str | None:
    found = first(entry, (name for name in (*PATHS, "picture", *IDS) if isinstance(entry.get(name), str | int)))
    return None if found is None else str(found)


def _size(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """(width, height), if both are given."""
    sides: Iterable[Any] = (entry.get(name) for name in SIZES)
    numbers = [float(side) for side in sides if isinstance(side, int | float | str) and str(side).replace(".", "", 1).isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None


def _said(name: str) -> Layout | None:
    return "xyxy" if "xyxy" in name else "xywh" if "xywh" in name else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
