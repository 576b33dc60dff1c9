"""Data sets on disk: finding the shards of a split, and writing new ones.

A data set is a folder of splits, and a split is a folder of tar files with an `index.json`:

    .data/scenes/train/00000.tar 00001.tar ... index.json
    .data/scenes/val/00000.tar index.json

Other WebDataset shards (img2dataset's, for example) have no index. They are read as they are; number of samples, decoded size
and content hash are None until `make check-data` has written an index.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import IO, Any

import braceexpand

from data.captions import decode_text
from data.files import FileError, parse_json, read_text, replacing, write_text
from data.remote import REMOTE, Remote, missing_package
from data.sample import Sample, to_record

Encoded = tuple[Sample, str, bytes, *tuple[tuple[str, bytes], ...]]
SCHEMA = 1
_BRACES = re.compile(r"\{([^{}]*)\}")  # in a pattern of tars
CLASS_NAMES = "classnames.txt"  # in the folder of the tars or its parent, as in CLIP_benchmark's layout
TEMPLATES = "zeroshot_classification_templates.txt"
MOST_CLASS_BYTES = 1 << 24  # of such a text
MOST_TARS = 100_000  # that a pattern names
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
WRITE_IT = "Write it with `make data PRESET=tiny|small` (the embedded sets) or `make import`"
NO_FOLDER = f"no data at {{}}. {WRITE_IT}, or give another DATA"
OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}  # of splits, in any case
UNKNOWN_ENCODING = (
    "in an encoding that is not known: neither UTF-8 nor UTF-16, nor like a text in Windows-1252. "
    "Save it as UTF-8, for example with `iconv -f SHIFT_JIS -t UTF-8`, or -f GB18030, or whichever it is in"
)
USUAL_ORDER = ("train", "val", "test", "heldout", "style", "pairs")


class DataError(Exception):
    """The data cannot be used. The message names the file and the value, the expectation, and the next command to try."""


@dataclass(frozen=True, eq=False)
class Keep:
    """The samples of a split that are read, by shard and key, from the list at `path` (data/keep.py). `missing` are listed, but not in the
    data; `of` is the number of samples in the whole split, if it is known."""

    path: str
    keys: Mapping[str, frozenset[str]]
    missing: tuple[str, ...] = ()
    of: int | None = None


@dataclass(frozen=True)
class Split:
    """The shards of one split. `samples`, `decoded_bytes` (uint8 RGB) and `hash` are None when there is no index. With `keep`, `samples`
    and `decoded_bytes` are those of the listed samples, the latter estimated, and `hash` still that of the whole split."""

    name: str
    split: str
    folder: Path | None
    urls: tuple[str, ...]
    samples: int | None = None
    decoded_bytes: int | None = None
    hash: str | None = None
    classes: tuple[str, ...] | None = None
    keep: Keep | None = None

    def first(self, shards: int) -> Split:
        """The first `shards` shards, without the figures of the index; all of them for 0. Raises DataError if there are fewer."""
        if shards > len(self.urls):
            raise DataError(f"{self.name}/{self.split} has {len(self.urls)} shards, fewer than --shards {shards}")
        if not shards:
            return self
        urls = self.urls[:shards]
        samples = sum(len(self.keep.keys[url]) for url in urls) if self.keep else None
        if samples == 0:
            raise DataError(f"{self.keep and self.keep.path} keeps no sample of the first {shards} shards of {self.name}/{self.split}")
        return replace(self, urls=urls, samples=samples, decoded_bytes=None, hash=None)

    @property
    def to_read(self) -> tuple[str, ...]:
        """The shards with samples to read."""
        return tuple(url for url in self.urls if self.keep.keys[url]) if self.keep else self.urls

    def kept(self, url: str) -> frozenset[str] | None:
        """The keys to read from a shard, None for all."""
        return self.keep.keys[url] if self.keep else None


def find(spec: str | Path, split: str, *, allow_commands: bool = False) -> Split:
    """The shards of `split` in the data set that `spec` names.

    `spec` is a data set folder (holding `<split>/`), a folder of tars, a tar, a brace pattern of any of them
    (`/x/{00000..00012}.tar`, also `https://`, `s3://`, `gs://`, `az://`, `hf://`), or several of these joined by `::`. `pipe:` urls run a
    shell command, so they need `allow_commands`.

    A folder of tars without an index (as img2dataset writes it) has no named splits: it serves as any split. A folder called
    `validation`, `valid` or `dev` is the split `val`, unless there is one of that name.
    Raises FileNotFoundError or DataError.
    """
    parts: list[Split] = []
    tars: list[str] = []
    for place in _expand(spec):
        if _is_tar(place, allow_commands):
            tars.append(place)
        else:
            parts.append(_from_folder(Path(place), split))
    if tars:
        parts.append(_from_tars(tars, split))
    return parts[0] if len(parts) == 1 else _joined(parts, split)


def splits(spec: str | Path) -> list[str]:
    """Names of the splits that `find` would find, train first. Tars outside of split folders count as train."""
    found: list[set[str]] = []
    for place in _expand(spec):
        folder = Path(place)
        if _is_tar(place, allow_commands=True):
            found.append({"train"})
        elif tars_in(folder) or (folder / "index.json").exists():
            found.append({_usual(str(_read_index(folder).get("split", "train")))})
        else:
            found.append(set(_split_folders(folder)))
    common = set.intersection(*found)
    return [name for name in USUAL_ORDER if name in common] + sorted(common.difference(USUAL_ORDER))


def write_shard(path: Path, samples: Iterable[Encoded]) -> dict[str, Any]:
    """Write one tar from `(sample, extension, encoded image)` and return its entry for `write_index`. The further images of a sample
    follow as `(extension, encoded image)`.

    The same samples give the same bytes on every machine. `sample.images` (decoded) give only their size.
    """
    count = decoded = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal count, decoded
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample, extension, encoded, *further in samples:
                if "." in sample.key:
                    raise ValueError(f"key {sample.key!r} has a dot, where a reader would end it")
                if len(further) != len(sample.others):
                    raise ValueError(f"sample {sample.key} has {len(sample.others)} further images, but {len(further)} encoded ones")
                _add(tar, f"{sample.key}.{extension}", encoded)
                for number, (kind, content) in enumerate(further, 1):
                    _add(tar, f"{sample.key}.{number}.{kind}", content)
                if sample.captions:
                    _add(tar, f"{sample.key}.txt", sample.captions[0].encode())
                _add(tar, f"{sample.key}.json", json.dumps(to_record(sample), separators=(",", ":")).encode())
                count += 1
                decoded += sample.decoded_bytes

    with replacing(path) as partial, partial.open("wb") as file:
        fill(file)
    return {"file": path.name, "samples": count, "decoded_bytes": decoded} | fingerprint(path)


def fingerprint(path: Path) -> dict[str, Any]:
    """The part of a shard's index entry that shows whether the file has changed: its size and its SHA-256."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_index(
    folder: Path,
    *,
    name: str,
    split: str,
    shards: Sequence[Mapping[str, Any]],
    classes: Sequence[str] | None = None,
    dropped: Mapping[str, int] | None = None,
) -> Path:
    """Write `folder/index.json` from the entries of its shards (`write_shard`), and return its path."""
    index = {
        "schema": SCHEMA,
        "name": name,
        "split": split,
        "samples": sum(shard["samples"] for shard in shards),
        "decoded_bytes": sum(shard["decoded_bytes"] for shard in shards),
        "hash": content_hash(shards),
        "classes": list(classes) if classes is not None else None,
        "shards": [dict(shard) for shard in shards],
        "dropped": dict(dropped or {}),
    }
    path = folder / "index.json"
    write_text(path, json.dumps(index, indent=1) + "\n")
    return path


def content_hash(shards: Iterable[Mapping[str, Any]]) -> str:
    """The hash of a split, from the index entries of its shards."""
    return _sha256("".join(shard["sha256"] for shard in shards))


def tars_in(folder: Path) -> list[Path]:
    return sorted(path for path in _shown(folder) if path.name.endswith(TAR_ENDINGS) and path.is_file())


def class_names(folder: Path | str) -> tuple[str, ...]:
    """The lines of `classnames.txt` in a folder of tars (or its url) or in its parent folder, () without: the name of class 0, 1, ... in
    the `.cls` members of CLIP_benchmark's shards. Blank lines count."""
    text = _text_beside(str(folder), CLASS_NAMES)[1]
    return tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()


def prompt_templates(folder: Path | str) -> tuple[str, ...]:
    """The lines of `zeroshot_classification_templates.txt` in a folder of tars (or its url) or in its parent folder, () without. A class's
    name takes the place of `{c}`, as in CLIP_benchmark; here it is returned as `{class}`. Raises DataError."""
    place, text = _text_beside(str(folder), TEMPLATES)
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        template = re.sub(r"\{(?:c|class|classname)?\}", "{class}", line.strip())
        if template and re.findall(r"\{\w*\}|[{}]", template) != ["{class}"]:
            raise DataError(
                f'{place}, line {number}: expected a template with one {{c}}, such as "a photo of a {{c}}."; found {line.strip()!r:.80}'
            )
        found += [template] if template else []
    return tuple(dict.fromkeys(found))


def folders_of(split: Split) -> list[str]:
    """The folders, or their urls, of a split's tars."""
    return list(dict.fromkeys(url.rpartition("/")[0] for url in split.urls))


def _text_beside(folder: str, name: str) -> tuple[str, str]:
    """The place and the content of a text in a folder or its parent folder, which may be remote; ("", "") without. Raises DataError."""
    for place in (folder, folder.rpartition("/")[0]):
        if not place.startswith(REMOTE):
            path = Path(place, name)
            content = path.read_bytes() if place and path.is_file() and path.stat().st_size <= MOST_CLASS_BYTES else b""
        else:
            content = _fetched(f"{place}/{name}")
        if content:
            text, encoding = decode_text(content)
            if not encoding:
                raise DataError(f"{place}/{name} is {UNKNOWN_ENCODING}")
            return f"{place}/{name}", text
    return "", ""


def _fetched(url: str) -> bytes:
    """The content of a remote file, b"" where there is none."""
    try:
        with Remote(url) as stream, io.BufferedReader(stream) as buffered:
            return buffered.read(MOST_CLASS_BYTES)
    except OSError:
        return b""


def _expand(spec: str | Path) -> list[str]:
    parts = [part.strip() for part in str(spec).split("::") if part.strip()]
    try:
        patterns = [part for part in parts if not os.path.exists(part)]
        # Before the library expands them: it holds all numbers of a range at once.
        if any(math.prod(map(_count, _BRACES.findall(part))) > MOST_TARS for part in patterns):
            raise DataError(f"{str(spec)!r:.200} names more than {MOST_TARS:,} places. Check the braces")
        places = [place for part in parts for place in (braceexpand.braceexpand(part) if part in patterns else [part])]
    except ValueError as error:  # unbalanced braces
        raise DataError(f"{str(spec)!r}: {error}. Expected a path, or a pattern such as '/x/{{00000..00012}}.tar'") from error
    if not places:
        raise DataError(f"no data: {str(spec)!r} names no shards. Expected a data set folder or tars, such as DATA=.data/scenes")
    return places


def _count(inside: str) -> int:
    """How many places braces make of one: 00000..00012, or a,b,c."""
    if match := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", inside):
        first, last, step = (int(number or 1) for number in match.groups())
        return abs(last - first) // max(1, abs(step)) + 1
    return inside.count(",") + 1


def _is_tar(place: str, allow_commands: bool) -> bool:
    if place.startswith("pipe:"):
        if not allow_commands:
            raise DataError(f"{place!r} would run a shell command. If you trust it, pass allow_commands=True to data.shards.find")
        return True
    if place.startswith(REMOTE):
        if missing := missing_package(place):
            raise DataError(f"{place!r}: {missing}")
        return True
    if "://" in place:
        raise DataError(f"{place!r}: expected a local path or one of {', '.join(REMOTE)}")
    return place.endswith(TAR_ENDINGS) and not Path(place).is_dir()


def split_folder(folder: Path, split: str) -> Path:
    """Where in a data set's folder the split is, or would be."""
    exact = folder / split
    return exact if exact.is_dir() or not folder.is_dir() else folder / _split_folders(folder).get(split, split)


def _from_folder(folder: Path, split: str) -> Split:
    inner = split_folder(folder, split)
    if inner.is_dir():
        return _from_split_folder(inner, split)
    if not folder.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(folder))
    if tars_in(folder) or (folder / "index.json").exists():
        return _from_split_folder(folder, split)
    there = ", ".join(_split_folders(folder)) or "no folder with tars"
    raise FileNotFoundError(f"{folder} has no split {split!r} (found: {there}). {_how_to_make(folder)}")


def _from_split_folder(folder: Path, split: str) -> Split:
    index, tars = _read_index(folder), tars_in(folder)
    if not index:
        if not tars:
            raise DataError(f"{folder} holds no tar files, so there is nothing to read. {_how_to_make(folder)}")
        urls = tuple(str(tar.absolute()) for tar in tars)
        return Split(name=_name(folder, split), split=split, folder=folder, urls=urls, classes=_classes(folder))
    if _usual(index["split"]) != _usual(split):
        raise DataError(f"{folder} is the split {index['split']!r}, but {split!r} is needed. Give its parent folder as DATA")
    _compare(folder, index, tars)
    return Split(
        name=index["name"],
        split=split,
        folder=folder,
        urls=tuple(str((folder / shard["file"]).absolute()) for shard in index["shards"]),
        samples=index["samples"],
        decoded_bytes=index["decoded_bytes"],
        hash=index["hash"],
        classes=tuple(index["classes"]) if index["classes"] else _classes(folder),
    )


def _compare(folder: Path, index: Mapping[str, Any], tars: Sequence[Path]) -> None:
    """Compare the index with the files: a stale one would make every count and every hash of a report wrong."""
    listed = {shard["file"]: shard.get("bytes") for shard in index["shards"]}
    if not listed:
        raise DataError(f"{folder / 'index.json'} lists no shards. {_how_to_make(folder)}")
    for file, size in listed.items():
        path = folder / file
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing, though {folder / 'index.json'} lists it. {_how_to_make(folder)}")
        if size is not None and path.stat().st_size != size:
            raise DataError(f"{path} has {path.stat().st_size} bytes, index.json says {size}. {_how_to_index(folder)}")
    if extra := sorted({tar.name for tar in tars} - listed.keys()):
        raise DataError(f"{folder / 'index.json'} does not list {extra[0]} ({len(extra)} such tars). {_how_to_index(folder)}")


def _from_tars(tars: Sequence[str], split: str) -> Split:
    remote = (*REMOTE, "pipe:")
    for tar in tars:
        if not tar.startswith(remote) and not Path(tar).exists():
            raise FileNotFoundError(f"{tar} does not exist ({len(tars)} tars were named). {_how_to_make(Path(tar).parent)}")
        if not tar.startswith(remote) and not Path(tar).is_file():  # reading a named pipe would wait for ever
            raise DataError(f"{tar} is not a file but a pipe, socket or device: expected a tar")
    urls = tuple(tar if tar.startswith(remote) else str(Path(tar).absolute()) for tar in tars)
    folder = Path(tars[0]).parent
    classes = {None if tar.startswith(remote) else _classes(place) for place in {Path(tar).absolute().parent for tar in tars}}
    return Split(name=_name(folder, split), split=split, folder=None, urls=urls, classes=classes.pop() if len(classes) == 1 else None)


def _joined(parts: Sequence[Split], split: str) -> Split:
    def total(values: Sequence[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    hashes = [part.hash for part in parts]
    return Split(
        name="+".join(dict.fromkeys(part.name for part in parts)),
        split=split,
        folder=None,
        urls=tuple(url for part in parts for url in part.urls),
        samples=total([part.samples for part in parts]),
        decoded_bytes=total([part.decoded_bytes for part in parts]),
        hash=_sha256("".join(map(str, hashes))) if all(hashes) else None,
        classes=parts[0].classes if len({part.classes for part in parts}) == 1 else None,
    )


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.exists():
        return {}
    cure = f"Delete it; `make check-data DATA={quote(str(folder))}` writes a new one"
    try:
        index = parse_json(read_text(path, cure), path, cure)
        if index["schema"] != SCHEMA:
            raise ValueError(f"schema {index['schema']!r}, expected {SCHEMA}")
        for key, fits in _INDEX.items():
            if not fits(index[key]):
                raise ValueError(f"{key} is {index[key]!r:.80}")
        for shard in index["shards"]:
            if Path(shard["file"]).name != shard["file"]:
                raise ValueError(f"{shard['file']!r} is not a plain file name")
        return dict(index)
    except FileError as error:
        raise DataError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a valid index: {type(error).__name__} {error}. {cure}") from error


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_INDEX: dict[str, Callable[[Any], bool]] = {  # field -> whether it can have this value
    "name": _is_text,
    "split": _is_text,
    "samples": _is_count,
    "decoded_bytes": _is_count,
    "hash": _is_text,
    "classes": lambda value: value is None or (isinstance(value, list) and all(map(_is_text, value))),
}


def _split_folders(folder: Path) -> dict[str, str]:
    """The folders with tars by the names of their splits: `val` for a folder `validation`, unless there is a `val`."""
    if not folder.is_dir():
        raise FileNotFoundError(NO_FOLDER.format(folder))
    there = sorted(inner.name for inner in _shown(folder) if inner.is_dir() and tars_in(inner))
    found: dict[str, str] = {}
    for name in sorted(there, key=lambda name: name != _usual(name)):  # the usual names first
        found[name if _usual(name) in found else _usual(name)] = name
    return found


def _usual(split: str) -> str:
    name = split.lower()
    return OTHER_NAMES.get(name, name if name in USUAL_ORDER else split)


def _name(folder: Path, split: str) -> str:
    """Of the data set: a folder named after its split says nothing."""
    return folder.absolute().parent.name if _usual(folder.name) == _usual(split) else folder.name


def _classes(folder: Path) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(filter(None, class_names(folder)))) or None


def _shown(folder: Path) -> Iterator[Path]:
    """Without hidden files: temporary ones, and those of macOS (`._00000.tar`)."""
    return (path for path in folder.glob("*") if not path.name.startswith("."))


def _how_to_make(folder: Path) -> str:
    return f"{WRITE_IT}, or list the contents with `make check-data DATA={quote(str(folder))}`"


def _how_to_index(folder: Path) -> str:
    return f"Rewrite the index with `make check-data DATA={quote(str(folder))} ARGS=--write-index`"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults carry no time, no user and a fixed mode
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
