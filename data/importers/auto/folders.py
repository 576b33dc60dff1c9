"""Folders: of shards, of pictures with texts of the same name, with a table of metadata, and with a folder for each class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from data.captions import lines_of, usable
from data.importers.auto import files
from data.importers.auto.place import Found, Place
from data.importers.folder import ENDINGS
from data.importers.write import Row, read_one_of_many
from data.shards import DataError, tars_in

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


def shards(place: Place) -> Found | None:
    """WebDataset shards need no import."""
    tars = [place.path] if place.path.is_file() and ".tar" in place.path.name.lower() else tars_in(place.path) if place.inside else []
    inner = [each for each in place.inside if each.is_dir() and tars_in(each)]
    if tars or inner:
        raise DataError(
            f"{place.path}: WebDataset shards, which are read as they are: `make check-data DATA={quote(str(place.path))}`, then train "
            "on it"
        )
    return None


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
    """Hugging Face's imagefolder: metadata.csv, .jsonl or .tsv with the column file_name, also in a folder for each split."""
    tables = [path for folder in (place.path, *(each for each in place.inside if each.is_dir())) for path in _metadata(folder)]
    if not tables:
        return None
    splits: dict[str, list[Row]] = {}
    dropped: Counter[str] = Counter()
    classes: dict[str, None] = {}
    needs: tuple[str, ...] = ("captions", "questions")
    for path in tables:
        found = files.records(Place(path))
        if found is None:
            raise DataError(f"{path}: expected the column file_name, and captions or labels, as of Hugging Face's imagefolder")
        inner = path.parent.relative_to(place.path).as_posix()
        for split, rows in found.splits.items():
            moved = [Row(f"{inner}/{row.file}", captions=row.captions, questions=row.questions, label=row.label) for row in rows]
            splits.setdefault(split or (path.parent.name if inner != "." else ""), []).extend(moved if inner != "." else rows)
        dropped += found.dropped
        classes |= dict.fromkeys(found.classes or ())
        needs = found.needs
    return Found("Hugging Face's imagefolder with metadata", splits, needs=needs, classes=sorted(classes) or None, dropped=dropped)


def pictures_with_texts(place: Place) -> Found | None:
    """`a.jpg` beside `a.txt`, in any sub-folder; img2dataset's `files` has `a.json` as well."""
    if not place.inside:
        return None
    dropped: Counter[str] = Counter()
    rows = list(_pairs(place.path, dropped))
    if not any(row.captions for row in rows):
        return None
    ours = any((place.path / row.file).with_suffix(".json").exists() for row in rows[:1])
    name = "img2dataset's files" if ours else "pictures with texts of the same name"
    return Found(name, {"": rows}, needs=("captions",), dropped=dropped)


def splits_of_classes(place: Place) -> Found | None:
    """train/cat/1.jpg, test/cat/2.jpg: a folder of class folders for each split."""
    inner = [each for each in place.inside if each.is_dir() and each.name.lower() in SPLITS]
    if not inner or any(next(_pictures(each), None) and not _class_folders(each) for each in inner):
        return None
    splits = {each.name: _labelled(place.path, each) for each in inner}
    classes = sorted({row.label for rows in splits.values() for row in rows if row.label})
    return Found(f"{len(classes)} classes in folders, {len(splits)} splits", splits, needs=("label",), classes=classes) if classes else None


def classes(place: Place) -> Found | None:
    """cat/1.jpg, dog/2.jpg."""
    rows = _labelled(place.path, place.path) if _class_folders(place.path) else []
    names = sorted({row.label for row in rows if row.label})
    return Found(f"{len(names)} classes in folders", {"": rows}, needs=("label",), classes=names) if names else None


def _metadata(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (each for each in sorted(folder.iterdir()) if each.name.lower() in METADATA)


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".") and next(_pictures(each), None)]


def _labelled(root: Path, folder: Path) -> list[Row]:
    return [
        Row(path.relative_to(root).as_posix(), label=inner.name.replace("_", " "))
        for inner in _class_folders(folder)
        for path in _pictures(inner)
    ]


def _pairs(root: Path, dropped: Counter[str]) -> Iterator[Row]:
    for path in _pictures(root):
        beside = next((each for ending in (".txt", ".caption") if (each := path.with_suffix(ending)).exists()), None)
        captions, others = usable(lines_of(read_one_of_many(beside, dropped))) if beside else ([], Counter())
        dropped.update(f"bad {kind}" for kind in others.elements())
        yield Row(path.relative_to(root).as_posix(), captions=captions, extra=_columns(path.with_suffix(".json"), dropped))


def _columns(path: Path, dropped: Counter[str]) -> dict[str, object]:
    """What img2dataset tells of a picture, without the caption."""
    try:
        found = json.loads(read_one_of_many(path, dropped)) if path.exists() else {}
    except (ValueError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if name not in ("caption", "captions")} if isinstance(found, dict) else {}
