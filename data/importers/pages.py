"""Pages of interleaved images and texts, as MMC4 (arXiv 2304.06939) and OBELICS (arXiv 2306.16527) write them: one json object a page.

MMC4: `text_list`, and `image_info` with `image_name` and `matched_text_index`: an image precedes its text.
OBELICS: `images` and `texts` of equal length, where one of the two is null at every place.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data.decode import MAX_IMAGES
from data.importers.entries import Entry, read_entries
from data.importers.write import Row, write_split
from data.shards import DataError

Parts = list[tuple[str, str]]  # ("image", file) and ("text", text), in the order in which they are read
EXPECTED = "page without text_list and image_info (MMC4), or images and texts of equal length (OBELICS)"


def import_pages(
    *, pages: Path, images: Path, out: Path, split: str, size: int | None = None, most: int = 5, least_images: int = 1
) -> None:
    """Pages of several images and texts, in MMC4's or OBELICS's json; images are files, named in it.

    Args:
        pages: jsonl or json file with one object a page.
        images: folder that the names of images are relative to.
        out: data set folder to write, such as .data/mine.
        split: name of the split to write: train, val or test.
        size: shrink images so that the shorter side has this many pixels.
        most: images per page; a page ends before the next one (Flamingo, appendix A.3.2: 5).
        least_images: pages with fewer images are left out.
    """
    if not 1 <= most <= MAX_IMAGES:
        raise DataError(f"--most is {most}, expected 1 to {MAX_IMAGES} images per page")
    dropped: Counter[str] = Counter()
    rows = []
    for entry in read_entries(pages, dropped):
        parts = parts_of(entry)
        if parts is None:
            dropped[EXPECTED] += 1
            continue
        row = _row(parts, most)
        count = len({part for part in row.page if isinstance(part, int)}) if row else 0
        if row is None or count < least_images:
            dropped["page with too few images"] += 1
        elif not any(isinstance(part, str) for part in row.page):
            dropped["page without text"] += 1
        else:
            rows.append(row)
    write_split(rows, images=images, out=out, split=split, size=size, dropped=dropped, needs=("page",))


def parts_of(entry: Entry) -> Parts | None:
    """The parts of a page, None for an object that is no page."""
    texts, images, info = entry.get("texts"), entry.get("images"), entry.get("image_info")
    if isinstance(texts, list) and isinstance(images, list) and len(texts) == len(images):
        return [part for image, text in zip(images, texts, strict=True) for part in (*_image(image), *_text(text))]
    texts = entry.get("text_list")
    if not isinstance(texts, list) or not isinstance(info, list):
        return None
    before: dict[int, list[Any]] = {}
    for each in info:
        if isinstance(each, dict) and isinstance(place := each.get("matched_text_index"), int):
            before.setdefault(place, []).append(each.get("image_name"))
    return [
        part
        for place, text in enumerate(texts)
        for part in (*(one for name in before.get(place, ()) for one in _image(name)), *_text(text))
    ]


def _row(parts: Parts, most: int) -> Row | None:
    """The page up to its last allowed image and the texts after it. None without an image."""
    files: list[str] = []
    page: list[str | int] = []
    for kind, value in parts:
        if kind == "text":
            page.append(value)
            continue
        if len(files) == most:
            break
        page.append(len(files))
        files.append(value)
    return Row(file=files[0], others=files[1:], page=page) if files else None


def _image(value: Any) -> Parts:
    return [("image", value)] if isinstance(value, str) and value.strip() else []


def _text(value: Any) -> Parts:
    return [("text", value.strip())] if isinstance(value, str) and value.strip() else []
