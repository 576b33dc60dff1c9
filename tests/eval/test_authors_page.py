"""The screen and the results page show the authors' scores beside ours."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from eval.report.authors import comparisons
from eval.report.show import print_screen
from recipes.tools.results import Published, authors_section
from tests.eval.test_authors import WEIGHTS, cell, result


def test_on_the_screen(tmp_path: Path) -> None:
    console = Console(record=True, width=400, quiet=False)
    shown = result(cell("i2t R@1 (1000)", 0.845, unit="share", better="higher", status="ok"))
    print_screen(
        console, shown | {"run": "weights", "model": "clip", "notes": {}, "seconds": 1.0, "hardware": "1 x CPU", "data": "x"}, tmp_path
    )
    text = " ".join(console.export_text().split())
    assert "authors ours 95 % why they differ" in text
    assert "84.1 84.5 83.5-85.5 no difference beyond chance" in text


def test_in_results(tmp_path: Path) -> None:
    assert authors_section(Published(tmp_path)) == []
    (tmp_path / "published").mkdir()
    rows = [each.row() for each in comparisons(result(cell("i2t R@1 (1000)", 0.845))) if each.ours is not None]
    record = {"schema": 1, "weights": WEIGHTS, "evaluations": [{"date": "2026-01-02", "hardware": "1 x CPU", "rows": rows}]}
    (tmp_path / "published" / "one.json").write_text(json.dumps(record))
    lines = authors_section(Published(tmp_path))
    assert any(line.startswith(f"| {WEIGHTS} | retrieval | i2t R@1 | flickr30k | 84.1 | 84.5 | 83.5-85.5 |") for line in lines)
