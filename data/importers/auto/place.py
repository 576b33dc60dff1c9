"""A file or folder to recognise, what was found in it, and the pictures that it names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data.importers.folder import ENDINGS
from data.importers.write import Row, read_text

Layout = Literal["xywh", "xyxy"]  # of a box: left, top, width, height; or left, top, right, bottom


@dataclass
class Found:
    """What a format was recognised in: rows for each split ("" if the data do not say which), and which fields a sample needs one of."""

    format: str
    splits: Mapping[str, Iterable[Row]]
    needs: tuple[str, ...] = ("captions", "questions")
    classes: Sequence[str] | None = None
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class Place:
    """A path, and the folder of its pictures if it was named. What is read of it is read once."""

    path: Path
    images: Path | None = None
    boxes: Layout | None = None

    @property
    def ending(self) -> str:
        """Of a file, in lower case; "" for a folder."""
        return self.path.suffix.lower() if self.path.is_file() else ""

    @cached_property
    def inside(self) -> list[Path]:
        """Of a folder what is in it, without hidden files; [] for a file."""
        return sorted(each for each in self.path.iterdir() if not each.name.startswith(".")) if self.path.is_dir() else []

    @cached_property
    def text(self) -> str:
        return read_text(self.path)

    @cached_property
    def json(self) -> Any:
        """The content of a json file; None for others and for what is not json, such as an object a line."""
        if self.ending != ".json":
            return None
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        if self.images is not None:
            return self.images
        return self.path if self.path.is_dir() else self.path.absolute().parent

    @property
    def described(self) -> str:
        if self.path.is_dir():
            kinds = Counter(each.suffix.lower() or ("folder" if each.is_dir() else "no ending") for each in self.inside)
            return "a folder with " + (", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5)) or "nothing")
        if isinstance(self.json, dict):
            return f"json with the fields {', '.join(map(repr, list(self.json)[:8]))}"
        return f"a file ending in {self.ending or 'nothing'}"


class Library:
    """The pictures in a folder. Annotations name them with more or fewer folders than there are, and in another case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name = 0

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """File name in lower case, with and without ending -> paths in the folder."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.root.rglob("*")):
            if path.suffix.lower() in ENDINGS and path.is_file() and not path.name.startswith("."):
                for name in {path.name.lower(), path.stem.lower()}:
                    found.setdefault(name, []).append(path.relative_to(self.root).as_posix())
        return found

    def located(self, rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Row]:
        """The rows with the paths of their pictures. Those whose picture is not there keep what they name, and are dropped later."""
        for row in rows:
            if row.content is not None:
                yield row
                continue
            file, *others = (self._path(name) for name in (row.file, *row.others))
            if file is None or None in others:
                dropped["picture whose name is in several folders"] += 1
            else:
                yield replace(row, file=file, others=[other for other in others if other is not None])

    def _path(self, name: str) -> str | None:
        """Of the picture in the folder, or the name itself where there is none; None where there are several."""
        if _is_file(self.root, name):
            return name
        fitting = self.names.get(PurePosixPath(name.replace("\\", "/")).name.lower(), [])
        if len(fitting) > 1:
            alike = [_folders_alike(each, name) for each in fitting]
            fitting = [each for each, folders in zip(fitting, alike, strict=True) if folders == max(alike)]
        if len(fitting) > 1:
            return None
        self.by_name += len(fitting)
        return fitting[0] if fitting else name

    def report(self) -> None:
        if self.by_name:
            print(f"{self.by_name:,} pictures were found in {self.root} by their file names alone")
            self.by_name = 0


def _is_file(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except (OSError, ValueError):
        return False


def _folders_alike(path: str, named: str) -> int:
    """How many folders above the file have the same name in both."""
    pairs = zip(path.lower().split("/")[-2::-1], named.lower().split("/")[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
