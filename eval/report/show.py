"""What people look at: the table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

VARIANTS = ("model", "chance", "untrained", "shuffled images", "oracle")


def print_tables(console: Console, result: dict[str, Any]) -> None:
    """One table per task and split, 80 columns wide; a row per metric, a column per variant."""
    cells = {(cell["task"], cell["split"], cell["metric"], cell["variant"]): cell for cell in result["cells"]}
    for task, split in dict.fromkeys((cell["task"], cell["split"]) for cell in result["cells"]):
        table = Table(title=f"[bold]{task}[/], {split}", title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("metric", no_wrap=True)
        for heading in ("model", "95 %", *(variant.split()[0] for variant in VARIANTS[1:]), "n"):
            table.add_column(heading, justify="right", no_wrap=True)
        for metric in dict.fromkeys(cell["metric"] for cell in result["cells"] if (cell["task"], cell["split"]) == (task, split)):
            model, *others = (cells.get((task, split, metric, variant), {}) for variant in VARIANTS)
            interval = f"{_share(model['low'])}-{_share(model['high'])}" if model.get("value") is not None else ""
            table.add_row(metric, f"[bold]{_number(model)}[/]", interval, *map(_number, others), str(model.get("n", "")))
        console.print(table)
    reasons = {(cell["variant"], cell["task"], cell["status"]): cell["note"] for cell in result["cells"] if "status" in cell}
    for (variant, task, status), note in reasons.items():
        console.print(f"{variant}, {task}: {status}, {note}", style="dim", markup=False, highlight=False)
    summary = f"{result['run']} on {result['dataset']}: {result['seconds']:.0f} s on {result['hardware']}"
    console.print(summary, markup=False, highlight=False)


def _number(cell: dict[str, Any]) -> str:
    value = cell.get("value")
    return cell.get("status", "") if value is None else _share(value)


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
