"""Parquet files: of Hugging Face's hub, and of img2dataset. They are read in parts, with pyarrow (the extra `parquet`)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from data.importers.auto.files import DOWNLOAD
from data.importers.auto.place import Found, Place
from data.importers.auto.record import ADDRESSES, CAPTIONS, PATHS, row_of
from data.importers.write import Row
from data.shards import DataError

ROWS = 64  # read at a time
PICTURES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp")


def tables(place: Place) -> Found | None:
    """A parquet file, or a folder of them (also in `data/`), whose names begin with their split: train-00000-of-00002.parquet."""
    inner = [each / file for each in place.inside if each.is_dir() for file in sorted(each.glob("*.parquet"))]
    found = [place.path] if place.ending == ".parquet" else [each for each in place.inside if each.suffix.lower() == ".parquet"] or inner
    if not found:
        return None
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{found[0]}: parquet is read by pyarrow: pip install -e '.[parquet]'") from error
    try:
        schema = parquet.read_schema(found[0])
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise DataError(f"{found[0]} is not a parquet file: {error}") from error
    names = {name.lower() for name in schema.names}
    if not names & {*PICTURES, *PATHS}:
        address = next((name for name in ADDRESSES if name in names), None)
        if address is None:
            raise DataError(f"{found[0]} has no column with pictures ({', '.join(PICTURES)}), only {', '.join(schema.names)}")
        caption = next((name for name in CAPTIONS if name in names), "caption")
        columns, out = f"--url_col {address} --caption_col {caption} ", f".data/{place.path.stem}/train"
        raise DataError(f"{place.path} " + DOWNLOAD.format(path=quote(str(place.path)), format="parquet", columns=columns, out=quote(out)))
    classes = _classes(schema.metadata or {})
    dropped: Counter[str] = Counter()
    splits: dict[str, list[Path]] = {}
    for path in found:
        match = re.match(r"(train|validation|valid|val|dev|test)\b", path.stem.lower())
        splits.setdefault(match[1] if match else "", []).append(path)
    has_text = bool(names & {*CAPTIONS, "question", "conversations"})
    rows = {split: _Rows(paths, classes, dropped) for split, paths in splits.items()}
    needs = ("captions", "questions") if has_text else ("label",)
    return Found(f"parquet with the columns {', '.join(schema.names)}", rows, needs=needs, classes=classes or None, dropped=dropped)


class _Rows:
    """Read when they are written: the pictures of a file need not fit into memory."""

    def __init__(self, paths: list[Path], classes: list[str], dropped: Counter[str]) -> None:
        self.paths, self.classes, self.dropped = paths, classes, dropped

    def __iter__(self) -> Iterator[Row]:
        from pyarrow import parquet

        for path in self.paths:
            file = parquet.ParquetFile(path)
            for batch in file.iter_batches(batch_size=ROWS):
                for record in batch.to_pylist():
                    row = row_of(record, self.dropped, self._label)
                    if row:
                        yield row

    def _label(self, value: Any) -> str:
        return self.classes[value] if isinstance(value, int) and 0 <= value < len(self.classes) else str(value)


def _classes(metadata: dict[bytes, bytes]) -> list[str]:
    """The names of a ClassLabel column, which Hugging Face keeps in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return next(list(map(str, each["names"])) for each in features.values() if each.get("_type") == "ClassLabel")
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration):
        return []
