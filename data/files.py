"""Files that appear whole or not at all: written beside their place, then moved there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ABANDONED = 60  # seconds without a change, after which an unlocked partial folder is


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write to, which takes the place of `path` at the end of the block. Where the block raises, `path` stays as it was.

    with replacing(folder / "model.safetensors") as partial:
        save_file(tensors, partial)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # other processes may be writing the same file
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which gets the name `path` at the end of the block, whole or not at all. Raises FileExistsError if another
    process has written one of that name meanwhile.

    What killed processes left is removed: a folder that is being filled is locked, so that those of other machines and containers stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{path.name}.*.partial"):
        if abandoned.is_dir() and time.time() - abandoned.stat().st_mtime > ABANDONED and (lock := _lock(abandoned)) is not None:
            shutil.rmtree(abandoned, ignore_errors=True)
            os.close(lock)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    lock = _lock(partial)
    try:
        yield partial
        _rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_folder(path: Path) -> None:
    """Under another name first, so that no reader and no other process meets a part of it."""
    doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with suppress(FileNotFoundError):
        os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _rename(partial: Path, path: Path) -> None:
    try:
        os.rename(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{path} was written by another process meanwhile, and stays as it is") from error
        raise


def _lock(folder: Path) -> int | None:
    """None if another process has it, or the file system has no locks for folders."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """UTF-8, indented, for people to read as well."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
