"""How long a training takes: every stage of it and of what it builds on is timed, and nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recipes.tools.timing import timed
from recipes.train.loop import train
from recipes.train.stages import prerequisites
from tests.recipes.fakes import install


def test_every_stage_is_timed(monkeypatch: pytest.MonkeyPatch, scenes: Path, tmp_path: Path) -> None:
    recipe = install(monkeypatch, str(scenes))
    with pytest.raises(ValueError, match=r"tower-tiny.*not trained yet.*make train-bridge"):
        timed("bridge", recipe, "tiny", tmp_path, steps=2)
    (tower,) = prerequisites(recipe, "tiny", tmp_path)
    assert train(sys.modules["recipes.tower"].PRESETS["tiny"], tower.folder, "tiny") == 0
    before = sorted(tmp_path.rglob("*"))
    rows = timed("bridge", recipe, "tiny", tmp_path, steps=2)
    assert [(run.split("-")[0], stage, samples) for run, stage, samples, _ in rows] == [
        ("tower", "train", 96),
        ("bridge", "align", 64),
        ("bridge", "tune", 64),
    ]
    assert all(rate > 0 for *_, rate in rows)
    assert sorted(tmp_path.rglob("*")) == before
