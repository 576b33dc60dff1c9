"""Parquet files: of Hugging Face's hub, and of img2dataset. They are read in parts, with pyarrow (the extra `parquet`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.importers.auto.files import of_entries, to_download
from data.importers.auto.place import Found, Place, any_pictures, split_in
from data.importers.auto.record import CAPTIONS, LABELS, PATHS, PICTURES, row_of
from data.importers.write import Row
from data.shards import DataError

ROWS = 64  # read at a time


def tables(place: Place) -> Found | None:
    """A parquet file, or a folder of them (also in `data/`). A column, the names of files or those of their folders tell the split:
    train-00000-of-00002.parquet, default/train/0000.parquet."""
    found = [place.path] if place.ending == ".parquet" else list(_inside(place))
    if not found:
        return None
    schema = _file(found[0]).schema_arrow
    columns = {name.lower(): name for name in schema.names}
    if not columns.keys() & {*PICTURES, *PATHS}:
        if place.path.is_dir() and any_pictures(place.path):
            return None  # img2dataset tells in a parquet what it downloaded into the folder
        if said := to_download(place.path, "parquet", schema.names):
            raise DataError(said)
        raise DataError(f"{found[0]} has no column with pictures ({', '.join(PICTURES)}), only {', '.join(schema.names)}")
    parts: dict[str, list[tuple[Path, str | None]]] = {}
    for path in found:
        names = path.relative_to(place.path).parts if place.path.is_dir() else (path.name,)
        for value in _values(path, columns.get("split")):
            parts.setdefault(value or split_in(*reversed(names)) or "", []).append((path, value))
    classes, dropped = _classes(schema.metadata or {}), Counter[str]()
    rows = {split: _Rows(some, columns.get("split"), classes, dropped) for split, some in parts.items()}
    has_text = bool(columns.keys() & {*CAPTIONS, "question", "conversations", "messages"})
    needs = ("captions", "questions") if has_text else ("label",)
    return Found(f"parquet with the columns {', '.join(schema.names)}", rows, needs=needs, classes=classes or None, dropped=dropped)


def records(path: Path) -> Found | None:
    """As `files.records`, of a table of names and texts."""
    return of_entries(list(_read(path)), path, Counter())


def _inside(place: Place) -> Iterator[Path]:
    for path in sorted(place.path.rglob("*")) if place.inside else ():
        hidden = any(part.startswith(".") for part in path.relative_to(place.path).parts)
        if path.suffix.lower() == ".parquet" and path.stem.lower() != "metadata" and not hidden:
            yield path


def _file(path: Path) -> Any:
    """pyarrow's. Raises DataError for what is no parquet file."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet is read by pyarrow: pip install -e '.[parquet]'") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise DataError(f"{path} is not a parquet file: {error}") from error


def _values(path: Path, column: str | None) -> list[str | None]:
    """The splits that a column tells; [None] without one."""
    if column is None:
        return [None]
    found = _file(path).read(columns=[column]).column(0).to_pylist()
    return list(dict.fromkeys(found)) if all(isinstance(each, str) for each in found) else [None]


class _Rows:
    """The rows of files, or those of a split in them. They are read when they are written: the pictures need not fit into memory."""

    def __init__(self, parts: list[tuple[Path, str | None]], column: str | None, classes: list[str], dropped: Counter[str]) -> None:
        self.parts, self.column, self.classes, self.dropped = parts, column, classes, dropped

    def __iter__(self) -> Iterator[Row]:
        for path, split in self.parts:
            for record in _read(path):
                if self.column is None or split is None or record[self.column] == split:
                    row = row_of(record, self.dropped, self._label)
                    if row:
                        yield row

    def _label(self, value: Any) -> str:
        return self.classes[value] if isinstance(value, int) and 0 <= value < len(self.classes) else str(value)


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Raises DataError for a damaged file."""
    try:
        for batch in _file(path).iter_batches(batch_size=ROWS):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _classes(metadata: dict[bytes, bytes]) -> list[str]:
    """The names of a ClassLabel column, which Hugging Face keeps in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        kinds = [features[name] for name in (*LABELS, *features) if isinstance(features.get(name), dict)]
        return next(list(map(str, each["names"])) for each in kinds if each.get("_type") == "ClassLabel")
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration):
        return []
