"""The objects of a json file: one per line (with any file ending), in an array, or keyed by their ids in an object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.importers.write import read_text
from data.shards import DataError

Entry = dict[str, Any]
LINES = (".jsonl", ".ndjson")


def read_entries(path: Path, dropped: Counter[str]) -> list[Entry]:
    """The objects in the order of the file. Other values are counted in `dropped`.

    Raises DataError if the file is not such a list, or holds no object.
    """
    text = read_text(path)
    try:
        content = _lines(text) if path.suffix.lower() in LINES else json.loads(text)
    except (ValueError, RecursionError) as error:
        content = _lines(text)  # as in POPE's .json files
        if not content or not isinstance(content[0], dict):
            raise DataError(f"{path} is not json ({error}). Expected an array or an object of objects, or one object per line") from error
    listed = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    found = [entry for entry in listed if isinstance(entry, dict)]
    if not found:
        raise DataError(f"{path} lists no objects. Expected an array or an object of objects, or one object per line")
    if others := len(listed) - len(found):
        dropped["entry that is not an object"] += others
    return found


def strings(entry: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """The fields of these names, or None unless each holds a non-blank string."""
    values = [entry.get(name) for name in names]
    return [str(value) for value in values] if all(isinstance(value, str) and value.strip() for value in values) else None


def _lines(text: str) -> list[Any]:
    return [_parsed(line) for line in text.split("\n") if line.strip()]


def _parsed(line: str) -> Any:
    """None for an invalid line, which then counts as no object."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
