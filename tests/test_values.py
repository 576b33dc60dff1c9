"""Values that cannot be, given to commands: a sentence that names the field, the value and what was expected."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

CASES = [
    ("data.scenes.build", ["--out", "OUT", "--seed", "-1"], "--seed is -1, expected 0 to 4,294,967,295"),
    ("data.scenes.build", ["--out", "OUT", "--workers", "0"], "--workers is 0, expected 1 or more"),
    ("data.scenes.build", ["--out", "OUT", "--workers", "-1"], "--workers is -1, expected 1 or more"),
    ("data.scenes.build", ["--out", "OUT", "--planted", "nan"], "--planted is nan, expected a share"),
    ("data.scenes.build", ["--out", "OUT", "--planted", "-0.1"], "--planted is -0.1, expected a share"),
    ("data.scenes.build", ["--out", "/proc/x"], "/proc/x"),
    *(
        (f"data.scenes.{name}", ["--out", "OUT", *given], sentence)
        for name in ("pages", "pool")
        for given, sentence in (
            (["--seed", "-1"], "--seed is -1, expected 0 to 4,294,967,295"),
            (["--workers", "0"], "--workers is 0, expected 1 or more"),
            (["--out", "/proc/x"], "/proc/x"),
        )
    ),
    ("recipes.tools.calibrate", ["--budget", "0"], "--budget is 0, expected 1 or more images"),
    ("recipes.tools.calibrate", ["--seed", "-1"], "--seed is -1, expected 0 to"),
    ("recipes.tools.calibrate", ["--data", "OUT/nowhere"], "no data at"),
    ("recipes.claims.__main__", ["clip", "--seeds", "0,0"], "--seeds is '0,0', expected every number once"),
    ("recipes.claims.__main__", ["clip", "--seeds", "-1"], "--seeds is '-1', expected whole numbers"),
    ("recipes.plan.__main__", ["clip", "tiny", "--share", "101"], "--share is 101.0, expected a number above 0, at most 100"),
    ("recipes.plan.__main__", ["clip", "tiny", "--share", "nan"], "--share is nan, expected"),
    ("recipes.plan.__main__", ["clip", "tiny", "--peak", "inf"], "--peak is inf, expected a number above 0"),
    ("recipes.tools.chat", ["OUT", "OUT", "--temperature", "nan"], "--temperature is nan, expected 0 or a number above"),
    ("recipes.tools.chat", ["OUT", "OUT", "--temperature", "-1"], "--temperature is -1.0, expected 0 or a number above"),
    ("recipes.tools.chat", ["OUT", "OUT", "--seed", "-1"], "--seed is -1, expected 0 to 4,294,967,295"),
    ("recipes.filter.curve", ["--data", "OUT", "--jobs", "-1"], "--jobs is -1, expected 1 or more parallel runs"),
    ("recipes.filter.curve", ["--data", "OUT", "--jobs", "0"], "--jobs is 0, expected 1 or more parallel runs"),
    ("recipes.frontier.__main__", ["clip", "--jobs", "-1"], "--jobs is -1, expected 1 or more parallel runs"),
    ("recipes.worlds.__main__", ["--data", "x", "--share", "0"], "--share is 0.0, expected more than 0, at most 1"),
    ("recipes.worlds.__main__", ["--data", "x", "--jobs", "0"], "--jobs is 0, expected 1 or more parallel runs"),
    ("recipes.frontier.__main__", ["clip", "--seed", "-1"], "seed is -1, expected 0 or more"),
    ("recipes.race.__main__", ["clip", "--seed", "-1"], "seed is -1, expected 0 or more"),
    ("recipes.gpu.__main__", ["--minutes", "nan"], "--minutes nan: expected a number above 0"),
    ("recipes.gpu.__main__", ["--minutes", "inf"], "--minutes inf: expected a number above 0"),
    ("recipes.gpu.__main__", ["--minutes", "-1"], "--minutes -1: expected a number above 0"),
]


@pytest.mark.parametrize(("module", "options", "sentence"), CASES)
def test_a_command_names_the_value(module: str, options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [module, *(option.replace("OUT", str(tmp_path / "out")) for option in options)])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main()
    assert sentence in str(stopped.value.code)
    assert not (tmp_path / "out").exists()
