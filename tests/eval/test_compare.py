"""The side-by-side report, on made-up run folders."""

from __future__ import annotations

from pathlib import Path

from eval.compare import compare
from tests.eval.fake_runs import write_run


def test_two_models_give_all_four_outputs(tmp_path: Path, capsys) -> None:
    for model in ("clip", "siglip"):
        write_run(tmp_path / "runs", model)
    assert compare(runs=tmp_path / "runs", out=tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.csv"}
    assert "Still untrained: flava" in capsys.readouterr().out
