"""Evaluate a trained model: `python -m eval.run .runs/clip-tiny-s0 [--data .data/scenes-tiny] [--tasks zeroshot,retrieval]`;
or published weights: `python -m eval.run open_clip:ViT-B-32/laion2b_s34b_b79k --data .data/scenes-tiny`.

Every task that the data allows and the model is capable of, beside its controls, on the test split and on both shifts where
the data set has them. Answers stream to `RUN/eval/<data set>/<task>.<split>.<variant>.jsonl`; when all are there, `eval.json`
(one cell per number), `prompts.json` and `showcase.json` are written next to them. An interrupted evaluation goes on.

A model may say that some tasks are asked after an earlier stage of its training (`Model.asked_after`). Where the run folder keeps the
model of that stage, in `RUN/stages/<stage>`, they are asked of it, into `RUN/stages/<stage>/eval/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import models
from data.files import write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base import schemas
from eval.base.capabilities import Draws, WeighsAnswers
from eval.base.heartbeat import heartbeat
from eval.base.provenance import provenance
from eval.base.task import FallsBelowChance, Task
from eval.harness.ask import Json, cells_of, chance_cells, hashed, title, variants
from eval.harness.controls import untrained
from eval.harness.outlook import Outlook, unit
from eval.harness.showcase import showcase
from eval.harness.source import Source, from_shards
from eval.judges.clipscore import PUBLISHED, clip_beside, named_clip
from eval.judges.vqascore import named_judge, seed_zero
from eval.report.sheet import write_sheet
from eval.report.show import WIDTH, print_screen, print_tables
from eval.tasks import plan
from models.shared.device import hardware, resolve_device

PRESETS = ("tiny", "small", "paper")
LATER = "The paper asks it after the stage {}; this is a later model."


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: str | None = None,
    tasks: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    batch_size: int = 256,
    clip: str | None = None,
    judge: str | None = None,
    all: bool = False,
) -> None:
    """Evaluate a trained model.

    Args:
        run: run folder, with model.json and model.safetensors; or published weights (open_clip:MODEL/TAG, hf:NAME), which become one.
        data: data set folder or shards; the data set the model was trained on unless given.
        tasks: only these, separated by commas (zeroshot, retrieval, foils, probe).
        device: auto, cpu, cuda, cuda:1, mps.
        limit: at most this many samples of each split, for a quick look.
        batch_size: images or texts encoded at once; changes results in their last bits at most.
        clip: judge of CLIPScore, a run folder or open_clip:MODEL/TAG; the finished CLIP run beside this one (seed 0) unless given.
        judge: judge of VQAScore, the run folder of a model that answers; the model itself (its seed 0) unless given, if it does.
        all: print every number, a table for each task and split, before the screen with the headline measures.
    """
    try:
        chosen = tuple(tasks.split(",")) if tasks else None
        folder = stored(run) if run.startswith(PUBLISHED) else Path(run)
        options: Json = {"data": data, "device": device, "limit": limit, "batch_size": batch_size, "clip": clip, "judge": judge}
        evaluate_run(folder, tasks=chosen, everything=all, **options)
    except (EvalError, DataError, FileNotFoundError, ValueError, ConnectionError) as error:
        sys.exit(f"eval: {error}")


def evaluate_run(
    folder: Path,
    *,
    data: str | None = None,
    tasks: Sequence[str] | None = None,
    device: str = "auto",
    limit: int | None = None,
    batch_size: int = 256,
    clip: str | None = None,
    judge: str | None = None,
    everything: bool = False,
) -> Json:
    """Evaluate the model in a run folder, print a screen (with `everything` all tables, too), and return what is in `eval.json`.

    Tasks that its class asks after an earlier stage are asked of what `folder/stages` keeps of that stage, and of the finished model
    only where `tasks` names them.
    """
    options: Json = {"data": data, "device": device, "limit": limit, "batch_size": batch_size, "clip": clip, "judge": judge}
    with heartbeat(lambda: f"{folder.name}: loading"):
        elsewhere = _asked_after(folder)
    for stage, asked in elsewhere.items():
        if chosen := [name for name in asked if tasks is None or name in tasks]:
            _evaluate_folder(folder / "stages" / stage, tasks=chosen, lenient=True, everything=everything, elsewhere={}, **options)
    skipped = {task: stage for stage, asked in elsewhere.items() for task in asked} if tasks is None else {}
    return _evaluate_folder(folder, tasks=tasks, everything=everything, elsewhere=skipped, **options)


def _evaluate_folder(
    folder: Path,
    *,
    data: str | None,
    tasks: Sequence[str] | None,
    device: str,
    limit: int | None,
    batch_size: int,
    clip: str | None,
    judge: str | None,
    everything: bool,
    elsewhere: dict[str, str],
    lenient: bool = False,
) -> Json:
    """One model; `elsewhere`: tasks that are asked after an earlier stage, which has a model of its own. `lenient`: tasks that the data
    do not allow are left out."""
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).exists():
            raise EvalError(f"{folder / name} is missing: expected a finished run, as `make train-clip` leaves it under .runs/")
    recipe = json.loads((folder / "recipe.json").read_text()) if (folder / "recipe.json").exists() else {}
    spec = data or recipe.get("data")
    if not spec:
        raise EvalError(f"{folder}/recipe.json names no data set; name one with --data")
    with heartbeat(lambda: f"{folder.name}: loading the model and the data"):
        device = str(resolve_device(device))
        model: Any = models.load(folder, device).requires_grad_(False)  # the FLOP counter would look for gradients
        source = from_shards(spec, limit)
        home = folder.parent.parent if recipe.get("stage") else folder  # the run folder, which has others beside it
        fits: str | Path | None = clip or clip_beside(home)
        shows: str | Path | None = judge
        if not judge and isinstance(model, Draws) and isinstance(model, WeighsAnswers):
            shows = seed_zero(home)
        source.clip = named_clip(str(fits), device, batch_size) if fits else None
        source.judge = named_judge(str(shows), device, batch_size) if shows else None
        if lenient:
            allowed = {task.name for task in plan(source)}
            tasks = [name for name in tasks or () if name in allowed]
        return evaluate(
            model,
            untrained(folder, device),
            source,
            folder / "eval",
            about=_about(folder, home, recipe, spec, model),
            weights=_sha256((folder / "model.safetensors").read_bytes() + (folder / "model.json").read_bytes()),
            tasks=tasks,
            batch_size=batch_size,
            everything=everything,
            elsewhere=elsewhere,
        )


def _about(folder: Path, home: Path, recipe: Json, spec: str, model: Any) -> Json:
    """What eval.json says of the run."""
    description = json.loads((folder / "model.json").read_text())
    run = home.resolve().name
    stage = recipe.get("stage", "")
    later = {task: after for after, asked in getattr(model, "asked_after", {}).items() if after != stage for task in asked}
    notes = {task: LATER.format(after) for task, after in later.items()}
    return {
        "run": f"{run}-{stage}" if stage else run,
        "page": recipe.get("page") or recipe.get("name") or description["model"],
        "stage": stage,
        "model": description["model"],
        "paradigm": description["paradigm"],
        "preset": recipe.get("preset") or next((part for part in run.split("-") if part in PRESETS), "custom"),
        "seed": recipe.get("seed", 0),
        "data": spec,
        "trained_on": recipe.get("published") or _trained_on(str(recipe.get("data", "unknown"))),
        "published": recipe.get("published", ""),
        "notes": notes | dict(getattr(model, "notes", {})),
    }


def _asked_after(folder: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> the tasks that are asked after it, of the stages that the run folder keeps a model of."""
    kept = {path.parent.name for path in folder.glob("stages/*/model.safetensors")}
    if not kept or not (folder / "model.json").exists():
        return {}
    asked = models.model_class(json.loads((folder / "model.json").read_text())["model"]).asked_after
    return {stage: tuple(tasks) for stage, tasks in asked.items() if stage in kept}


def stored(spec: str, runs: Path = Path(".runs")) -> Path:
    """The run folder of published weights, named after them; fetched when there is none yet."""
    folder = runs / re.sub(r"[^\w.]+", "-", spec)
    if not (folder / "recipe.json").exists():
        model: Any = models.load(spec)
        models.save(model, folder)
        name = json.loads((folder / "model.json").read_text())["model"]
        write_json(folder / "cost.json", {"total_parameters": sum(parameter.numel() for parameter in model.parameters())})
        write_json(folder / "recipe.json", {"name": name, "preset": "published", "published": spec})  # the last: now it is whole
    return folder


def evaluate(
    model: Any,
    fresh: Any,
    source: Source,
    out: Path,
    *,
    about: Json,
    weights: str,
    tasks: Sequence[str] | None = None,
    batch_size: int = 256,
    console: Console | None = None,
    everything: bool = False,
    elsewhere: dict[str, str] | None = None,
) -> Json:
    """Evaluate `model` on `source`, with the untrained model `fresh` as a control, into `out/<data set>/`.

    `weights` identifies the model: records made with other weights, data or prompts are not reused. `tasks` None means all;
    with a selection the cells of other tasks are kept from an earlier evaluation of the same weights and data. `elsewhere`: tasks not
    to be asked, and the stage of the training after which they are. With `everything` all tables are printed before the screen.
    Raises EvalError when there is nothing to evaluate.
    """
    start, elsewhere, out = time.perf_counter(), elsewhere or {}, out / source.name
    console = console or Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
    planned = plan(source)
    names = list(dict.fromkeys(task.name for task in planned))
    if unknown := [name for name in tasks or () if name not in names]:
        raise EvalError(f"{source.name}: no task {unknown[0]!r} for this data set; possible: {', '.join(names) or 'none'}")
    if not planned:
        raise EvalError(f"{source.name}: nothing to ask; samples need captions, labels, foils or objects. See `make check-data DATA=...`")
    chosen = [task for task in planned if tasks is None or task.name in tasks]
    fingerprints = {split: source.fingerprint(split) for split in dict.fromkeys([*source.evaluated, *(task.split for task in planned)])}
    everyone = variants(model, fresh, source, fingerprints, weights, batch_size)

    cells = [cell for task in chosen if task.name in elsewhere for cell in _later(task, elsewhere[task.name], about)]
    chosen = [task for task in chosen if task.name not in elsewhere]
    units = [unit(task, variant, source.shifts) for task in chosen for variant in everyone]
    outlook = Outlook(about["run"], units, Console(stderr=True, quiet=console.quiet))
    spent: list[Json] = []
    with outlook.shown():
        for task in chosen:
            for variant in everyone:
                outlook.next()
                asked = time.perf_counter()
                cells += cells_of(task, variant, source, out, fingerprints[task.split], batch_size, outlook.advance)
                spent.append({"task": title(task), "split": task.split, "variant": variant.name, "seconds": _since(asked)})
            cells += chance_cells(task)
        outlook.finish("pictures for the report")
        showing = everyone[0].subject
        only = {task.name for task in chosen} if about.get("stage") else set(names) - set(elsewhere) if elsewhere else None
        shown = showcase(showing, planned, source, only) if showing else None

    settings = {title(task): task.settings() for task in planned}
    result: Json = {"schema": schemas.EVALUATION, **about}
    result["notes"] = {task.name: task.below_chance for task in planned if isinstance(task, FallsBelowChance)} | about.get("notes", {})
    result |= {"dataset": source.name, "weights": weights, "limit": source.limit, "data_hashes": fingerprints}
    result |= {"prompts": {name: hashed(value) for name, value in settings.items()}, "cells": cells}
    if tasks is not None:
        result["cells"] = _kept_cells(out / "eval.json", result, chosen) + cells
    # Where a task gave no number, what it would have asked with (which judge, say) cannot set two runs apart.
    answered = {cell["task"] for cell in result["cells"] if cell["variant"] == "model" and cell["value"] is not None}
    result["prompts"] = {title(task): result["prompts"][title(task)] for task in planned if task.name in answered}
    result |= {"inference_flops_per_image": inference_flops(model, source), "hardware": hardware(_device_of(model)), **provenance()}
    result |= {"seconds": _since(start), "seconds_of": [each for each in spent if each["seconds"]]}
    write_json(out / "prompts.json", {name: settings[name] for name in result["prompts"]})
    if shown:
        write_json(out / "showcase.json", shown)
    write_json(out / "eval.json", result)
    drawn = {cell["records"] for cell in cells if cell["task"] == "drawing" and cell["variant"] == "model" and "records" in cell}
    if (name := f"drawing.{source.primary}.model.jsonl") in drawn:
        write_sheet(out / name)
    if everything:
        print_tables(console, result)
    print_screen(console, result, out.parent.parent)
    return result


def _later(task: Task, stage: str, about: Json) -> list[Json]:
    note = f"asked after the stage {stage}, as in the paper: see the row {about.get('page', about['model'])} after {stage}"
    common = {"task": task.name, "split": task.split, "variant": "model", "value": None, "status": "not run", "note": note}
    return [common | {"metric": each.name, "unit": each.unit, "better": each.better} for each in task.measures]


def _kept_cells(path: Path, result: Json, chosen: Sequence[Task]) -> list[Json]:
    old = json.loads(path.read_text()) if path.exists() else {}
    if any(old.get(name) != result[name] for name in ("schema", "weights", "limit", "data_hashes")):
        return []
    if any(result["prompts"].get(name) != value for name, value in old["prompts"].items()):
        return []
    names = {task.name for task in chosen}
    return [cell for cell in old["cells"] if cell["task"] not in names]


# ----------------------------------------------------------------------------------------------------- bookkeeping


def inference_flops(model: Any, source: Source) -> int | None:
    """Floating-point operations (a multiply-add counts two) to take in one image; with its caption where only pairs can be scored, to
    describe it where the model does nothing else."""
    sample = source.samples(source.primary)[0]
    with FlopCounterMode(display=False) as counter:
        if hasattr(model, "encode_image"):
            model.encode_image([sample.image])
        elif hasattr(model, "score"):
            model.score([sample.image], [sample.captions[0] if sample.captions else "a photo"])
        elif hasattr(model, "caption"):
            model.caption([sample.image])
    return counter.get_total_flops() or None


def _device_of(model: Any) -> torch.device:
    """The CPU for a model without parameters."""
    return next((parameter.device for parameter in getattr(model, "parameters", tuple)()), torch.device("cpu"))


def _trained_on(spec: str) -> str:
    """The training set's own name; the last part of its path where it is no longer there."""
    try:
        return find(spec, "train").name
    except (DataError, FileNotFoundError):
        return Path(spec).name


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    tyro.cli(main)
