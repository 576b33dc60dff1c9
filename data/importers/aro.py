"""ARO (Yuksekgonul et al. 2023), or files in its format: captions against the same words in another order. Used by the task "foils"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data.importers.entries import Entry, read_entries, strings
from data.importers.write import Box, Row, write_split
from data.sample import Foil

ABOUT = ("image_id", "relation_name", "attributes")
CORNER_AND_SIZE = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def import_aro(*, cases: tuple[Path, ...], images: Path, out: Path, split: str = "test", size: int | None = None) -> None:
    """ARO's relations, attributes and orders, a sample for each case.

    Args:
        cases: visual_genome_relation.json and visual_genome_attribution.json (image_path, true_caption, false_caption and the
            box that is cut out), or orders of COCO or Flickr30k captions (image, caption_options: the true one and its shuffles).
        images: folder that the names in them are relative to.
        out: data set folder to write, such as .data/aro.
        split: name of the split to write.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    for path in cases:
        for entry in read_entries(path, dropped):
            row = _order(entry) if "caption_options" in entry else _swap(entry)
            if row:
                rows.append(row)
            else:
                dropped["entry that is neither a swap nor an order"] += 1
    write_split(rows, images=images, out=out, split=split, size=size, dropped=dropped, needs=("foils",))


def _swap(entry: Entry) -> Row | None:
    """A swapped relation or attribute. Only the box around its two objects is shown: the rest of a photo may show similar objects."""
    texts, box = strings(entry, ("image_path", "true_caption", "false_caption")), _box(entry)
    if not texts or not box:
        return None
    file, true, false = texts
    kind = "relation" if "relation_name" in entry else "attribution"
    about: dict[str, Any] = {name: entry[name] for name in ABOUT if name in entry}
    return Row(file=file, box=box, captions=[true], foils=[Foil(true, false, kind)], extra=about)


def _order(entry: Entry) -> Row | None:
    """A caption and its shuffles. A shuffle equal to the caption is no foil."""
    texts, options = strings(entry, ("image",)), entry["caption_options"]
    if not texts or not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        return None
    true, *shuffled = options
    return Row(file=texts[0], captions=[true], foils=[Foil(true, each, "order") for each in shuffled if each != true])


def _box(entry: Entry) -> Box | None:
    numbers: list[Any] = [entry.get(name) for name in CORNER_AND_SIZE]
    if not all(isinstance(number, int | float) for number in numbers):
        return None
    x, y, width, height = numbers
    return (x, y, x + width, y + height)
