"""Measure what a model can do while it trains: a few measures of the evaluation harness, on the first validation samples."""

from __future__ import annotations

from typing import Any

import torch

from data.loader import in_order
from data.shards import find, splits
from eval.adapters.scorers import Subject
from eval.base.task import Graded, Task
from eval.harness.ask import summarise
from eval.harness.source import in_memory
from eval.tasks import plan
from recipes.train.recipe import AnyRecipe

BATCH = 128
MEASURES = {  # name -> task, metric
    "zero-shot shape": ("zeroshot", "shape"),
    "caption objects F1": ("captioning", "object F1"),
    "swapped attributes": ("foils", "swap_attribute"),
}


class Quality:
    """The tasks of `MEASURES` on the first `recipe.log.measure` samples of the val split; none without that split."""

    def __init__(self, recipe: AnyRecipe) -> None:
        self.tasks: list[Task] = []
        if not recipe.log.measure or "val" not in splits(recipe.data):
            return
        val = find(recipe.data, "val")
        samples = next(iter(in_order(val, batch_size=recipe.log.measure, memory_budget=0)))
        wanted = {task for task, _ in MEASURES.values()}
        self.tasks = [task for task in plan(in_memory(val.name, {"val": samples})) if task.name in wanted and not task.part]

    @torch.no_grad()
    def of(self, model: Any) -> dict[str, float]:
        """The measures that the model allows, without intervals. It must be in eval mode."""
        subject = Subject(model, BATCH)
        found: dict[str, float] = {}
        for task in self.tasks:
            if not (able := subject.able(task.needs, gallery=task.gallery)):
                continue
            images, rows = [sample.image for sample in task.samples], list(range(len(task.samples)))
            able[0].prepare(images, task.texts())
            answers = task.ask(able[0], images, rows)
            records = [
                {"i": row, "key": task.samples[row].key} | record for row, given in zip(rows, answers, strict=True) for record in given
            ]
            records = task.grade(records) if isinstance(task, Graded) else records
            cells = {cell["metric"]: cell["value"] for cell in summarise(task.measures, records, resample=False)}
            found |= {
                name: cells[metric] for name, (kind, metric) in MEASURES.items() if kind == task.name and cells.get(metric) is not None
            }
        return found
