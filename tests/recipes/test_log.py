"""What a training says before its first step."""

from __future__ import annotations

from pathlib import Path

from recipes.clip import PRESETS
from recipes.train.log import Reporter


def test_until_the_first_step_a_line_says_how_far_the_samples_are(tmp_path: Path) -> None:
    report = Reporter(tmp_path / "run", PRESETS["tiny"], step=0, samples=0, active=True)
    parts = [["a"] * 256, ["b"] * 244]
    seen, lines = [], []
    for part in report.counting("features computed once", iter(parts), 500):
        seen.append(part)
        lines.append(report.plain_line())
    assert seen == parts
    assert lines[0] == report.plain_line() == "run: getting ready, no step yet"
    assert lines[1].startswith("run: getting ready, features computed once: 256 of 500 samples, about ")
    for _ in report.counting("read", parts, None):
        lines.append(report.plain_line())
    assert lines[3] == "run: getting ready, read: 256 samples"
    report.close()


def test_other_ranks_count_nothing(tmp_path: Path) -> None:
    report = Reporter(tmp_path / "run", PRESETS["tiny"], step=0, samples=0, active=False)
    assert list(report.counting("read", ["ab", "c"], 3)) == ["ab", "c"]
