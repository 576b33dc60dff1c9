"""Files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.files import replacing, write_json, write_text


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
