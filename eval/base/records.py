"""Answers on disk, one JSON line per question, so that any number can be traced and an interrupted evaluation can resume.

    {"header": {everything that the answers depend on}}
    {"i": 0, "key": "00000000", ...}       i is the sample's position in the evaluation; a sample may have several lines
    {"header": "end"}

A picture in a record is stored as a PNG file in a folder named like the file of records, and the record names it.
A file with another header is started again. A file without its last line is unfinished: it is cut back to the last batch
boundary, so that the remaining batches are those of an uninterrupted run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.files import write_text

Record = dict[str, Any]
END: Record = {"header": "end"}


class RecordFile:
    """Answers about `keys`, in that order. `done` holds the intact lines, which cover the first `answered` samples."""

    def __init__(self, path: Path, header: Record, keys: Sequence[str], batch_size: int) -> None:
        self.path, self.header = path, header
        lines = _intact_lines(path)
        if lines and lines[0] != {"header": header}:
            lines = []
        self.finished = bool(lines) and lines[-1] == END
        self.done = [record for record in lines if "header" not in record]
        if any(not 0 <= record["i"] < len(keys) or record["key"] != keys[record["i"]] for record in self.done):
            self.done, self.finished = [], False
        self.answered = len(keys)
        if not self.finished:
            self.answered = self.done[-1]["i"] // batch_size * batch_size if self.done else 0
            self.done = [record for record in self.done if record["i"] < self.answered]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_as_lines([{"header": header}, *self.done]), encoding="utf-8")

    def append(self, records: Sequence[Record]) -> None:
        records = [self._without_pictures(record) for record in records]
        self._write(records)
        self.done += records

    def finish(self, graded: Sequence[Record] | None = None) -> None:
        """Mark the file as complete; `graded` records, if any, replace those that were appended."""
        if graded is None:
            self._write([END])
        else:
            self.done = list(graded)
            write_text(self.path, _as_lines([{"header": self.header}, *self.done, END]))
        self.finished = True

    def _without_pictures(self, record: Record) -> Record:
        pictures = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
        names = {name: f"{self.path.stem}/{record['i']:05d}-{name}.png" for name in pictures}
        for name, picture in pictures.items():
            path = self.path.with_name(self.path.stem) / Path(names[name]).name
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
        return record | names

    def _write(self, records: Sequence[Record]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_as_lines(records))


def _as_lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _intact_lines(path: Path) -> list[Record]:
    """The lines before the first incomplete line or invalid JSON object."""
    found: list[Record] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(record, dict) or not ("header" in record or {"i", "key"} <= record.keys()):
            break
        found.append(record)
    return found
