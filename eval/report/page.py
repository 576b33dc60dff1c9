"""Render the report as one self-contained HTML file: no network, no fonts, a small script for sorting and browsing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report import figures, graph, hallucination
from eval.report.claims import arms_figure
from eval.report.plain import status
from eval.report.report import DatasetReport, Report
from eval.report.results import Key

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Panel:
    title: str
    detail: str
    figure: Markup


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The figures of one data set."""

    compute: list[Panel]
    robustness: list[Panel]
    hallucination: list[Panel]


def html(report: Report) -> str:
    """Render the report. The template escapes everything read from files; only our own CSS, script and figures are marked as safe."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.j2").render(
        report=report,
        status=status(report),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("veil.js", "page.js"))),
        curves=curves(report),
        claim_figures=[Markup(arms_figure(claim)) for claim in report.claims],
        lineage=Markup(graph.svg(report.built_on)),
        apart=graph.apart(report.built_on, [row.page for dataset in report.datasets for row in dataset.rows]),
        figures_of={dataset.name: panels(dataset) for dataset in report.datasets},
    )
    return text.lstrip()


def curves(report: Report) -> list[Panel]:
    """One panel of training curves per experiment, even if it was evaluated on several data sets."""
    rows = {tuple(result.run.name for result in row.results): row for dataset in report.datasets for row in dataset.rows}
    longest = max((line.get("samples", 0) for run in report.runs for line in run.log), default=0)
    return _drawn(
        (row.name, row.detail, figures.training_curves([result.run for result in row.results], f"Training of {row.name}", longest))
        for row in rows.values()
    )


def panels(dataset: DatasetReport) -> Panels:
    """Per task, its first headline metric over compute and under distribution shift, and one hallucination panel per kind of question."""
    firsts = {key.task: key for key in reversed(dataset.headline)}
    chosen = [key for key in dataset.headline if firsts[key.task] is key]
    away: dict[Key, list[Key]] = dict(dataset.shifts)
    return Panels(
        compute=_drawn((_title(key), key.split, figures.quality_against_compute(dataset.rows, key)) for key in chosen),
        robustness=_drawn(
            (_title(key), other.split, figures.robustness(dataset.rows, key, other)) for key in chosen for other in away.get(key, [])
        ),
        hallucination=_drawn((name, "", figure) for name, figure in hallucination.panels(dataset.rows, dataset.keys)),
    )


def _title(key: Key) -> str:
    return f"{key.task}: {key.metric.replace('_', ' ')}"


def _drawn(found: Iterable[tuple[str, str, str | None]]) -> list[Panel]:
    return [Panel(title, detail, Markup(figure)) for title, detail, figure in found if figure]
