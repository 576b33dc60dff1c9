"""Folders: of shards, of pictures with texts of the same name, with tables of metadata, and with a folder for each class. And archives."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from shlex import quote

from data.captions import lines_of, usable
from data.importers.auto import files, parquet
from data.importers.auto.place import SPLITS, Found, Place, archive, pictures_in, split_in, unpack
from data.importers.folder import ENDINGS
from data.importers.write import Row, read_one_of_many
from data.shards import DataError, tars_in
from data.tars import members_of

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.parquet")
FIRST = 100  # members of a tar, or texts, that tell what it is
BOXES = re.compile(r"\d+(\s+[\d.eE+-]+){4,}")  # a class, and four sides or a polygon
OF_A_SPLIT = re.compile(r"([a-z]+)[-_]?\d*", re.I)  # train, val2014


def shards(place: Place) -> Found | None:
    """WebDataset shards need no import, and other archives cannot be imported."""
    if archive(place.path) and not (".tar" in place.path.name.lower() and _is_shard(place.path)):
        raise DataError(f"{place.path} is an archive: {unpack(place.path)}")
    tars = [place.path] if place.path.is_file() and ".tar" in place.path.name.lower() else tars_in(place.path) if place.inside else []
    inner = [tar for each in place.inside if each.is_dir() for tar in tars_in(each)[:1]]
    if any(map(_is_shard, [*tars[:1], *inner])):
        raise DataError(
            f"{place.path}: WebDataset shards, which are read as they are: `make check-data DATA={quote(str(place.path))}`, then train "
            "on it"
        )
    return None


def _is_shard(tar: Path) -> bool:
    """Whether a picture has a text, class or json of the same key beside it, or the tar cannot be read: `make check-data` says why."""
    endings: dict[str, set[str]] = {}
    try:
        for info, _ in islice(members_of(str(tar.absolute())), FIRST):
            name = PurePosixPath(info.name)
            if info.isfile() and not name.name.startswith("."):
                endings.setdefault(f"{name.parent}/{name.name.split('.')[0]}", set()).add(name.suffix.lower())
    except (tarfile.TarError, OSError, EOFError):
        return True
    return any(found & set(ENDINGS) and found - set(ENDINGS) for found in endings.values())


def saved_by_datasets(place: Place) -> Found | None:
    names = {each.name for each in place.inside}
    if "dataset_dict.json" in names or "dataset_info.json" in names or any(each.suffix == ".arrow" for each in place.inside):
        raise DataError(
            f"{place.path}: saved by Hugging Face datasets (`save_to_disk`). Write parquet, and import that:\n"
            f"  python -c \"from datasets import load_from_disk as f; f({str(place.path)!r}).to_parquet('data.parquet')\"  "
            "(of a DatasetDict each split)"
        )
    return None


def with_metadata(place: Place) -> Found | None:
    """Hugging Face's imagefolder: metadata.csv, .jsonl, .tsv or .parquet with the column file_name, also in a folder for each split."""
    tables = [path for path in sorted(place.path.rglob("*.*")) if path.name.lower() in METADATA] if place.inside else []
    splits: dict[str, list[Row]] = {}
    dropped: Counter[str] = Counter()
    classes: dict[str, None] = {}
    needs: tuple[str, ...] = ("captions", "questions")
    for path in tables:
        inner = path.parent.relative_to(place.path)
        found = parquet.records(path) if path.suffix.lower() == ".parquet" else files.records(Place(path))
        if found is None:
            raise DataError(f"{path}: expected the column file_name, and captions or labels, as of Hugging Face's imagefolder")
        for split, rows in found.splits.items():
            moved = (replace(row, file=(inner / row.file).as_posix()) for row in rows)
            splits.setdefault(split or split_in(*reversed(inner.parts)) or "", []).extend(moved)
        dropped += found.dropped
        classes |= dict.fromkeys(found.classes or ())
        needs = found.needs
    name = "Hugging Face's imagefolder with metadata"
    return Found(name, splits, needs=needs, classes=sorted(classes) or None, dropped=dropped) if tables else None


def pictures_with_texts(place: Place) -> Found | None:
    """`a.jpg` beside `a.txt`, in any sub-folder; img2dataset's `files` has `a.json` as well."""
    if not place.inside:
        return None
    dropped: Counter[str] = Counter()
    rows = list(_pairs(place.path, dropped))
    if not any(row.captions for row in rows):
        return None
    if all(BOXES.fullmatch(caption) for row in rows[:FIRST] for caption in row.captions):
        raise DataError(f"{place.path}: the texts beside the pictures are numbers, as YOLO's boxes. Expected captions")
    name = "img2dataset's files" if any("url" in row.extra for row in rows) else "pictures with texts of the same name"
    return Found(name, {"": rows}, needs=("captions",), dropped=dropped)


def splits_of_classes(place: Place) -> Found | None:
    """train/cat/1.jpg, test/cat/2.jpg: a folder of class folders for each split."""
    inner = [each for each in place.inside if each.is_dir() and _is_split(each)]
    if not inner or any(next(pictures_in(each), None) and not _class_folders(each) for each in inner):
        return None
    splits = {each.name: _labelled(place.path, each) for each in inner}
    classes = sorted({row.label for rows in splits.values() for row in rows if row.label})
    return Found(f"{len(classes)} classes in folders, {len(splits)} splits", splits, needs=("label",), classes=classes) if classes else None


def classes(place: Place) -> Found | None:
    """cat/1.jpg, dog/2.jpg; also all of them in one folder, such as Food-101's images/."""
    folder, inner = place.path, _class_folders(place.path)
    while len(inner) == 1 and _class_folders(inner[0]):
        folder, inner = inner[0], _class_folders(inner[0])
    if len(inner) < 2 or all(map(_is_split, inner)):
        return None
    rows = _labelled(place.path, folder)
    names = sorted({row.label for row in rows if row.label})
    return Found(f"{len(names)} classes in folders", {"": rows}, needs=("label",), classes=names)


def _is_split(folder: Path) -> bool:
    match = OF_A_SPLIT.fullmatch(folder.name)
    return match is not None and match[1].lower() in SPLITS


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".") and next(pictures_in(each), None)]


def _labelled(root: Path, folder: Path) -> list[Row]:
    return [
        Row(path.relative_to(root).as_posix(), label=inner.name.replace("_", " "))
        for inner in _class_folders(folder)
        for path in pictures_in(inner)
    ]


def _pairs(root: Path, dropped: Counter[str]) -> Iterator[Row]:
    folder, names = root, dict[str, Path]()
    for path in pictures_in(root):
        if path.parent != folder or not names:
            folder, names = path.parent, {each.name.lower(): each for each in sorted(path.parent.iterdir())}
        text, about = (
            next((names[name] for ending in endings if (name := f"{path.stem}{ending}".lower()) in names), None)
            for endings in ((".txt", ".caption"), (".json",))
        )
        captions, others = usable(lines_of(read_one_of_many(text, dropped))) if text else ([], Counter())
        dropped.update(f"bad {kind}" for kind in others.elements())
        yield Row(path.relative_to(root).as_posix(), captions=captions, extra=_columns(about, dropped) if about else {})


def _columns(path: Path, dropped: Counter[str]) -> dict[str, object]:
    """What img2dataset tells of a picture, without the caption."""
    try:
        found = json.loads(read_one_of_many(path, dropped))
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if name not in ("caption", "captions")} if isinstance(found, dict) else {}
