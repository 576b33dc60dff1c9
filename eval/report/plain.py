"""The report as Markdown, CSV and terminal output."""

from __future__ import annotations

import csv
import io
from collections.abc import Sized
from html import escape
from itertools import accumulate
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from eval.report import words
from eval.report.columns import COSTS
from eval.report.report import DatasetReport, Report
from eval.report.results import Key
from eval.report.rows import cost_of
from eval.report.tables import Entry, Line, Table


def markdown(report: Report) -> str:
    lines = ["# Paragone: side by side", "", *(f"{cell(sentence)}  " for sentence in status(report))]
    for dataset in report.datasets:
        lines += ["", f"## {cell(dataset.name)}", ""]
        lines += ["Data: " + ", ".join(f"{cell(split)} `{cell(known)}`" for split, known in dataset.hashes.items()) + "."]
        for table in (dataset.overview, dataset.image_use, dataset.attributes, *dataset.tasks):
            if not table.columns:
                continue
            lines += ["", f"### {cell(table.title)}", "", *markdown_table(table)]
            lines += [f"\n{cell(remark)}" for remark in table.remarks]
            if table.below:
                lines += ["", "Below chance (\N{DOWNWARDS ARROW}):", "", *(f"- {cell(reason)}" for reason in table.below)]
        proven = proven_lines(dataset)
        if proven:
            lines += ["", "### Significant differences (paired bootstrap)", "", *(f"- {cell(line)}" for line in proven)]
        lines += ["", *(f"[{number}] {cell(reason)}  " for reason, number in dataset.footnotes.items())]
    if report.built_on:
        lines += ["", "## Prerequisites", ""]
        for name, parts in report.built_on.items():
            lines.append(f"- {cell(name)}: " + ", ".join(cell(f"{page} as its {role.replace('_', ' ')}") for role, page in parts.items()))
    if report.claims:
        lines += ["", "## Claims", "", "| page | claim | paper | here | verdict |", "|---|---|---|---|---|"]
        for claim in report.claims:
            fields = (claim.page, claim.sentence, claim.paper, f"{claim.result}, {words.count(claim.seeds, 'seed')}", claim.verdict)
            lines.append(f"| {' | '.join(cell(text) for text in fields)} |")
    return "\n".join([*lines, "", "## Commands", "", "```", *report.commands, "```", ""])


def markdown_table(table: Table) -> list[str]:
    heads = [f"{group}: {label}" for group, columns in table.groups for label, _ in columns]
    lines = ["| model | " + " | ".join(cell(head) for head in heads) + " |", "|---" + "|---:" * len(heads) + "|"]

    def add(line: Line, style: str = "") -> None:
        name = f"{style}{cell(line.label)}{style}" + (f" ({cell(line.detail)})" if line.detail else "")
        lines.append(f"| {name} | " + " | ".join(markdown_entry(shown) for shown in line.entries) + " |")

    for block in table.blocks:
        add(block.line, "**")
        for line in (*block.others, *block.runs):
            add(line)
    for line in table.controls:
        add(line, "*")
    return lines


def markdown_entry(shown: Entry) -> str:
    text = f"**{cell(shown.text)}**" if shown.best else cell(shown.text)
    marks = "".join(f" [{mark}]" for mark in (shown.adapter, shown.mark) if mark)
    text += "\N{DOWNWARDS ARROW}" if shown.below else ""
    return text + (f" ({shown.interval})" if shown.interval else "") + marks


def proven_lines(dataset: DatasetReport) -> list[str]:
    lines = []
    for key in dataset.headline:
        for (a, b), difference in dataset.proofs.get(key, {}).items():
            if difference.proven:
                interval = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
                lines.append(
                    f"{key.task} {key.metric} on {key.split}: {dataset.rows[a].name} better than {dataset.rows[b].name}, {interval}"
                )
    return lines


def cell(text: str) -> str:
    """Escape text so that it stays inside its Markdown cell and adds neither HTML, links nor invisible characters."""
    return escape(words.plain(" ".join(text.split())), quote=False).replace("|", "\\|").replace("[", "\\[").replace("`", "'")


COLUMN_WIDTH = 10  # characters, in terminal tables; more if a word of the heading is longer
NAME_WIDTH = 30  # maximum
TERMINAL_COSTS = ("samples_seen", "train_flops")
ABOUT = ("dataset", "page", "stage", "model", "paradigm", "preset", "trained_on", "seed")
NUMBERS = ("variant", "value", "low", "high", "n", "unit", "status", "adapter", "note")


def table_csv(report: Report) -> str:
    """Every cell of every run as one CSV line, unrounded. Missing values are empty. Costs are listed under the task `cost`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*ABOUT, "run", *Key._fields, *NUMBERS], lineterminator="\n")
    writer.writeheader()
    for dataset in report.datasets:
        for result in dataset.results:
            about = {name: getattr(result, name) for name in ABOUT} | {"run": result.run.name}
            for item in result.cells:
                writer.writerow(_csv(about | item.key._asdict() | {name: getattr(item, name) for name in NUMBERS}))
            for cost in COSTS:
                value = cost_of(result, cost.field)
                writer.writerow(_csv(about | {"variant": "model", "task": "cost", "metric": cost.field, "value": value}))
    return buffer.getvalue()


def _csv(row: dict[str, Any]) -> dict[str, Any]:
    """With texts that contain no HTML, no invisible characters, and nothing that a spreadsheet would execute as a formula."""
    texts = {name: escape(words.plain(value), quote=False) for name, value in row.items() if isinstance(value, str)}
    return row | {name: f"'{text}" if text.startswith(("=", "+", "-", "@")) else text for name, text in texts.items()}


def status(report: Report) -> list[str]:
    """Sentences that count the evaluated models and list missing ones."""
    names = list(dict.fromkeys(row.page for dataset in report.datasets for row in dataset.rows))
    counted: list[tuple[Sized, str]] = [(names, "model"), (report.runs, "run"), (report.datasets, "data set")]
    sentences = [", ".join(words.count(len(things), what) for things, what in counted) + (f": {', '.join(names)}." if names else ".")]
    if report.untrained:
        sentences.append(f"Not trained yet: {', '.join(report.untrained)} (make train-<page> eval-<page>).")
    if report.unevaluated:
        sentences.append("Trained but not evaluated: " + ", ".join(f"{page} (make eval-{page})" for page in report.unevaluated) + ".")
    sentences += [f"Old numbers: {each}." for each in report.stale]
    return [*sentences, *(f"Left out: {fault}" for fault in report.faults)]


def terminal(report: Report, console: Console) -> None:
    """Print the overview of each data set without intervals, split into tables that fit the width of the terminal."""
    for dataset in report.datasets:
        heads = [f"{group.partition(' ')[0]} {label}" for group, columns in dataset.overview.groups for label, _ in columns]
        shown = list(range(len(heads) - len(COSTS)))
        shown += [len(heads) - len(COSTS) + place for place, cost in enumerate(COSTS) if cost.field in TERMINAL_COSTS]
        named = [line.label for line in dataset.overview.controls] + [row.name for row in dataset.rows]
        named += [f"  {other.detail}" for block in dataset.overview.blocks for other in block.others]
        names = min(NAME_WIDTH, max(map(len, named)))
        title = dataset.name
        while shown:
            widths = list(accumulate(_width(heads[place]) + 2 for place in shown))  # with the spaces between columns
            fitting = max(1, sum(width <= console.width - names - 3 for width in widths))
            console.print(terminal_table(dataset, heads, shown[:fitting], title=title))
            shown, title = shown[fitting:], ""
    for sentence in status(report):
        console.print(Text(sentence))


def terminal_table(dataset: DatasetReport, heads: list[str], places: list[int], *, title: str) -> Grid:
    """The overview's columns at `places`."""
    bold = Text(title, style="bold") if title else None
    grid = Grid(title=bold, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("model", max_width=NAME_WIDTH, vertical="bottom")
    for place in places:
        grid.add_column(Text(heads[place].replace("_", " ")), justify="right", vertical="bottom", width=_width(heads[place]))
    for block, row in zip(dataset.overview.blocks, dataset.rows, strict=True):
        others = [other for other in block.others if any(other.entries[place].text for place in places)]
        for name, line in ((row.name, block.line), *((f"  {other.detail}", other) for other in others)):
            grid.add_row(Text(name), *(terminal_entry(line.entries[place]) for place in places))
    grid.add_section()
    for line in dataset.overview.controls:
        grid.add_row(Text(line.label), *(terminal_entry(line.entries[place]) for place in places), style="dim")
    return grid


def _width(head: str) -> int:
    """Characters that a column needs so that no word of its heading is cut."""
    return max(COLUMN_WIDTH, *map(len, head.replace("_", " ").split()))


def terminal_entry(shown: Entry) -> Text:
    return Text(
        shown.text + ("\N{DOWNWARDS ARROW}" if shown.below else ""), style="bold" if shown.best else "dim" if shown.kind == "absent" else ""
    )
