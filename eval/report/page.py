"""The report as one HTML file that needs nothing but a browser: no network, no fonts, a little script for sorting."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report import plots
from eval.report.plain import status
from eval.report.report import DatasetReport, Report

HERE = Path(__file__).parent


def html(report: Report) -> str:
    """Everything that came from a file is escaped by the template; only our style, script and figures are marked as safe."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.j2").render(
        report=report,
        status=status(report),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        curves=curves(report),
        scatters={dataset.name: scatters(dataset) for dataset in report.datasets},
        gaps={dataset.name: gaps(dataset) for dataset in report.datasets},
    )


def curves(report: Report) -> list[tuple[str, str, Markup]]:
    """One panel per experiment, whatever number of data sets it was judged on: (name, detail, figure)."""
    rows = {tuple(result.run.name for result in row.results): row for dataset in report.datasets for row in dataset.rows}
    longest = max((line.get("samples", 0) for run in report.runs for line in run.log), default=0)
    drawn = [
        (row.name, row.detail, plots.training_curves([result.run for result in row.results], f"Training of {row.name}", longest))
        for row in rows.values()
    ]
    return [(name, detail, Markup(figure)) for name, detail, figure in drawn if figure]


def scatters(dataset: DatasetReport) -> list[tuple[str, Markup]]:
    """Quality against compute: per task, its first headline metric."""
    firsts = {key.task: key for key in reversed(dataset.headline)}
    drawn = [
        (f"{key.task}: {key.metric}", plots.quality_against_compute(dataset.rows, key))
        for key in dataset.headline
        if firsts[key.task] is key
    ]
    return [(title, Markup(figure)) for title, figure in drawn if figure]


def gaps(dataset: DatasetReport) -> list[tuple[str, str, Markup]]:
    drawn = [(row.name, row.seeds, plots.shift_gaps(row, dataset.rows, dataset.shifts)) for row in dataset.rows if dataset.shifts]
    return [(name, detail, Markup(figure)) for name, detail, figure in drawn if figure]
