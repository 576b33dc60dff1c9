"""Store records on disk, one JSON line per question, so that every number can be traced and an interrupted evaluation can resume.

    {"header": {everything that the records depend on}}
    {"i": 0, "key": "00000000", ...}       i is the sample's position in the evaluation; a sample may have several lines
    {"header": "end", "sha256": "..."}     of all bytes before this line

An image in a record is stored as a PNG file in a folder named after the record file, and the record has its name. A file with a
different header is overwritten, and so is one whose records are not in ascending order, not about these samples, or have changed
since the file was finished. A file without the last line is unfinished: it is truncated to the last complete batch, so that the
remaining batches are the same as in an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.files import append_text, read_text, write_text, writing

Record = dict[str, Any]


class RecordFile:
    """The records of the samples `keys`, in this order. `done` has the intact records, which cover the first `answered` samples.

    Raises FileError if the file cannot be read or written.
    """

    def __init__(self, path: Path, header: Record, keys: Sequence[str], batch_size: int) -> None:
        self.path, self.header = path, header
        text = read_text(path, errors="replace") if path.exists() else ""
        lines = _intact_lines(text)
        if lines and lines[0] != {"header": header}:
            lines = []
        self.finished = bool(lines) and lines[-1].get("header") == "end"
        self.done = [record for record in lines if "header" not in record]
        if why := _wrong(self.done, keys) or (self.finished and _changed(text, lines[-1])):
            print(f"{path}: {why}; its samples are evaluated again", file=sys.stderr)
            self.done, self.finished = [], False
        self.answered = len(keys)
        if not self.finished:
            self.answered = self.done[-1]["i"] // batch_size * batch_size if self.done else 0
            self.done = [record for record in self.done if record["i"] < self.answered]
            write_text(path, _as_lines([{"header": header}, *self.done]))

    def append(self, records: Sequence[Record]) -> None:
        records = [self._without_pictures(record) for record in records]
        append_text(self.path, _as_lines(records))
        self.done += records

    def finish(self, graded: Sequence[Record] | None = None) -> None:
        """Mark the file as complete; `graded` records, if any, replace those that were appended."""
        self.done = self.done if graded is None else list(graded)
        text = _as_lines([{"header": self.header}, *self.done])
        write_text(self.path, text + _as_lines([{"header": "end", "sha256": _digest(text)}]))
        self.finished = True

    def _without_pictures(self, record: Record) -> Record:
        pictures = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
        names = {name: f"{self.path.stem}/{record['i']:05d}-{name}.png" for name in pictures}
        for name, picture in pictures.items():
            path = self.path.with_name(self.path.stem) / Path(names[name]).name
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(picture).save(path)
        return record | names


def _as_lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _intact_lines(text: str) -> list[Record]:
    """The lines before the first incomplete line or invalid JSON object."""
    found: list[Record] = []
    for line in text.split("\n")[:-1]:  # behind the last line break there is nothing, or a torn line
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not ("header" in record or {"i", "key"} <= record.keys()):
            break
        found.append(record)
    return found


def _wrong(records: Sequence[Record], keys: Sequence[str]) -> str:
    """Why these cannot be the answers about `keys`, as two processes that write one file leave them; "" where they can."""
    for record in records:
        place = record["i"]
        if not isinstance(place, int) or not 0 <= place < len(keys) or record["key"] != keys[place]:
            return f"record {place!r} is of {record['key']!r}, which is not that sample"
    if not all(one["i"] <= next_one["i"] for one, next_one in pairwise(records)):
        return "its records do not ascend"
    return ""


def _changed(text: str, end: Record) -> str:
    """Why the records are not those that were finished; "" where they are, or the file is older and does not say."""
    body = text[: text.rstrip("\n").rfind("\n") + 1]
    return "" if end.get("sha256", _digest(body)) == _digest(body) else "its records have changed since they were finished"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
