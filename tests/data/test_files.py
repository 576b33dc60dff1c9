"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from data.files import new_folder, replacing, write_json, write_text


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
