"""Lists of the samples to train on: what a filter leaves between a pool and the loader (DataComp, arXiv 2304.14108).

`make filter` writes them as json lines, and anybody can write one key per line:

    {"list": 1, "pool": "pool-tiny", "split": "train", "hash": "5e...", ...}     the first line, of lists that were written here
    {"shard": "00000.tar", "key": "00000012", "clip": 0.31}                      one sample, and what filters found of it
    00000013                                                                      the samples of this key in all shards

A key is unique in its shard only, so our lists name the shard too: its file, and as many of its folders as tell it from the others
(`a/00000.tar`). Nothing else of its path counts, so lists stay valid where the data move.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.decode import NOT_THERE, Tally, keys_of
from data.files import read_text, replacing
from data.shards import DataError, Keep, Split

VERSION = 1
WHOLE = "of all samples"
MOST_MISSING = 0.1  # of the listed samples; more are an error
WRITE_IT = "Write a list with `make filter`"


def keeping(split: Split, path: str | Path) -> Split:
    """The split with only the samples that the list at `path` names; the split itself without a path.

    Raises FileError for a file that cannot be read, and DataError for a list that is empty, damaged, ambiguous or of other data: one that
    was written for shards with another hash, or of which more than a tenth is not there.
    """
    if not str(path):
        return split
    header, named, alone = _read(Path(path))
    if header.get("hash") and split.hash and header["hash"] != split.hash:
        raise DataError(
            f"{path} was written for other data: for {header.get('pool')}/{header.get('split')} with the hash {str(header['hash'])[:12]}, "
            f"and {split.name}/{split.split} has {split.hash[:12]}. Write it again with `make filter`"
        )
    keys: dict[str, set[str]] = {url: set() for url in split.urls}
    missing: list[str] = []
    by_file = defaultdict(list)
    for url in split.urls:
        by_file[posixpath.basename(url)].append(url)
    for shard, listed in named.items():
        urls = [url for url in by_file[posixpath.basename(shard)] if f"/{url}".endswith(f"/{shard}")]
        if len(urls) > 1:
            raise DataError(f"{path}: the shard {shard!r} may be {urls[0]} or {urls[1]}. Write it again with `make filter`")
        if urls:
            keys[urls[0]] |= listed
        else:
            missing += [f"{shard}:{key}" for key in sorted(listed)]
    if alone:
        missing += _find(alone, keys)
    count = sum(map(len, keys.values()))
    if len(missing) > MOST_MISSING * (count + len(missing)):
        raise DataError(
            f"{path}: {len(missing)} of {count + len(missing)} listed samples are not in {split.name}/{split.split}, such as "
            f"{', '.join(missing[:3])}. Expected keys of this data set; {WRITE_IT}"
        )
    share = count / split.samples if split.samples else 1.0
    return replace(
        split,
        samples=count,
        decoded_bytes=None if split.decoded_bytes is None else round(split.decoded_bytes * min(1.0, share)),
        keep=Keep(str(path), {url: frozenset(found) for url, found in keys.items()}, tuple(missing), split.samples),
    )


def write_list(path: Path, split: Split, rows: Iterable[tuple[str, str, Mapping[str, Any]]], **about: Any) -> None:
    """Write a list of (url, key, what filters found), whole or not at all; `about` goes into its first line. Raises FileError."""
    names = shard_names(split.urls)
    header = {"list": VERSION, "pool": split.name, "split": split.split, "hash": split.hash} | about
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        for url, key, found in rows:
            file.write(json.dumps({"shard": names[url], "key": key} | dict(found)) + "\n")


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a list that was written here; {} of others. Raises FileError or DataError."""
    return _read(path)[0]


def shard_names(urls: Sequence[str]) -> dict[str, str]:
    """url -> its file name, with as many of its folders as tell it from the others."""
    names: dict[str, str] = {}
    open_urls, depth = list(urls), 1
    while open_urls:
        candidates = {url: "/".join(url.split("/")[-depth:]) for url in open_urls}
        uses: dict[str, int] = defaultdict(int)
        for name in candidates.values():
            uses[name] += 1
        names |= {url: name for url, name in candidates.items() if uses[name] == 1 or name == url}
        open_urls, depth = [url for url in open_urls if url not in names], depth + 1
    return names


def digest(split: Split) -> str:
    """Tells the samples of one list from those of another, wherever the shards are; `WHOLE` without a list."""
    if not split.keep:
        return WHOLE
    found = hashlib.sha256()
    for url in split.urls:
        found.update("\0".join(sorted(split.keep.keys[url])).encode() + b"\0\0")
    return found.hexdigest()


def note_missing(split: Split, tally: Tally) -> None:
    """Count the listed samples that are not in the data."""
    if split.keep and split.keep.missing:
        few = ", ".join(split.keep.missing[:3]) + (", ..." if len(split.keep.missing) > 3 else "")
        tally.seen += len(split.keep.missing)
        tally.drop(NOT_THERE, f"{split.keep.path}: {few}", len(split.keep.missing))


def _find(alone: set[str], keys: dict[str, set[str]]) -> list[str]:
    """Add keys without a shard to those of every shard that has them. Returns those that none has. Reads the headers of all tars."""
    found: set[str] = set()
    for url, mine in keys.items():
        here = alone.intersection(keys_of(url))
        mine |= here
        found |= here
    return sorted(alone - found)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, set[str]], set[str]]:
    """The first line (or {}), the keys by shard, and those without one."""
    header: dict[str, Any] = {}
    named: dict[str, set[str]] = defaultdict(set)
    alone: set[str] = set()
    for number, line in _lines(read_text(path, WRITE_IT)):
        if not line.startswith("{"):
            folder, slash, file = line.rpartition("/")
            alone.add(f"{folder}{slash}{file.partition('.')[0]}")  # a key ends at the first dot, also where the line is a file's name
            continue
        entry = _entry(line, path, number)
        if number == 1 and "list" in entry:
            header = _checked(entry, path)
        elif isinstance(shard := entry.get("shard"), str):
            named[shard].add(entry["key"])
        else:
            alone.add(entry["key"])
    if not named and not alone:
        raise DataError(f"{path} lists no samples. Expected one key per line; {WRITE_IT}")
    return header, named, alone


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1) if line.strip())


def _entry(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if number == 1 and "list" in entry:
            return dict(entry)
        if isinstance(entry["key"], str) and entry["key"] and isinstance(entry.get("shard", ""), str):
            return dict(entry)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(
        f'{path}, line {number}: expected {{"shard": "00000.tar", "key": "00000012"}} or a key alone, found {line!r:.80}. {WRITE_IT}'
    )


def _checked(header: dict[str, Any], path: Path) -> dict[str, Any]:
    if header["list"] != VERSION:
        raise DataError(f"{path} has the version {header['list']!r:.40}, expected {VERSION}. {WRITE_IT}")
    return header
