"""Files that users give, in the formats of public evaluation servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.importers.write import read_text
from eval import EvalError


def content_of(path: Path) -> Any:
    """What a JSON file holds. Raises EvalError if it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{path} is not a JSON file ({error})") from error


def expect(good: bool, path: Path, expected: str, found: Any) -> None:
    """Raises EvalError unless `good`: the file, what was expected, and the beginning of what was found."""
    if not good:
        raise EvalError(f"{path}: expected {expected}; found {found!s:.80}")
