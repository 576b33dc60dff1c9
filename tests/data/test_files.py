"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from data.files import FileError, new_folder, read_json, replacing, write_json, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "weights.bin"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]  # nothing is left of either


def test_json_keeps_what_people_wrote(tmp_path: Path) -> None:
    value = {"caption": "ein Café", "numbers": [1, 2.5]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert "Café" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "set" / "train"

    def interrupted() -> None:
        with new_folder(path) as partial:
            (partial / "0.tar").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(path.parent.iterdir()) == []
    with new_folder(path) as partial:
        (partial / "0.tar").write_text("whole")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["0.tar"]
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == path.parent.stat().st_mode  # as the umask says


def test_the_faster_of_two_folders_stays(tmp_path: Path) -> None:
    path = tmp_path / "train"

    def both() -> None:
        with new_folder(path) as slow:
            (slow / "slow").touch()
            with new_folder(path) as fast:
                (fast / "fast").touch()

    with pytest.raises(FileExistsError, match="another process"):
        both()
    assert [file.name for file in path.iterdir()] == ["fast"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    for name in (".train.dead.partial", ".train.new.partial", ".val.dead.partial"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".train.dead.partial", (0, 0))
    os.utime(tmp_path / ".val.dead.partial", (0, 0))
    with new_folder(tmp_path / "train") as alive:
        os.utime(alive, (0, 0))
        with new_folder(tmp_path / "train"):
            assert alive.is_dir()
            assert {path.name for path in tmp_path.iterdir()} >= {".train.new.partial", ".val.dead.partial"}
            assert not (tmp_path / ".train.dead.partial").exists()
        shutil.rmtree(tmp_path / "train")


def test_a_file_has_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        """As safetensors writes."""
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "weights") as partial:
            private(partial)
        assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_what_killed_processes_left_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
    gone, others = (
        tmp_path / f".a.json.{child}.partial",
        [tmp_path / f".a.json.{os.getppid()}.partial", tmp_path / f".b.json.{child}.partial"],
    )
    for path in (gone, *others):
        path.write_text("half")
    write_text(tmp_path / "a.json", "{}")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", *others])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_cannot_be_written_is_named_in_a_sentence(number: int, tmp_path: Path) -> None:
    def full(path: Path) -> None:
        with replacing(path):
            raise OSError(number, os.strerror(number))

    with pytest.raises(FileError, match=rf"^{tmp_path}/a\.json cannot be written: {os.strerror(number)}\. "):
        full(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    def absent() -> None:
        with replacing(tmp_path / "a.json"):
            (tmp_path / "elsewhere").read_text()

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        absent()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"{", "cannot be read as JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "byte 0 is not UTF-8"),
        (None, "No such file or directory"),
        ("folder", "is not a file"),
        ("pipe", "is not a file"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_sentence(content: bytes | str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir() if content == "folder" else os.mkfifo(path)
    with pytest.raises(FileError) as found:
        read_json(path, "Train again")
    assert str(found.value).startswith(str(path))
    assert said in str(found.value)
    assert str(found.value).endswith(". Train again")


def test_a_size_is_not_believed(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: nothing is on the disk
    with pytest.raises(FileError, match="has 1,099,511,627,776 bytes, expected at most"):
        read_json(tmp_path / "a.json")
