"""Class folders: one folder of images per class, as torchvision's ImageFolder expects them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.importers.write import Row, read_text, write_split
from data.shards import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def import_folder(*, images: Path, out: Path, split: str, classes: Path | None = None, size: int | None = None) -> None:
    """Image folder with one sub-folder per class.

    Args:
        images: the folder that holds the class folders.
        out: data set folder to write, such as .data/pets.
        split: name of the split to write: train, val or test.
        classes: json {"classes": [{"folder": "n02123045", "name": "tabby cat"}, ...]}, their order is kept; without it
            (and without a classes.json in the folder) classes are named by their folders, "_" read as a space.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    names = _class_names(images, classes)
    rows = [row for folder, name in names.items() for row in _rows(images, folder, name, dropped)]
    for path in images.iterdir():
        if path.is_dir() and not any(Path(folder).parts[0] == path.name for folder in names):
            dropped["hidden folder" if path.name.startswith(".") else "folder that is no class"] += 1
        elif path.suffix.lower() in ENDINGS:
            dropped["picture outside of the class folders"] += 1
    classes_in_order = list(dict.fromkeys(names.values()))
    write_split(rows, images=images, out=out, split=split, size=size, classes=classes_in_order, dropped=dropped, needs=("label",))


def _class_names(images: Path, classes: Path | None) -> dict[str, str]:
    """Folder -> class name."""
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is not a folder. Expected one sub-folder of images per class")
    path = classes or images / "classes.json"
    if classes is None and not path.exists():
        names = {folder.name: folder.name.replace("_", " ") for folder in sorted(images.iterdir()) if _is_class(folder)}
    else:
        try:
            names = {str(entry["folder"]): str(entry["name"]) for entry in json.loads(read_text(path))["classes"]}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}: {error!r}. Expected {{"classes": [{{"folder": "...", "name": "..."}}]}}') from error
    if not names:
        raise DataError(f"{images} has no class folders. Expected {images}/<class>/<image>.jpg")
    if missing := [folder for folder in names if not (images / folder).is_dir()]:
        raise FileNotFoundError(f"{path} names the folder {missing[0]!r} ({len(missing)} such), which is not in {images}")
    return names


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _rows(images: Path, folder: str, name: str, dropped: Counter[str]) -> Iterator[Row]:
    for path in sorted((images / folder).rglob("*")):
        if path.is_dir():
            continue
        if path.name.startswith("."):
            dropped["hidden file"] += 1
        elif path.suffix.lower() in ENDINGS:
            yield Row(file=str(path.relative_to(images)), label=name)
        else:
            dropped[f"file ending in {path.suffix}" if path.suffix else "file without an ending"] += 1
