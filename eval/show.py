"""What people look at: the table on the terminal, and a few pictures with what the model ranks first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eval.adapters import Subject
from eval.capabilities import Scorer
from eval.source import spread
from eval.tasks import Task

PICTURES = 12
RANKED = 5
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


def showcase(subject: Subject | None, tasks: Sequence[Task], split: str) -> dict[str, Any]:
    """Pictures of the main split, evenly spread over the retrieval gallery, with the texts the subject ranks first among the
    gallery's captions; where there are no captions, among the zero-shot prompts. Without either, or without scores: no items."""
    found: dict[str, Any] = {"schema": 1, "split": split, "items": []}
    by_name = {task.name: task for task in reversed(tasks) if task.split == split and task.name in ("retrieval", "zeroshot")}
    task: Any = by_name.get("retrieval") or by_name.get("zeroshot")
    able = subject.able(Scorer, gallery=True) if subject and task is not None else []
    if not able:
        return found
    texts = task.texts()
    if task.name == "zeroshot":
        texts = [prompts[0] for prompts in task.prompts]
    rows = spread(list(range(len(task.samples))), PICTURES)
    scores = able[0].matrix([task.samples[row].image for row in rows], texts)
    for row, score in zip(rows, scores, strict=True):
        sample = task.samples[row]
        own = sample.captions if task.name == "retrieval" else [task.templates[0].format_map(task.truths[row])]
        first = np.argsort(-score, kind="stable")[:RANKED].tolist()
        ranked = [{"text": texts[i], "score": float(score[i]), "correct": texts[i] in own} for i in first]
        found["items"].append({"key": sample.key, "image": _data_uri(sample.image), "captions": list(own), "ranked": ranked})
    return found


def _number(cell: dict[str, Any]) -> str:
    value = cell.get("value")
    return cell.get("status", "") if value is None else _share(value)


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _data_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
