"""Print an evaluation on the terminal, as a one-screen summary or in full."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.report import words
from eval.report.authors import HEADS, Comparison, comparisons
from eval.report.headline import headline
from eval.report.results import Key, is_below

VARIANTS = ("model", "chance", "untrained", "shuffled images", "oracle")
CONTROLS = ("chance", "untrained", "shuffled images", "blank images", "oracle")  # columns after the model's; the last are cut first
WIDTH = 100
LINES = 40
REMARKS = 12  # lines below the table, for missing tasks and values below chance
WHERE = 5  # lines about the full results

Result = dict[str, Any]
Cells = dict[tuple[Key, str], dict[str, Any]]


def print_screen(console: Console, result: Result, folder: Path) -> None:
    """Print the headline metrics with their controls, missing tasks with reasons, and paths to the full results, in at most 40 lines of
    100 columns."""
    cells = {(Key(cell["task"], cell["split"], cell["metric"]), cell["variant"]): cell for cell in result["cells"]}
    keys = list(dict.fromkeys(key for key, _ in cells))
    shown = [key for key in headline(keys) if cells.get((key, "model"), {}).get("value") is not None]
    width = min(WIDTH, console.width)
    page = result.get("page", result["model"])
    named = " after ".join(filter(None, [page, result.get("stage")]))
    console.print(Text(f"{result['run']}: {named} on {result['dataset']}", style="bold"))
    if result.get("unfinished"):
        make = words.make(f"train-{page}", OUT=folder)
        console.print(Text(f"Its training is not finished: it has seen {result['unfinished']} so far. To finish it:", style="yellow"))
        console.print(Text(f"  {make}", style="yellow"), soft_wrap=True)
    if shown:
        console.print(_headlines(shown, cells, width))
    if compared := comparisons(result):
        console.print(_beside_the_authors(compared))
    used = 1 + 2 * bool(result.get("unfinished")) + bool(shown) * (len(shown) + 2) + bool(compared) * (len(compared) + 2) + WHERE
    remarks = [*_missing(keys, cells), *_below(shown, cells, result.get("notes", {}))]
    for remark in _fitted(remarks, min(REMARKS, LINES - used), console, width):
        console.print(remark)
    for line in _where(result, folder, cells, shown):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def _headlines(shown: Sequence[Key], cells: Cells, width: int) -> Table:
    controls = [each for each in CONTROLS if any(cells.get((key, each), {}).get("value") is not None for key in shown)]
    names = max(len(_task(key)) for key in shown) + max(len(key.metric) for key in shown)
    while controls and names + 2 * (3 + len(controls)) + 17 + sum(max(6, len(each.split()[0])) for each in controls) > width:
        controls.pop()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("task", "measure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("model", "95 %", *(each.split()[0] for each in controls)):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in shown:
        cell = cells[key, "model"]
        mark = "\N{DOWNWARDS ARROW}" if is_below(*_beside_chance(key, cells)) else ""
        interval = "" if cell["low"] is None else f"{_number(cell, 'low')}-{_number(cell, 'high')}"
        beside = [_number(cells.get((key, each), {})) for each in controls]
        table.add_row(_task(key), key.metric, Text(mark + _number(cell), style="bold"), interval, *beside)
    return table


def _beside_the_authors(compared: Sequence[Comparison]) -> Table:
    """The scores that the authors of published weights give, ours, and the causes of a difference."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in HEADS:
        table.add_column(heading, justify="right" if heading in ("authors", "ours", "95 %") else "left")
    for each in compared:
        table.add_row(*map(Text, each.row()))
    return table


def _task(key: Key) -> str:
    return key.task if key.split == "test" else f"{key.task} ({key.split})"


def _beside_chance(key: Key, cells: Cells) -> tuple[float | None, float | None, float | None, str]:
    cell = cells[key, "model"]
    return cell.get("low"), cell.get("high"), cells.get((key, "chance"), {}).get("value"), cell.get("better", "higher")


def _below(shown: Sequence[Key], cells: Cells, notes: dict[str, str]) -> list[str]:
    """One line for each reason why headline metrics are below chance."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for key in shown:
        if not is_below(*_beside_chance(key, cells)):
            continue
        cell, chance = cells[key, "model"], cells[key, "chance"]
        found = f"{_task(key)} {key.metric}: {_number(cell)} ({_number(cell, 'low')}-{_number(cell, 'high')}), chance {_number(chance)}"
        reasons.setdefault((cell.get("adapter", "?"), notes.get(key.task, "")), []).append(found)
    return [f"\N{DOWNWARDS ARROW} Below chance: {'; '.join(found)}, by {made}. {note}".strip() for (made, note), found in reasons.items()]


def _fitted(remarks: Sequence[str], room: int, console: Console, width: int) -> list[Text]:
    """The lines of the remarks, in at most `room` lines. What does not fit ends in an ellipsis, and remarks without a line are counted."""
    wrapped = [list(Text(remark).wrap(console, width)) for remark in remarks]
    if sum(map(len, wrapped)) <= room:
        return [line for lines in wrapped for line in lines]
    kept = wrapped if len(wrapped) <= room else wrapped[: max(0, room - 1)]
    most = [1] * len(kept)
    while sum(most) < room - (len(kept) < len(wrapped)) and any(n < len(lines) for n, lines in zip(most, kept, strict=True)):
        for number, lines in enumerate(kept):  # a line more for each in turn
            if most[number] < len(lines) and sum(most) < room - (len(kept) < len(wrapped)):
                most[number] += 1
    found: list[Text] = []
    for number, lines in zip(most, kept, strict=True):
        part = lines[:number]
        if number < len(lines):
            part[-1].truncate(width - 2)
            part[-1].append(" \N{HORIZONTAL ELLIPSIS}")
        found += part
    return found + [Text(f"{len(wrapped) - len(kept)} more remarks.")] * (len(kept) < len(wrapped) and room > 0)


def _missing(keys: Sequence[Key], cells: Cells) -> list[str]:
    """One line for tasks that the model cannot do and one for tasks that were not run, with tasks grouped by reason. Reasons that differ in
    numbers alone, such as the size of a gallery, are one."""
    lines = []
    answered = {key.task for key in keys if cells.get((key, "model"), {}).get("value") is not None}
    for status, heading in (("n/a", "It cannot"), ("not run", "Not run")):
        reasons: dict[str, tuple[str, dict[str, None]]] = {}
        for key in keys:
            cell = cells.get((key, "model"), {})
            if key.task not in answered and cell.get("status") == status:
                reasons.setdefault(re.sub(r"[\d,]+", "N", cell["note"]), (cell["note"], {}))[1][key.task] = None
        if reasons:
            lines.append(f"{heading}: " + "; ".join(f"{', '.join(tasks)} ({reason})" for reason, tasks in reasons.values()) + ".")
    return lines


def _where(result: Result, folder: Path, cells: Cells, shown: Sequence[Key]) -> list[str]:
    """The time that the evaluation took, and where to find the full results."""
    answered = [key for (key, variant), cell in cells.items() if variant == "model" and cell["value"] is not None]
    others = [task for task in dict.fromkeys(key.task for key in answered) if task not in {key.task for key in shown}]
    others += [f"split {split}" for split in dict.fromkeys(key.split for key in answered) if split not in {key.split for key in shown}]
    page, home = result.get("page", result["model"]), folder.parent.parent if result.get("stage") else folder
    which = {"WEIGHTS": result["published"]} if result.get("published") else {"OUT": home}
    everything = " ".join(["--all", *([f"--limit {result['limit']}"] if result.get("limit") else [])])  # without it all would run again
    tasks = ",".join(result.get("asked") or ())
    return [
        f"Took {words.duration(result['seconds'])} on {result['hardware']}.",
        _everything(len(cells), others),
        "  " + words.make(f"eval-{page}", **which, TEST=result.get("data"), TASKS=tasks, EVAL_ARGS=everything),
        f"Per-sample records and eval.json: {folder / 'eval' / result['dataset']}/",
        "Comparison with other models: make compare",
    ]


def _everything(count: int, others: Sequence[str]) -> str:
    """What the full tables add to the screen, with as many names as fit into a line."""
    for named in range(len(others), -1, -1):
        names = [*others[:named], *([f"{len(others) - named} more"] if named < len(others) else [])]
        also = f" (also {', '.join(names)})" if names else ""
        line = f"All {count:,} numbers{also}, without evaluating again:"
        if len(line) <= WIDTH:
            break
    return line


def print_tables(console: Console, result: Result) -> None:
    """Print one table per task and split, 80 columns wide, with a row per metric and a column per variant."""
    cells = {(cell["task"], cell["split"], cell["metric"], cell["variant"]): cell for cell in result["cells"]}
    for task, split in dict.fromkeys((cell["task"], cell["split"]) for cell in result["cells"]):
        title = Text.assemble((task, "bold"), f", {split}")
        table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("metric", no_wrap=True)
        for heading in ("model", "95 %", *(variant.split()[0] for variant in VARIANTS[1:]), "n"):
            table.add_column(heading, justify="right", no_wrap=True)
        for metric in dict.fromkeys(cell["metric"] for cell in result["cells"] if (cell["task"], cell["split"]) == (task, split)):
            model, *others = (cells.get((task, split, metric, variant), {}) for variant in VARIANTS)
            interval = f"{_number(model, 'low')}-{_number(model, 'high')}" if model.get("value") is not None else ""
            table.add_row(metric, Text(_number(model), style="bold"), interval, *map(_number, others), str(model.get("n", "")))
        console.print(table)
    reasons = {(cell["variant"], cell["task"], cell["status"]): cell["note"] for cell in result["cells"] if "status" in cell}
    for (variant, task, status), note in reasons.items():
        console.print(f"{variant}, {task}: {status}, {note}", style="dim", markup=False, highlight=False)


def _number(cell: dict[str, Any], name: str = "value") -> str:
    value = cell.get(name)
    return cell.get("status", "") if value is None else words.quantity(value, cell.get("unit", "share"))
