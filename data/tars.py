"""Read untrusted tars, which may be damaged, truncated or malicious: sizes in them are checked before they are used.

A header's size is skipped over without being read, and ends the shard if the file is shorter. Compressed tars are decompressed
piece by piece, and not beyond `MAX_EXPANSION` times their size.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from webdataset.gopen import gopen

from data.remote import REMOTE, Note, Remote

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER = 1 << 14  # bytes of a header's long name or attributes
MAX_SIZE = 1 << 50  # of a member that is skipped
MAX_ZEROS = 1 << 16  # blocks between two tars in one file (`cat a.tar b.tar`), or after the last
MAX_EXPANSION = 200  # decompressed bytes per byte of a compressed tar ...
FREE_EXPANSION = 1 << 29  # ... beyond these
CHUNK = 1 << 20

Read = Callable[[], bytes]


class BehindTheEnd(tarfile.ReadError):
    """Damage or junk after the blocks that end a tar: all members before it are intact."""


class _TooMuch(tarfile.ReadError):
    """More zeros, or more bytes from a compressed file, than an honest tar has."""


def members_of(url: str, note: Note = lambda reason: None) -> Iterator[tuple[tarfile.TarInfo, Read]]:
    """The members of a tar in the order of the file, each with a function that reads its content while it is the last one yielded.
    `note` is called when a download was interrupted and continued.

    Raises TarError for a damaged tar or one that was cut off (BehindTheEnd where that is only behind its end), and OSError for what cannot
    be read.
    """
    with _opened(url, note) as stream:
        source = _Source(stream)
        buffered = io.BufferedReader(source, CHUNK)  # one only: a reader that is forgotten closes what it reads
        decompressed = _decompressed(source.head, buffered)
        if decompressed:
            yield from _entries(_Forward(decompressed, source))
        elif url.startswith("/"):
            stream.seek(0)
            yield from _entries(stream)
        else:
            yield from _entries(_Forward(buffered))


def _opened(url: str, note: Note) -> Any:
    """A file, a remote file, or what a command (pipe:) writes, which is left to webdataset."""
    if url.startswith("/"):
        return open(url, "rb")
    return io.BufferedReader(Remote(url, note), CHUNK) if url.startswith(REMOTE) else gopen(url)


def lost(url: str, keys: set[str], key_of: Callable[[str], str | None], least: int = 1) -> tuple[int, bool]:
    """How many samples of a damaged shard were not read, at least, and whether that is all.

    The total comes from its index or from img2dataset's statistics in the same folder. Otherwise the headers after the damage are counted,
    which a plain tar still has. `keys`: of the samples that were read; `least`: that were lost at any rate.
    """
    path = Path(url)
    if not url.startswith("/") or not path.is_file():
        return least, False
    expected = _expected(path)
    if expected is not None:
        return max(least, expected - len(keys)), True
    with path.open("rb") as file:
        names = {key_of(name) for name in _names(file)}
    return max(least, len(names - keys - {None})), False


def _entries(stream: Any) -> Iterator[tuple[tarfile.TarInfo, Read]]:
    tar = _next(lambda: _Tar(fileobj=stream, ignore_zeros=True))

    def following() -> tarfile.TarInfo | None:
        try:
            return _next(tar.next)
        except (tarfile.TarError, OSError, EOFError) as error:
            if tar.zeros and not isinstance(error, _TooMuch):
                raise BehindTheEnd(str(error)) from error
            raise

    while (info := following()) is not None:
        tar.members.clear()  # tarfile would keep a record of every member
        if not 0 <= info.size <= MAX_SIZE or tar.offset < info.offset_data:
            raise tarfile.ReadError(f"a header claims {info.size} bytes")

        def read(info: tarfile.TarInfo = info) -> bytes:
            stream.seek(info.offset_data)
            content: bytes = stream.read(info.size)
            if len(content) < info.size:
                raise tarfile.ReadError("unexpected end of data")
            return content

        yield info, read


def _next(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except (tarfile.TarError, OSError, EOFError):
        raise
    except Exception as error:  # a damaged header makes tarfile raise almost anything
        raise tarfile.ReadError(f"damaged header: {error!r}") from error


class _Header(tarfile.TarInfo):
    """Only a block of zeros ends a tar. tarfile silently stops at a damaged or missing header, too."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Self:
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.zeros += 1
            if tar.zeros > MAX_ZEROS:
                raise _TooMuch("nothing but zeros") from None
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if tar.zeros:
                raise
            raise tarfile.ReadError("unexpected end of data") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        tar.zeros = 0
        return header

    def _proc_member(self, tar: Any) -> Any:
        about_the_next = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.size < 0 or self.size > (MAX_HEADER if self.type in about_the_next else MAX_SIZE):
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    zeros = 0  # blocks of zeros since the last header


def _decompressed(head: bytes, buffered: io.BufferedReader[Any]) -> Any:
    """What a compressed file holds, by its first bytes; None if it is not compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return gzip.open(buffered)
    if head.startswith(b"BZh") and head.endswith(b"1AY&SY"):
        return io.BufferedReader(_Streams(buffered, bz2.BZ2Decompressor))
    return io.BufferedReader(_Streams(buffered, lzma.LZMADecompressor)) if head.startswith(b"\xfd7zXZ\0") else None


class _Streams(io.RawIOBase):
    """The content of compressed streams one behind another. Python's own readers of bz2 and xz silently ignore junk after them."""

    def __init__(self, source: IO[bytes], new: Callable[[], Any]) -> None:
        self.source, self.new, self.decompressor = source, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decompressor.eof:
                left = (self.decompressor.unused_data or self.source.read(CHUNK)).lstrip(b"\0")
                if not left:
                    return 0
                self.decompressor = self.new()
            else:
                left = self.source.read(CHUNK) if self.decompressor.needs_input else b""
                if self.decompressor.needs_input and not left:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if content := self.decompressor.decompress(left, len(buffer)):
                buffer[: len(content)] = content
                return len(content)


class _Source(io.RawIOBase):
    """A stream whose first bytes are known, and how many were taken from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.head = self._left = stream.read(10)
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._left[: len(buffer)] or self.stream.read(len(buffer))
        self._left = self._left[len(content) :]
        buffer[: len(content)] = content
        self.taken += len(content)
        return len(content)


class _Forward:
    """A file that can only be read on, with what tarfile needs of it. `source`: of which it is the decompressed content."""

    def __init__(self, stream: Any, source: _Source | None = None) -> None:
        self.stream = stream
        self.source = source
        self.position = 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        """Stops at the end, where tarfile then finds nothing to read."""
        if position < self.position:
            raise tarfile.StreamError("seeking backwards")
        while self.position < position and self.read(min(CHUNK, position - self.position)):
            pass

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self.stream.read(min(size, CHUNK))):
            parts.append(part)
            size -= len(part)
            self.position += len(part)
            if self.source and self.position > FREE_EXPANSION + MAX_EXPANSION * self.source.taken:
                raise _TooMuch(f"decompresses to more than {MAX_EXPANSION} times its size")
        return b"".join(parts)


def _expected(path: Path) -> int | None:
    def found(file: Path, look: Callable[[Any], Any]) -> int | None:
        try:
            number = look(json.loads(file.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, StopIteration, RecursionError):
            return None
        return number if isinstance(number, int) else None

    entry = found(path.parent / "index.json", lambda index: next(s["samples"] for s in index["shards"] if s["file"] == path.name))
    return entry if entry is not None else found(path.with_name(f"{path.stem}_stats.json"), lambda statistics: statistics["successes"])


def _names(file: IO[bytes]) -> Iterator[str]:
    """The names in all headers of a plain tar, also after damage."""
    while chunk := file.read(CHUNK):
        for start in range(0, len(chunk), BLOCK):
            if chunk[start + 257 : start + 262] == b"ustar":
                try:
                    yield tarfile.TarInfo.frombuf(chunk[start : start + BLOCK], "utf-8", "surrogateescape").name
                except tarfile.HeaderError:
                    continue
