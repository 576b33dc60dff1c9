"""Cells as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.base.console import plain_console
from eval.base.records import Record


def show(cells: Sequence[Record]) -> None:
    """A line for each metric: its value, interval and number of images, or why there is none."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("metric", "value", "95 %", "images", ""):
        table.add_column(heading, justify="right" if heading not in ("metric", "") else "left")
    for cell in cells:
        if cell["value"] is None:
            table.add_row(cell["metric"], cell["status"], "", "", cell["note"])
        else:
            table.add_row(cell["metric"], f"{cell['value']:.3f}", f"{cell['low']:.3f}-{cell['high']:.3f}", str(cell["n"]), cell["note"])
    plain_console().print(table)
