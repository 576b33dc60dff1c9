"""Remote shards arrive whole from servers that stall, cut off and fail, or their loss is counted."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data import remote
from data.decode import Tally, read_shard
from data.loader import Loader, in_order
from data.remote import CONTINUED, Remote
from data.shards import DataError, find
from tests.data.kit import good_members, write_tar
from tests.data.test_loader import collate_keys

COUNT = 40


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALL", 0.5)


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    write_tar(tmp_path / "x.tar", good_members(COUNT))
    return (tmp_path / "x.tar").read_bytes()


Answer = Callable[["Handler", int], None]  # what a server does at its nth request, from 0


class Handler(BaseHTTPRequestHandler):
    def __init__(self, *args: Any, content: bytes, answer: Answer, asked: list[str]) -> None:
        self.content, self.answer, self.asked = content, answer, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.answer(self, len(self.asked) - 1)

    def log_message(self, *_: object) -> None: ...

    def whole(self, *, until: int | None = None, ranges: bool = True, tag: str = "one") -> None:
        """Send the file, or the range that was asked for, and stop at byte `until` of it as if the connection broke."""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if ranges and (wanted := self.headers.get("Range")) else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(self.content[start:until])
        self.close_connection = True


@contextmanager
def serving(content: bytes, answer: Answer) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, content=content, answer=answer, asked=asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/x.tar", asked
        server.shutdown()


def fails_twice(handler: Handler, number: int) -> None:
    handler.send_error(500 if number else 503) if number < 2 else handler.whole()


def cuts_off(handler: Handler, number: int) -> None:
    handler.whole(until=(number + 1) * len(handler.content) // 4)


def cuts_off_and_begins_again(handler: Handler, number: int) -> None:
    handler.whole(until=(number + 1) * len(handler.content) // 4, ranges=False)


def stalls(handler: Handler, number: int) -> None:
    handler.whole(until=3_000 if number == 0 else None)
    if number == 0:
        handler.wfile.flush()
        time.sleep(1.5)


def never_answers(handler: Handler, number: int) -> None:
    if number == 0:
        time.sleep(1.5)
    else:
        handler.whole()


@pytest.mark.parametrize("answer", [fails_twice, cuts_off, cuts_off_and_begins_again, stalls, never_answers])
def test_nothing_is_lost(answer: Answer, tar: bytes) -> None:
    with serving(tar, answer) as (url, asked):
        tally = Tally()
        assert len(list(read_shard(url, tally))) == COUNT
    assert set(tally.drops) == {CONTINUED}
    assert tally.drops[CONTINUED] == len(asked) - 1
    assert tally.dropped == 0


def test_it_continues_where_it_stopped(tar: bytes) -> None:
    with serving(tar, cuts_off) as (url, asked):
        assert Remote(url).readall() == tar
    assert asked == ["", *(f"bytes={number * len(tar) // 4}-" for number in (1, 2, 3))]


@pytest.mark.parametrize(("status", "tries"), [(500, remote.TRIES), (429, remote.TRIES), (404, 1), (403, 1)])
def test_what_cannot_be_read_is_counted_and_ends(status: int, tries: int, tar: bytes) -> None:
    with serving(tar, lambda handler, number: handler.send_error(status)) as (url, asked):
        tally = Tally()
        assert list(read_shard(url, tally)) == []
    assert len(asked) == tries
    assert tally.drops["unreadable shard"] == tally.dropped == 1
    assert f"{status}" in tally.examples[-1]
    assert url in tally.examples[-1]


def test_a_server_that_only_stalls_is_given_up(tar: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "STALL", 0.1)
    with serving(tar, lambda handler, number: time.sleep(0.5)) as (url, asked):
        start, tally = time.monotonic(), Tally()
        assert list(read_shard(url, tally)) == []
        assert time.monotonic() - start < 10
    assert len(asked) == remote.TRIES
    assert "tried 5 times" in tally.examples[-1]


def test_a_file_that_changes_is_not_pieced_together(tar: bytes) -> None:
    def changes(handler: Handler, number: int) -> None:
        handler.whole(until=len(tar) // 2 if number == 0 else None, tag=str(number))

    with serving(tar, changes) as (url, asked):
        tally = Tally()
        read = list(read_shard(url, tally))
    assert len(read) < COUNT
    assert len(asked) == 2
    assert tally.drops["unreadable shard"] == 1
    assert "has changed while it was read" in tally.examples[-1]


def test_other_shards_go_on(tar: bytes) -> None:
    def answer(handler: Handler, number: int) -> None:
        handler.whole() if handler.path == "/00001.tar" else handler.send_error(404)

    with serving(tar, answer) as (url, _):
        drops: Counter[str] = Counter()
        base = url.removesuffix("/x.tar")
        found = [sample for batch in in_order(find(f"{base}/{{00000..00002}}.tar", "train"), batch_size=8, drops=drops) for sample in batch]
    assert len(found) == COUNT
    assert drops["unreadable shard"] == 2


def test_workers_count_what_was_continued(tar: bytes) -> None:
    with serving(tar, lambda handler, number: handler.whole(until=len(tar) // 2 if number % 2 == 0 else None)) as (url, _):
        loader = Loader(find(url, "train"), batch_size=COUNT, collate=collate_keys, workers=1)
        batches = list(islice(loader, 2))
        assert all(sorted(batch["keys"].tolist()) == list(range(COUNT)) for batch in batches)
    assert loader.drops[CONTINUED] >= 1


# ----------------------------------------------------------------------------------------------------- object stores


class Store(MemoryFileSystem):
    """A store that breaks off every file once."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    broken: ClassVar[list[int]] = []

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super().open(path, mode, **options)
        if mode == "rb" and not self.broken:
            self.broken.append(1)
            file = _Breaking(file)
        return file


class _Breaking:
    def __init__(self, file: Any) -> None:
        self.file, self.left = file, 3

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def read(self, size: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise TimeoutError("the store did not answer")
        return bytes(self.file.read(size))

    def close(self) -> None: ...


def test_object_stores_are_read_through_fsspec(tar: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHUNK", 4096)
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Store)  # `fsspec.registry` itself is a view of it
    with fsspec.open("s3://bucket/00000.tar", "wb") as file:
        file.write(tar)
    drops: Counter[str] = Counter()
    found = list(in_order(find("s3://bucket/{00000..00000}.tar", "train"), batch_size=COUNT, drops=drops))
    assert [int(sample.key) for sample in found[0]] == list(range(COUNT))
    assert drops == {CONTINUED: 1}
    tally = Tally()
    assert list(read_shard("s3://bucket/nowhere.tar", tally)) == []
    assert tally.drops == {"unreadable shard": 1}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(DataError, match=r"s3://bucket/x\.tar.*needs the package s3fs: pip install s3fs"):
        find("s3://bucket/x.tar", "train")


@pytest.mark.parametrize("length", ["many", "-5", "1e3", ""])
def test_a_length_that_is_no_number_is_not_believed(length: str, tar: bytes) -> None:
    def answer(handler: Handler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(handler.content)
        handler.close_connection = True

    with serving(tar, answer) as (url, _):
        tally = Tally()
        assert len(list(read_shard(url, tally))) == COUNT
    assert not tally.drops


def test_other_schemes_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected a local path or one of http://.*s3://"):
        find("ftp://host/x.tar", "train")
