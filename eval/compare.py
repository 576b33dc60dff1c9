"""Compare all evaluated runs in a terminal table, Markdown, CSV and one self-contained HTML page.

    python -m eval.compare [--runs .runs] [--out .runs/compare] [--dataset NAME] [--pages "clip lit siglip"]

Reads result files only and needs neither torch nor the models. Runs with different data or prompts are an error, never averaged. A run
with a broken file is left out and named. Scores that belong to other weights than the run has now are marked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote

import tyro

from data.files import FileError, write_text
from eval import EvalError
from eval.base.console import plain_console
from eval.report import page, plain, words
from eval.report.report import build
from eval.report.results import is_run, read_runs

RUNS = Path(".runs")  # does not exist before the first training
PLAIN_WIDTH = 160  # columns, if the output is not a terminal


def compare(*, runs: Path = RUNS, out: Path = Path(".runs/compare"), dataset: str | None = None, pages: str = "") -> int:
    """Compare all evaluated runs.

    Args:
        runs: folder that contains the run folders.
        out: output folder for report.html, report.md and report.csv.
        dataset: compare on this data set only.
        pages: space-separated pages of recipes/; the report lists those that are not trained yet.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    console, errors = plain_console(width=width), plain_console(stderr=True)
    try:
        found = read_runs(runs)
        if not runs.is_dir() and runs != RUNS:
            raise EvalError(f"{runs}: no such folder; expected the folder that contains the run folders, by default {RUNS}")
        if not found and is_run(runs):
            raise EvalError(f"{runs} is a run itself; expected the folder that contains it: --runs {quote(str(runs.resolve().parent))}")
        report = build(found, pages.split(), dataset, runs / "claims")
    except EvalError as error:
        errors.print(str(error), soft_wrap=True)
        return 1
    if not report.datasets and report.faults:
        for fault in report.faults:
            errors.print(fault, soft_wrap=True)
        return 1
    if not report.datasets and dataset is not None:
        errors.print(f"{runs}: no run was evaluated on {dataset!r}. Evaluate one: make eval-clip DATA=...")
        return 1
    plain.terminal(report, console)
    if not report.datasets:
        console.print(f"No results under {runs} yet. Begin with: make train-clip eval-clip")
        return 0
    try:
        for name, text in (("report.md", plain.markdown), ("report.csv", plain.table_csv), ("report.html", page.html)):
            write_text(out / name, text(report))
    except FileError as error:
        errors.print(str(error), soft_wrap=True)
        return 1
    console.print(words.plain(f"Written: {out}/report.html, report.md, report.csv"))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(compare))
