"""SugarCrepe (Hsieh et al. 2023), or files in its format: captions of COCO pictures and hard negatives. Used by the task "foils"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data.importers.entries import read_entries, strings
from data.importers.write import Row, write_split
from data.sample import Foil

FIELDS = ("filename", "caption", "negative_caption")


def import_sugarcrepe(*, foils: tuple[Path, ...], images: Path, out: Path, split: str = "test", size: int | None = None) -> None:
    """All of SugarCrepe's files, one sample per picture.

    Args:
        foils: json files such as swap_att.json, of {id: {"filename", "caption", "negative_caption"}}; the name of a file is the
            kind of its foils.
        images: folder of the pictures: COCO's val2017.
        out: data set folder to write, such as .data/sugarcrepe.
        split: name of the split to write.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for path in foils:
        for entry in read_entries(path, dropped):
            texts = strings(entry, FIELDS)
            if not texts:
                dropped[f"entry without {', '.join(FIELDS)}"] += 1
                continue
            file, caption, foil = texts
            row = rows.setdefault(file, Row(file=file))
            row.foils.append(Foil(caption, foil, path.stem))
            if caption not in row.captions:
                row.captions.append(caption)
    write_split(list(rows.values()), images=images, out=out, split=split, size=size, dropped=dropped, needs=("foils",))
