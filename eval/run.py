"""Evaluate a trained model: `python -m eval.run .runs/clip-tiny-s0 [--data .data/scenes-tiny] [--tasks zeroshot,retrieval]`;
or published weights: `python -m eval.run open_clip:ViT-B-32/laion2b_s34b_b79k --data .data/scenes-tiny`.

Every task that the data allows and the model is capable of, beside its controls, on the test split and on both shifts where
the data set has them. Answers stream to `RUN/eval/<data set>/<task>.<split>.<variant>.jsonl`; when all are there, `eval.json`
(one cell per number), `prompts.json` and `showcase.json` are written next to them. An interrupted evaluation goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch.utils.flop_counter import FlopCounterMode

import models
from data.shards import DataError, find
from eval import EvalError
from eval.base.capabilities import Draws, WeighsAnswers
from eval.base.task import Task
from eval.harness.ask import Json, cells_of, chance_cells, hashed, title, variants
from eval.harness.controls import untrained
from eval.harness.showcase import showcase
from eval.harness.source import Source, from_shards
from eval.judges.clipscore import PUBLISHED, clip_beside, named_clip
from eval.judges.vqascore import named_judge, seed_zero
from eval.report.sheet import write_sheet
from eval.report.show import print_tables
from eval.tasks import plan

SCHEMA = 1
PRESETS = ("tiny", "small", "paper")


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: str | None = None,
    tasks: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    batch_size: int = 256,
    clip: str | None = None,
    judge: str | None = None,
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
    """
    try:
        chosen = tuple(tasks.split(",")) if tasks else None
        folder = stored(run) if run.startswith(PUBLISHED) else Path(run)
        evaluate_run(folder, data=data, tasks=chosen, device=device, limit=limit, batch_size=batch_size, clip=clip, judge=judge)
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
) -> Json:
    """Evaluate the model in a run folder, print the table, and return what is in `eval.json`."""
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).exists():
            raise EvalError(f"{folder / name} is missing: expected a finished run, as `make train-clip` leaves it under .runs/")
    recipe = json.loads((folder / "recipe.json").read_text()) if (folder / "recipe.json").exists() else {}
    spec = data or recipe.get("data")
    if not spec:
        raise EvalError(f"{folder}/recipe.json names no data set; name one with --data")
    model: Any = models.load(folder, _device(device)).requires_grad_(False)  # the FLOP counter would look for gradients
    description = json.loads((folder / "model.json").read_text())
    about = {
        "run": folder.resolve().name,
        "model": description["model"],
        "paradigm": description["paradigm"],
        "preset": recipe.get("preset") or next((part for part in folder.resolve().name.split("-") if part in PRESETS), "custom"),
        "seed": recipe.get("seed", 0),
        "data": spec,
        "trained_on": recipe.get("published") or _trained_on(str(recipe.get("data", "unknown"))),
        "published": recipe.get("published", ""),
    }
    source = from_shards(spec, limit)
    fits: str | Path | None = clip or clip_beside(folder)
    shows: str | Path | None = judge
    if not judge and isinstance(model, Draws) and isinstance(model, WeighsAnswers):
        shows = seed_zero(folder)
    source.clip = named_clip(str(fits), _device(device), batch_size) if fits else None
    source.judge = named_judge(str(shows), _device(device), batch_size) if shows else None
    return evaluate(
        model,
        untrained(folder, _device(device)),
        source,
        folder / "eval",
        about=about,
        weights=_sha256((folder / "model.safetensors").read_bytes() + (folder / "model.json").read_bytes()),
        tasks=tasks,
        batch_size=batch_size,
    )


def stored(spec: str, runs: Path = Path(".runs")) -> Path:
    """The run folder of published weights, named after them; fetched when there is none yet."""
    folder = runs / re.sub(r"[^\w.]+", "-", spec)
    if not (folder / "recipe.json").exists():
        model: Any = models.load(spec)
        models.save(model, folder)
        name = json.loads((folder / "model.json").read_text())["model"]
        _write_json(folder / "cost.json", {"total_parameters": sum(parameter.numel() for parameter in model.parameters())})
        _write_json(folder / "recipe.json", {"name": name, "preset": "published", "published": spec})  # the last: now it is whole
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
) -> Json:
    """Evaluate `model` on `source`, with the untrained model `fresh` as a control, into `out/<data set>/`.

    `weights` identifies the model: records made with other weights, data or prompts are not reused. `tasks` None means all;
    with a selection the cells of other tasks are kept from an earlier evaluation of the same weights and data.
    Raises EvalError when there is nothing to evaluate.
    """
    start, console, out = time.perf_counter(), console or Console(), out / source.name
    planned = plan(source)
    names = list(dict.fromkeys(task.name for task in planned))
    if unknown := [name for name in tasks or () if name not in names]:
        raise EvalError(f"{source.name}: no task {unknown[0]!r} for this data set; possible: {', '.join(names) or 'none'}")
    if not planned:
        raise EvalError(f"{source.name}: nothing to ask; samples need captions, labels, foils or objects. See `make check-data DATA=...`")
    chosen = [task for task in planned if tasks is None or task.name in tasks]
    fingerprints = {split: source.fingerprint(split) for split in dict.fromkeys([*source.evaluated, *(task.split for task in planned)])}
    everyone = variants(model, fresh, source, fingerprints, weights, batch_size)

    cells: list[Json] = []
    spent: list[Json] = []
    with Progress(console=console, transient=True) as progress:
        for task in chosen:
            for variant in everyone:
                label = f"{task.name} {task.part} {task.split}: {variant.name}".replace("  ", " ")
                bar = progress.add_task(label, total=len(task.samples))
                advance = partial(progress.advance, bar)
                asked = time.perf_counter()
                cells += cells_of(task, variant, source, out, fingerprints[task.split], batch_size, advance)
                spent.append({"task": title(task), "split": task.split, "variant": variant.name, "seconds": _since(asked)})
                progress.remove_task(bar)
            cells += chance_cells(task)

    settings = {title(task): task.settings() for task in planned}
    result: Json = {"schema": SCHEMA, **about}
    result |= {"dataset": source.name, "weights": weights, "limit": source.limit, "data_hashes": fingerprints}
    result |= {"prompts": {name: hashed(value) for name, value in settings.items()}, "cells": cells}
    if tasks is not None:
        result["cells"] = _kept_cells(out / "eval.json", result, chosen) + cells
    # Where a task gave no number, what it would have asked with (which judge, say) cannot set two runs apart.
    answered = {cell["task"] for cell in result["cells"] if cell["variant"] == "model" and cell["value"] is not None}
    result["prompts"] = {title(task): result["prompts"][title(task)] for task in planned if task.name in answered}
    result |= {"inference_flops_per_image": inference_flops(model, source), "hardware": hardware(model)}
    result |= {"seconds": _since(start), "seconds_of": [each for each in spent if each["seconds"]]}
    _write_json(out / "prompts.json", {name: settings[name] for name in result["prompts"]})
    if trained := everyone[0].subject:
        _write_json(out / "showcase.json", showcase(trained, planned, source))
    _write_json(out / "eval.json", result)
    drawn = {cell["records"] for cell in cells if cell["task"] == "drawing" and cell["variant"] == "model" and "records" in cell}
    if (name := f"drawing.{source.primary}.model.jsonl") in drawn:
        write_sheet(out / name)
    print_tables(console, result)
    return result


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


def hardware(model: Any) -> str:
    place = next((parameter.device for parameter in getattr(model, "parameters", lambda: iter(()))()), torch.device("cpu"))
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{platform.machine()} {place.type}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def _trained_on(spec: str) -> str:
    """The training set's own name; the last part of its path where it is no longer there."""
    try:
        return find(spec, "train").name
    except (DataError, FileNotFoundError):
        return Path(spec).name


def _device(name: str) -> str:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EvalError(f"--device {name}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    return name


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    tyro.cli(main)
