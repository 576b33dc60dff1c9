"""Complete training runs of `small` with evaluation, the most interesting first, as many as fit into the time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.run import evaluate_run
from recipes.gpu.schedule import Item, Json, Results, Save, Unable
from recipes.gpu.short import few_steps, from_hub, learns, pages
from recipes.tools.collect import collect
from recipes.tools.timing import trainings
from recipes.train.folder import finished
from recipes.train.loop import train
from recipes.train.pages import page
from recipes.train.recipe import AnyRecipe

FIRST = ("clip", "coca", "siglip", "blip2")  # then the cheapest
READY = 60.0  # seconds before the first step: imports, decoding the data
EVALUATION = 90.0


def whole(
    save: Save, name: str, preset: str, data: str, device: str, runs: str, published: str, limit: int | None, steps: int | None
) -> Json:
    """Train the preset, prerequisites first, and evaluate it. Resumes in the folder `runs`. The run's result file goes to the folder
    `published`, or nowhere if that is "". `limit` and `steps` shorten a rehearsal."""
    if steps:
        for each in pages("tiny"):
            page(each).PRESETS = {
                key: few_steps(recipe, steps=steps, batch=8, vocab_size=400) for key, recipe in page(each).PRESETS.items()
            }
    recipe = replace(page(name).PRESETS[preset], data=data, device=device)
    if named := [source for _, _, each in trainings(name, recipe, preset, Path(runs)) for source in from_hub(each.model)]:
        raise Unable(f"needs {', '.join(dict.fromkeys(named))} from the hub")
    *_, (folder, _, _) = trainings(name, recipe, preset, Path(runs))
    if status := train(recipe, folder, preset, page=name):
        raise Unable(f"training stopped with status {status}; it goes on from its checkpoint")
    cost = json.loads((folder / "cost.json").read_text())
    found: Json = {key: cost[key] for key in ("samples_seen", "train_seconds", "train_flops", "peak_memory_mb")}
    save(found)
    evaluated = evaluate_run(folder, data=data, device=device, limit=limit)
    found["evaluation_seconds"] = evaluated["seconds"]
    if published:
        found["collected"] = collect(Path(runs), Path(published), [folder.name])
    return found


def trainings_that_fit(
    results: Results, preset: str, data: str, arguments: Sequence[object], runs: Path, *, least: float | None = None
) -> list[Item]:
    """The trainings in their order, each with the time that it needs by the rates that were measured before. Pages whose rates are
    unknown come last. `least` replaces the estimate."""

    def item(name: str) -> Item:
        needed = seconds(results, name, preset, data, runs) if least is None else least
        return Item(f"train {name}", whole, (name, preset, data, *arguments), seconds=needed, limit=max(600.0, 3 * needed))

    items = {name: item(name) for name in pages(preset) if learns(name)}
    rest = sorted((name for name in items if name not in FIRST), key=lambda name: items[name].seconds)
    return [items[name] for name in [*(name for name in FIRST if name in items), *rest]]


def seconds(results: Results, name: str, preset: str, data: str, runs: Path) -> float:
    """What training a page takes, prerequisites that are missing included, and its evaluation. Infinite where a rate is not known."""
    total = EVALUATION
    for folder, its_preset, recipe in trainings(name, replace(page(name).PRESETS[preset], data=data), preset, runs):
        if finished(folder):
            continue
        total += READY + _train_seconds(results.get(f"pace {folder.name.split('-')[0]}", {}), its_preset == preset, recipe)
    return total


def _train_seconds(measured: Json, same: bool, recipe: AnyRecipe) -> float:
    rates = {stage: each["samples_per_s"] for stage, each in measured.get("stages", {}).items()}
    if not same or not all(stage.name in rates for stage in recipe.schedule):
        return float("inf")
    return sum(stage.budget / rates[stage.name] for stage in recipe.schedule)
