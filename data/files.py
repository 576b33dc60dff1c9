"""Atomic writes, bounded reads, and error messages that name the file."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ABANDONED = 60  # seconds without a change, after which an unlocked partial folder is
MOST_BYTES = 1 << 29  # maximum size of a text file, far above what any command here writes
AGAIN = "Remove it, and run again the command that wrote it"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileError(OSError, ValueError):
    """A file that cannot be read, used or written. The message names the file, what was expected, and what to do."""


# ------------------------------------------------------------------------------------------------------------ writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write to, which takes the place of `path` at the end of the block, with the mode that the umask asks for. Where the
    block raises, `path` stays as it was. Raises FileError where it cannot be written.

    with replacing(folder / "model.safetensors") as partial:
        save_file(tensors, partial)
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # other processes may be writing the same file
    with writing(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_behind(path):
            left.unlink(missing_ok=True)
        partial.touch()
    mode = stat.S_IMODE(partial.stat().st_mode)  # some libraries write files that only their owner can read
    try:
        with writing(path, partial):
            yield partial
            partial.chmod(mode)
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which is renamed to `path` at the end of the block, atomically. Raises FileExistsError if another
    process has written one of that name meanwhile.

    What killed processes left is removed: a folder that is being filled is locked, so that those of other machines and containers stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
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
    """UTF-8; lone surrogates become question marks."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    """UTF-8, indented, for people to read as well."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text. Raises FileError."""
    with writing(path), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(text)


@contextmanager
def writing(path: Path, *also: Path) -> Iterator[None]:
    """Turn OSErrors about `path` (or about `also`, its temporary name) into a FileError that names it."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        named = (None, *map(str, (path, path.parent, *path.parent.parents, *also)))
        if error.errno is None or (str(error.filename) if error.filename is not None else None) not in named:
            raise  # about another file
        cure = "Make room, and run the command again" if error.errno in FULL else "Choose another place, one that you may write to"
        raise FileError(f"{path} cannot be written: {error.strerror}. {cure}") from error


def _left_behind(path: Path) -> Iterator[Path]:
    """Partial files of processes that were killed while they wrote."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.removesuffix(".partial").rpartition(".")[2]
        if process.isdecimal() and not _alive(int(process)):
            yield left


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def locked(folder: Path, waiting: str) -> Iterator[None]:
    """One process at a time in a folder. Another one prints `waiting`, and waits until the first one ends, however it does."""
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------ reading


def read_text(path: Path, cure: str = AGAIN, *, errors: str = "strict") -> str:
    """UTF-8; `errors` as in `bytes.decode`. Raises FileError, whose message ends with `cure`, if the file cannot be read."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"{path} is not a file. {cure}")  # a pipe, say, would be waited for
        if found.st_size > MOST_BYTES:
            raise FileError(f"{path} has {found.st_size:,} bytes, expected at most {MOST_BYTES:,}. {cure}")
        return path.read_text(encoding="utf-8", errors=errors)
    except UnicodeDecodeError as error:
        raise FileError(f"{path} cannot be read: byte {error.start} is not UTF-8. {cure}") from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}. {cure}") from error


def read_json(path: Path, cure: str = AGAIN) -> dict[str, Any]:
    """A JSON object. Raises FileError, which says `cure`, for anything else."""
    value = parse_json(read_text(path, cure), path, cure)
    if not isinstance(value, dict):
        raise FileError(f"{path}: expected a JSON object, found {type(value).__name__}. {cure}")
    return value


def parse_json(text: str, path: Path, cure: str = AGAIN) -> Any:
    """The value of a text that was read from `path`. Raises FileError."""
    if not text.strip():
        raise FileError(f"{path} is empty. {cure}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FileError(f"{path} cannot be read as JSON ({why}). {cure}") from error
