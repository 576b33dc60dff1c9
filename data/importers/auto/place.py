"""A file or folder to recognise, what was found in it, and the pictures that it names."""

from __future__ import annotations

import json
import re
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
SPLITS = {"train": "train", "training": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testdev": "test", "testing": "test"}
SPLITS |= {"testa": "testA", "testb": "testB"}  # of RefCOCO: people, and other objects
PADDED, PLAIN = re.compile(r"(?:\w+_)?(\d{12})"), re.compile(r"([1-9]\d*)")  # COCO's numbers in names of pictures, and alone
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
OF_ANNOTATIONS = re.compile(r"anno|anns|question|caption|text|label|json|meta|scene|split|karpathy", re.I)  # in names of folders


def pictures_in(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and its sub-folders, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def any_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in ENDINGS and not path.name.startswith(".") for path in folder.rglob("*"))


def split_in(*names: str) -> str | None:
    """The split that these names tell, the first of them first: `captions_val2014.json`, `Flickr_8k.devImages.txt`."""
    for name in names:
        words = [*re.split(r"[^a-z]+", name.lower()), *map(str.lower, re.findall(r"[A-Z]?[a-z]+", name))]
        if said := next((SPLITS[word] for word in words if word in SPLITS), None):
            return said
    return None


def archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVES and path.is_file()


def unpack(path: Path) -> str:
    """What to do with an archive."""
    folder = path.parent / path.name.split(".")[0]
    return f"unpack it, and import the folder: python -m zipfile -e {path} {folder}" if path.suffix.lower() == ".zip" else "unpack it first"


@dataclass
class Found:
    """What a format was recognised in: rows for each split ("" if the data do not say which), and which fields a sample needs one of.

    Files that were `read` as well are not imported again with their folder, and files with parts of the same set (`part_of`) as one.
    """

    format: str
    splits: Mapping[str, Iterable[Row]]
    needs: tuple[str, ...] = ("captions", "questions")
    classes: Sequence[str] | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    read: tuple[Path, ...] = ()
    part_of: str = ""


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

    @cached_property
    def pictures(self) -> Path:
        """The folder of the pictures: as named, or beside the file. A folder of annotations alone, such as COCO's, lies beside them."""
        if self.images is not None or self.path.is_dir():
            return self.images or self.path
        folder = self.path.absolute().parent
        apart = OF_ANNOTATIONS.search(folder.name) and folder.parent not in (Path.home(), Path("/")) and not any_pictures(folder)
        return folder.parent if apart else folder

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
        """File name in lower case, with and without ending, and COCO's number -> paths in the folder."""
        found: dict[str, list[str]] = {}
        for path in pictures_in(self.root):
            for name in {path.name.lower(), path.stem.lower(), *_number(path.stem, PADDED)}:
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
        file = PurePosixPath(name.replace("\\", "/"))
        fitting = next((self.names[key] for key in (file.name.lower(), *_number(file.stem, PADDED, PLAIN)) if key in self.names), [])
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


def _number(name: str, *forms: re.Pattern[str]) -> list[str]:
    """COCO calls a picture COCO_val2014_000000000008 or, since 2017, 000000000008, and annotations may have the number 8 alone."""
    return [f"number {int(match[1])}" for form in forms if (match := form.fullmatch(name))]


def _is_file(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except (OSError, ValueError):
        return False


def _folders_alike(path: str, named: str) -> int:
    """How many folders above the file have the same name in both."""
    pairs = zip(path.lower().split("/")[-2::-1], named.lower().split("/")[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
