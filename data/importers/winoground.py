"""Winoground (Thrush et al. 2022), or pairs in its format: two pictures, two captions with equal words. Used by the task "winoground"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data.importers.entries import Entry, read_entries, strings
from data.importers.write import Row, write_split

FIELDS = ("image_0", "image_1", "caption_0", "caption_1")
ENDING = ".png"  # of the pictures; the published file leaves it out


def import_winoground(*, examples: Path, images: Path, out: Path, split: str = "test", size: int | None = None) -> None:
    """Winoground's examples, two samples each.

    Args:
        examples: examples.jsonl (or the same as a json array) with image_0, image_1, caption_0, caption_1 and tags.
        images: folder that the names in it are relative to; a name without an ending is a .png.
        out: data set folder to write, such as .data/winoground.
        split: name of the split to write.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    for number, entry in enumerate(read_entries(examples, dropped)):
        texts = strings(entry, FIELDS)
        if texts:
            rows += _pair(number, entry, *texts)
        else:
            dropped[f"entry without {', '.join(FIELDS)}"] += 1
    write_split(rows, images=images, out=out, split=split, size=size, dropped=dropped, needs=("captions",))


def _pair(number: int, entry: Entry, image_0: str, image_1: str, caption_0: str, caption_1: str) -> list[Row]:
    """Each names the other; its kind is the coarse tag (object, relation, both), or else the fine one."""
    about = {name: value for name, value in entry.items() if name not in FIELDS and value not in (None, "")}
    about |= {"kind": str(kind)} if (kind := entry.get("collapsed_tag") or entry.get("tag")) else {}
    return [
        Row(
            file=image if Path(image).suffix else image + ENDING,
            key=f"{number:06d}-{side}",
            captions=[caption],
            extra=about | {"pair": f"{number:06d}-{1 - side}"},
        )
        for side, (image, caption) in enumerate(((image_0, caption_0), (image_1, caption_1)))
    ]
