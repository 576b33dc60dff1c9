"""A table of image paths and captions: CSV, TSV or JSON. Rows that repeat a path are captions of the same image."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from data.captions import is_missing, list_of, usable
from data.importers.write import Row, read_text, write_split
from data.shards import DataError

TOO_MANY = "row with more cells than columns"


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
    """CSV, TSV, JSONL or JSON with a path and a caption per row.

    Args:
        table: the file, whose ending gives its format. CSV and TSV need a header line. CSV has quoting, TSV has none.
        out: data set folder to write, such as .data/mine.
        split: name of the split to write: train, val or test.
        images: folder that the paths are relative to; by default the folder of the table.
        path_column: name of the column with the path of the image.
        caption_column: name of the column with its caption, or with a list of captions.
        label_column: name of a column with a class label.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for record in _records(table, (path_column, caption_column, *([label_column] if label_column else [])), dropped):
        path, cell = record.pop(path_column, None), record.pop(caption_column, None)
        captions, others = usable(_captions(cell))
        label = record.pop(label_column, None) if label_column else None
        label = None if is_missing(label) or label == "" else label
        if cell is not None and cell != "" and not str(cell).isspace():
            dropped.update(f"bad {kind}" for kind in others.elements())
        if not isinstance(path, str) or not path or is_missing(path):
            dropped["row without a path"] += 1
        elif not captions:
            dropped["row without a caption"] += 1
        else:
            extra = {name: value for name, value in record.items() if value != "" and not is_missing(value)}
            row = rows.setdefault(path, Row(file=path, label=None if label is None else str(label), extra=extra))
            row.captions.extend(captions)
            if label_column and label is None:
                dropped["row without a label"] += 1
            elif label is not None and str(label) != row.label:
                dropped["label unlike that of the picture's first row"] += 1
    classes = sorted({row.label for row in rows.values() if row.label is not None}) if label_column else None
    root = images or table.parent
    write_split(list(rows.values()), images=root, out=out, split=split, size=size, classes=classes, dropped=dropped, needs=("captions",))


def _captions(cell: Any) -> list[Any]:
    """The values of a text, which may be a list written out (`['a child', 'a kid']`), or of a list (in JSONL)."""
    listed = list_of(cell) if isinstance(cell, str) else cell
    return listed if isinstance(listed, list) else [cell]


def _records(table: Path, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    ending = table.suffix.lower()
    if ending not in READERS:
        raise DataError(f"{table}: expected a name ending in {', '.join(READERS)}")
    text = read_text(table)
    yield from READERS[ending](table, text, columns, dropped)


def _csv(table: Path, text: str, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)  # `path, "a, b"` is quoted

    def rows() -> Iterator[tuple[int, list[str]]]:
        while True:
            line = reader.line_num + 1  # a quoted cell may hold several
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"{table}, line {line}: {error}. A cell that begins with a quotation mark ends with one, and those in it are doubled"
                ) from error

    return _by_column(table, rows(), columns, dropped)


def _tsv(table: Path, text: str, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Without quoting: a quotation mark is a letter. But spreadsheets and csv writers quote cells with quotation marks in them."""
    lines = enumerate(re.split(r"\r\n|\n|\r", text), start=1)
    rows = ((line, [_unquoted(cell) for cell in content.split("\t")]) for line, content in lines if content.strip())
    return _by_column(table, rows, columns, dropped)


def _unquoted(cell: str) -> str:
    inside = cell[1:-1].split('""')
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and len(inside) > 1 and not any('"' in part for part in inside)
    return '"'.join(inside) if quoted else cell


def _by_column(
    table: Path, rows: Iterator[tuple[int, list[str]]], columns: tuple[str, ...], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    header = [name.strip() for name in next(rows, (0, []))[1]]
    _check_columns(table, columns, header)
    if repeated := [name for name, count in Counter(filter(None, header)).items() if count > 1]:
        raise DataError(f"{table} has {header.count(repeated[0])} columns called {repeated[0]!r}: rename or remove all but one")
    for line, cells in rows:
        if any(cells[len(header) :]):
            if not dropped[TOO_MANY]:
                print(f"{table}, line {line}: {len(cells)} cells in {len(header)} columns: {cells!r:.200}")
            dropped[TOO_MANY] += 1
        elif cells:
            yield {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _json_lines(table: Path, text: str, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """An object a line, or an array of objects, whatever the ending."""
    whole = _parsed(text)
    seen: dict[str, None] = {}
    for record in whole if isinstance(whole, list) else map(_parsed, filter(str.strip, text.split("\n"))):
        if not isinstance(record, dict):
            dropped["line that is not a json object"] += 1
            continue
        seen |= dict.fromkeys(record)
        yield record
    _check_columns(table, columns, seen)


def _parsed(text: str) -> Any:
    """None for what is not json."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _check_columns(table: Path, wanted: tuple[str, ...], found: Collection[str]) -> None:
    if missing := [column for column in wanted if column not in found]:
        if len(found) == 1 and (mark := next((mark for mark in "|;\t," if mark in next(iter(found))), "")):
            raise DataError(
                f"{table} has one column, {next(iter(found))!r}: are its cells separated by {mark!r}? "
                "Expected commas in a CSV, and tabs in a TSV"
            )
        raise DataError(
            f"{table} has no column {missing[0]!r}, only {', '.join(map(repr, list(found)[:20])) or 'none'}. "
            "Name yours with --path-column, --caption-column or --label-column; the first line of a CSV or TSV names the columns"
        )


READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {".csv": _csv, ".tsv": _tsv, ".jsonl": _json_lines}
READERS |= {".ndjson": _json_lines, ".json": _json_lines}
