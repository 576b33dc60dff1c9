"""The benchmark runs, compares equal computations, and writes what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.vq import VQConfig
from recipes.bench import __main__, captions, drawing, prefix
from tests.data.kit import make_split

SMALL = __main__.Setting(
    width=64, depth=1, batch=4, draw_batch=4, draw_depth=1, anchors=900, loader_batch=8, loader_batches=2, image=16, repeats=2
)
PICTURE = replace(VQConfig.tiny(), network=replace(VQConfig.tiny().network, image_size=32))  # of 16 codes


EXPECTED = {
    "anchors": 2,
    "captioning": 2,
    "clip step": 4,
    "coca step": 2,
    "siglip step": 2,
    "drawing": 4,
    "loader": 2,
    "guidance": 1,
    "flava step": 2,
    "prefix captions": 4,
}


@pytest.mark.parametrize("only", ["anchors,coca,siglip,loader", pytest.param("", marks=pytest.mark.slow)])
def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only: str) -> None:
    monkeypatch.setattr(__main__, "QUICK", SMALL)
    monkeypatch.setattr(captions, "LESSONS", 20)
    monkeypatch.setattr(prefix, "LESSONS", 10)
    monkeypatch.setattr(drawing, "VQConfig", SimpleNamespace(tiny=lambda: PICTURE))
    data = make_split(tmp_path / "dots", [30, 30])
    out = tmp_path / "bench.json"
    monkeypatch.setattr(
        "sys.argv", ["bench", "--quick", "--device", "cpu", "--data", str(data), "--out", str(out), *(["--only", only] if only else [])]
    )
    monkeypatch.setenv("COLUMNS", "250")
    __main__.main()
    assert "times faster" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    expected = {what: count for what, count in EXPECTED.items() if not only or what.split()[0] in only.split(",")}
    assert [row["what"] for row in rows] == [what for what, count in expected.items() for _ in range(count)]
    for row in rows:
        assert row["bound"]["products"] + row["bound"]["memory"] + row["bound"]["python"] == pytest.approx(1, abs=0.01)
        assert (row["bound"]["peak"] > 0) == (row["what"] != "loader")
        assert len(row["ratios"]) == len(row["our_rates"]) == 2
        assert row["ratios"] == pytest.approx([ours / theirs for ours, theirs in zip(row["our_rates"], row["their_rates"], strict=True)])


def test_without_data_it_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--data", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="make data"):
        __main__.main()
