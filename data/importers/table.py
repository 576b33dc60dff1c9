"""A table of image paths and captions: CSV, TSV or JSON lines. Rows that repeat a path are captions of the same image."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from data.importers.write import Row, read_text, write_split
from data.shards import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def import_table(
    *,
    table: Path,
    out: Path,
    split: str,
    images: Path | None = None,
    path_column: str = "path",
    caption_column: str = "caption",
    label_column: str | None = None,
    size: int | None = None,
) -> None:
    """CSV, TSV or JSONL with a path and a caption per row.

    Args:
        table: the file, whose ending gives its format. CSV and TSV need a header line.
        out: data set folder to write, such as .data/mine.
        split: name of the split to write: train, val or test.
        images: folder that the paths are relative to; by default the folder of the table.
        path_column: name of the column with the path of the image.
        caption_column: name of the column with its caption.
        label_column: name of a column with a class label.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for record in _records(table, (path_column, caption_column, *([label_column] if label_column else [])), dropped):
        path, caption, label = record.pop(path_column, None), record.pop(caption_column, None), record.pop(label_column or "", None)
        if not isinstance(path, str) or not path:
            dropped["row without a path"] += 1
        elif not isinstance(caption, str) or not caption.strip():
            dropped["row without a caption"] += 1
        else:
            extra = {name: value for name, value in record.items() if isinstance(name, str) and value not in (None, "")}
            rows.setdefault(path, Row(file=path, label=None if label is None else str(label), extra=extra)).captions.append(caption)
    classes = sorted({row.label for row in rows.values() if row.label is not None}) if label_column else None
    root = images or table.parent
    write_split(list(rows.values()), images=root, out=out, split=split, size=size, classes=classes, dropped=dropped, needs=("captions",))


def _records(table: Path, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    if table.suffix not in (*DELIMITERS, *JSON_LINES):
        raise DataError(f"{table}: expected a name ending in {', '.join((*DELIMITERS, *JSON_LINES))}")
    text = read_text(table)
    if table.suffix in JSON_LINES:
        yield from _json_lines(table, text, columns, dropped)
        return
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=DELIMITERS[table.suffix])
    _check_columns(table, columns, reader.fieldnames or ())
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}") from error


def _json_lines(table: Path, text: str, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    seen: dict[str, None] = {}
    for line in filter(str.strip, text.split("\n")):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            dropped["line that is not a json object"] += 1
            continue
        seen |= dict.fromkeys(record)
        yield record
    _check_columns(table, columns, seen)


def _check_columns(table: Path, wanted: tuple[str, ...], found: Collection[str]) -> None:
    if missing := [column for column in wanted if column not in found]:
        raise DataError(
            f"{table} has no column {missing[0]!r}, only {', '.join(map(repr, found)) or 'none'}. "
            "Name yours with --path-column, --caption-column or --label-column"
        )
