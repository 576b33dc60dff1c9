"""Read remote files: over http(s) with the standard library, from object stores with fsspec.

A read that fails, stalls or ends early is continued where it stopped, so a shard arrives whole or its loss is counted like that of a
damaged local one. Nothing waits for ever: after `TRIES` attempts without a new byte, reading ends with an OSError.
"""

from __future__ import annotations

import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

STORES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}  # scheme -> package that fsspec needs
REMOTE = ("http://", "https://", *(f"{scheme}://" for scheme in STORES))
TRIES = 5  # in a row without progress
STALL = 30.0  # seconds without a byte
PAUSE = 1.0  # seconds before the second try; doubled each time
GONE = (400, 401, 403, 404, 405, 410, 416)  # statuses for which another try is useless
CHUNK = 1 << 16
CONTINUED = "interrupted download, continued"

Note = Callable[[str], None]


def missing_package(url: str) -> str:
    """What to install for a url of an object store; "" if nothing is missing."""
    package = STORES.get(scheme := url.partition("://")[0])
    if not package:
        return ""
    import fsspec  # only for object stores

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        return f"{scheme}:// needs the package {package}: pip install {package} (all stores: pip install -e '.[stores]')"
    return ""


class Remote(io.RawIOBase):
    """A remote file, read from its beginning to its end. `note(reason)` is called for every interruption."""

    def __init__(self, url: str, note: Note = lambda reason: None) -> None:
        super().__init__()
        self.url, self.note = url, note
        self.position = 0
        self.size: int | None = None  # None if the server does not say
        self._tag: Any = None  # identifies the version of the file
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._next(min(len(buffer), CHUNK)) if len(buffer) else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def close(self) -> None:
        self._drop()
        super().close()

    def _next(self, size: int) -> bytes:
        """The next bytes, b"" at the end of the file."""
        for attempt in range(TRIES):
            try:
                if self._stream is None:
                    self._stream = self._opened()
                content: bytes = self._stream.read(size)
                if not content and self.size is not None and self.position < self.size:
                    raise ConnectionError(f"ended after {self.position:,} of {self.size:,} bytes")
                return content
            except (OSError, HTTPException) as error:
                self._drop()
                if _hopeless(error) or attempt == TRIES - 1:
                    why = f"{error}" or type(error).__name__
                    raise OSError(f"{why}{'' if _hopeless(error) else f' (tried {TRIES} times)'}") from error
                self.note(CONTINUED)
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _opened(self) -> Any:
        """A stream that continues at `position`. Raises Changed if it is another file by now."""
        stream, size, tag, start = _http(self.url, self.position) if self.url.startswith("http") else _store(self.url, self.position)
        if self.position and (size, tag) != (self.size, self._tag):
            stream.close()
            raise Changed("the file has changed while it was read")
        self.size, self._tag = size, tag
        while start < self.position:  # the server cannot continue: read again what is known
            skipped = stream.read(min(CHUNK, self.position - start))
            if not skipped:
                raise ConnectionError(f"ended after {start:,} bytes")
            start += len(skipped)
        return stream


class Changed(OSError):
    """The remote file is not the one whose beginning was read."""


def _http(url: str, position: int) -> tuple[Any, int | None, Any, int]:
    """(stream, size, version, position of the stream)"""
    request = urllib.request.Request(url, headers={"Range": f"bytes={position}-"} if position else {})
    response = urllib.request.urlopen(request, timeout=STALL)  # only http(s): `url` was checked, and redirects elsewhere are refused
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return response, int(length) if length and length.isdecimal() else None, version, 0
    place, _, size = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if not (start := place.partition("-")[0]).isdecimal():
        response.close()
        raise ConnectionError(f"the server answered with part of the file, but not which: Content-Range {place!r:.80}")
    return response, int(size) if size.isdecimal() else None, version, int(start)


def _store(url: str, position: int) -> tuple[Any, int | None, Any, int]:
    import fsspec  # only for object stores

    system, path = fsspec.core.url_to_fs(url)
    info = system.info(path)
    stream = system.open(path, "rb")
    stream.seek(position)
    version = next((str(info[name]) for name in ("ETag", "etag", "generation", "LastModified", "created") if name in info), None)
    return stream, info.get("size"), version, position


def _hopeless(error: BaseException) -> bool:
    """Whether another try would end in the same way."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in GONE
    return isinstance(error, FileNotFoundError | PermissionError | Changed)
