"""Evaluate a trained model: `python -m eval.run .runs/clip-tiny-s0 [--data .data/scenes-tiny] [--tasks zeroshot,retrieval]`;
or published weights: `python -m eval.run open_clip:ViT-B-32/laion2b_s34b_b79k --data .data/scenes-tiny`.

Runs every task that the data and the model's capabilities allow, together with its controls, on the test split and on both
distribution shifts where the data set has them. Records stream to `RUN/eval/<data set>/<task>.<split>.<variant>.jsonl`. Once all tasks
are complete, `eval.json` (one cell per number), `prompts.json` and `showcase.json` are written next to them. An interrupted evaluation
resumes.

A model can declare that some tasks are evaluated after an earlier training stage (`Model.asked_after`). If the run folder has the model
of that stage in `RUN/stages/<stage>`, these tasks run on it, and their results go to `RUN/stages/<stage>/eval/`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import models
from data.fields import require
from data.files import FileError, locked, read_json, write_json
from data.shards import DataError, find
from eval import EvalError
from eval.base import schemas
from eval.base.capabilities import Draws, WeighsAnswers
from eval.base.console import plain_console
from eval.base.heartbeat import heartbeat
from eval.base.provenance import provenance, weights_of
from eval.base.task import FallsBelowChance, Shared, Task
from eval.harness.ask import Json, Variant, cells_of, chance_cells, control_cells, hashed, parts_of, title, variants
from eval.harness.controls import untrained
from eval.harness.outlook import Outlook, Unit, unit_of
from eval.harness.share import Board, helpers
from eval.harness.showcase import PICTURES, showcase
from eval.harness.source import Source, from_shards
from eval.judges.clipscore import PUBLISHED, clip_beside, named_clip
from eval.judges.vqascore import named_judge, seed_zero
from eval.report.sheet import write_sheet
from eval.report.show import WIDTH, print_screen, print_tables
from eval.tasks import headlines, plan
from models.shared.device import hardware, resolve_device

PRESETS = ("tiny", "small", "paper")
LATER = "The paper evaluates this task after stage {}; this model was trained further."


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
        run: run folder with model.json and model.safetensors, or published weights (open_clip:MODEL/TAG, hf:NAME).
        data: data set folder or shards. Default: the data set that the model was trained on.
        tasks: comma-separated names of the tasks to run, such as zeroshot,retrieval. Default: all.
        device: auto, cpu, cuda, cuda:1 or mps.
        limit: use at most this many samples per split, for a quick look.
        batch_size: number of images or texts encoded at once; affects results only by rounding errors.
        clip: model that computes CLIPScore, a run folder or open_clip:MODEL/TAG. Default: the finished CLIP run (seed 0) beside this one.
        judge: model that computes VQAScore, the run folder of a model that answers questions. Default: the evaluated model (its seed 0).
        all: print every number, one table per task and split, before the summary screen.
    """
    try:
        chosen = tuple(name.strip() for name in tasks.split(",")) if tasks is not None else None
        folder = stored(run) if run.startswith(PUBLISHED) else Path(run)
        options: Json = {"data": data, "device": device, "limit": limit, "batch_size": batch_size, "clip": clip, "judge": judge}
        evaluate_run(folder, tasks=chosen, everything=all, **options)
    except (EvalError, DataError, OSError, ValueError) as error:
        sys.exit(f"eval: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"eval: {str(error).splitlines()[0]} A smaller --batch-size needs less memory; finished records are kept")
    except KeyboardInterrupt:
        print(f"eval: {run}: interrupted; finished records are kept. Run the same command again to resume", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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
    """Evaluate the model in a run folder, print a summary screen (with `everything` also all tables), and return what `eval.json` holds.

    Tasks that belong to an earlier stage (`Model.asked_after`) run on the model of that stage in `folder/stages`. They run on the
    finished model only if `tasks` names them.
    """
    require(limit is None or limit >= 1, "--limit", limit, "1 or more samples of each split")
    require(batch_size >= 1, "--batch-size", batch_size, "1 or more")
    for name in tasks or ():
        require(name in headlines(), "--tasks", name, f"some of {', '.join(headlines())}, separated by commas")
    options: Json = {"data": data, "device": device, "batch_size": batch_size, "clip": clip, "judge": judge}
    options["opened"] = cache(partial(from_shards, limit=limit))  # its samples are read once for all stages
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
    opened: Callable[[str], Source],
    tasks: Sequence[str] | None,
    device: str,
    batch_size: int,
    clip: str | None,
    judge: str | None,
    everything: bool,
    elsewhere: dict[str, str],
    lenient: bool = False,
) -> Json:
    """Evaluate one saved model; `opened` finds data sets. `elsewhere` maps tasks that run on the model of an earlier stage to that stage.
    With `lenient`, tasks that the data do not support are skipped instead of raising an error."""
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).exists():
            raise EvalError(f"{folder / name} is missing: expected a finished run, such as `make train-clip` writes to .runs/")
    recipe = read_json(folder / "recipe.json") if (folder / "recipe.json").exists() else {}
    spec = data or str(recipe.get("data") or "")
    if not spec:
        raise EvalError(f"{folder}/recipe.json names no data set; name one with --data")
    with heartbeat(lambda: f"{folder.name}: loading the model and the data"):
        device = str(resolve_device(device))
        weights, state = weights_of(folder), (folder / "model.safetensors").stat()
        model: Any = models.load(folder, device).requires_grad_(False)  # the FLOP counter would look for gradients
        source = opened(spec)
        home = folder.parent.parent if recipe.get("stage") else folder  # the run folder, whose siblings are other runs
        fits: str | Path | None = clip or clip_beside(home)
        shows: str | Path | None = judge
        if not judge and isinstance(model, Draws) and isinstance(model, WeighsAnswers):
            shows = seed_zero(home)
        source.clip = named_clip(str(fits), device, batch_size) if fits else None
        source.judge = named_judge(str(shows), device, batch_size) if shows else None
        if lenient:
            allowed = {task.name for task in plan(source)}
            tasks = [name for name in tasks or () if name in allowed]
        fresh = untrained(folder, device)
        if (folder / "model.safetensors").stat().st_mtime_ns != state.st_mtime_ns:
            raise EvalError(f"{folder}/model.safetensors was replaced while it was read: a training has just ended. Evaluate again")
        return evaluate(
            model,
            fresh,
            source,
            folder / "eval",
            about=_about(folder, home, recipe, spec, model),
            weights=weights,
            tasks=tasks,
            batch_size=batch_size,
            everything=everything,
            elsewhere=elsewhere,
        )


def _about(folder: Path, home: Path, recipe: Json, spec: str, model: Any) -> Json:
    """The fields of eval.json that describe the run."""
    description = read_json(folder / "model.json")
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
        "unfinished": _unfinished(folder, recipe),
        "notes": notes | dict(getattr(model, "notes", {})),
    }


def _unfinished(folder: Path, recipe: Json) -> str:
    """How far its training is, such as "3,200 samples"; "" if it is finished."""
    if not recipe or recipe.get("stage") or recipe.get("published"):
        return ""
    cost = read_json(folder / "cost.json") if (folder / "cost.json").exists() else {}
    if cost.get("finished", not cost):  # no cost.json: a model that was saved by other means
        return ""
    seen = cost.get("samples_seen")
    return f"{seen:,} samples" if isinstance(seen, int) else "some of its samples"


def _asked_after(folder: Path) -> dict[str, tuple[str, ...]]:
    """Stage -> tasks evaluated after it, for the stages whose model is in the run folder."""
    kept = {path.parent.name for path in folder.glob("stages/*/model.safetensors")}
    if not kept or not (folder / "model.json").exists():
        return {}
    asked = models.described(folder)[0].asked_after
    return {stage: tuple(tasks) for stage, tasks in asked.items() if stage in kept}


def stored(spec: str, runs: Path = Path(".runs")) -> Path:
    """The run folder of published weights, named after `spec`. Downloads the weights if the folder does not exist."""
    folder = runs / re.sub(r"[^\w.]+", "-", spec)
    if not (folder / "recipe.json").exists():
        model: Any = models.load(spec)
        models.save(model, folder)
        name = read_json(folder / "model.json")["model"]
        write_json(folder / "cost.json", {"total_parameters": sum(parameter.numel() for parameter in model.parameters())})
        write_json(
            folder / "recipe.json", {"name": name, "preset": "published", "published": spec}
        )  # written last: marks the folder as complete
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
    """Evaluate `model` on `source`, with the untrained model `fresh` as a control, and write results to `out/<data set>/`.

    `weights` is a hash of the model: records made with other weights, data or prompts are not reused. `tasks=None` runs all tasks;
    with a selection, cells of other tasks are kept from an earlier evaluation of the same weights and data. `elsewhere` maps tasks to skip
    to the training stage whose model they run on. With `everything`, all tables are printed before the summary screen.
    One evaluation at a time writes there: another one waits for it, and then uses its records. Raises EvalError if there is nothing to
    evaluate, FileError if the folder cannot be written.
    """
    start, elsewhere, out = time.perf_counter(), elsewhere or {}, out / source.name
    console = console or plain_console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
    planned = plan(source)
    names = list(dict.fromkeys(task.name for task in planned))
    if Path(source.name).name != source.name:  # of a foreign index: it would be a folder elsewhere
        raise EvalError(f"data set {source.name!r}: expected a name without slashes in its index.json; `make check-data` writes it")
    if unknown := [name for name in tasks or () if name not in names]:
        raise EvalError(f"{source.name}: no task {unknown[0]!r} for this data set; available: {', '.join(names) or 'none'}")
    if not planned:
        raise EvalError(
            f"{source.name}: nothing to evaluate; samples need captions, labels, foils or objects. See `make check-data DATA=...`"
        )
    chosen = [task for task in planned if tasks is None or task.name in tasks]
    fingerprints = {split: source.fingerprint(split) for split in dict.fromkeys([*source.evaluated, *(task.split for task in planned)])}
    everyone = variants(model, fresh, source, fingerprints, weights, batch_size)

    with locked(out, f"{out} is being evaluated by another process: waiting for it"):
        cells = [cell for task in chosen if task.name in elsewhere for cell in _later(task, elsewhere[task.name], about)]
        chosen = [task for task in chosen if task.name not in elsewhere]
        parts = parts_of(chosen, everyone, source.primary)
        units = [unit for part in parts for unit in part]
        showing = everyone[0].subject
        board = Board([*(len(part) for part in parts), 1])  # the last part is the showcase
        labels = [*(unit_of(*unit, source.shifts) for unit in units), Unit("pictures for the report", ("showcase", False), PICTURES)]
        outlook = Outlook(about["run"], labels, plain_console(stderr=True, quiet=console.quiet), board)

        def cells_about(task: Task, variant: Variant, advance: Callable[[float], None], *, resample: bool) -> list[Json]:
            return cells_of(task, variant, source, out, fingerprints[task.split], batch_size, advance, resample=resample)

        def show() -> None:
            only = {task.name for task in chosen} if about.get("stage") else set(names) - set(elsewhere) if elsewhere else None
            if showing:
                write_json(out / "showcase.json", showcase(showing, planned, source, only))

        def answer(number: int, advance: Callable[[float], None]) -> None:
            start = time.perf_counter()
            if number < len(units):
                cells_about(*units[number], advance, resample=False)
            else:
                show()
            board.seconds[number] = time.perf_counter() - start

        with outlook.shown():
            for task in chosen:
                if isinstance(task, Shared) and showing and showing.able(task.needs):
                    task.begin()
            with helpers(board, answer, _device_of(model)):
                while (taken := board.take()) is not None:
                    for number in taken:
                        outlook.begin(number)
                        answer(number, outlook.advance)
                outlook.finish("the last answers")
            outlook.finish("numbers for the report")
            for task in chosen:
                for variant in everyone:  # from the records; what a helper could not answer is answered now
                    cells += cells_about(task, variant, outlook.advance, resample=True)
                if showing and showing.able(task.needs):
                    cells += chance_cells(task) + control_cells(task, source)
            if not board.seconds[-1]:  # a helper died
                show()

        of_title = {title(task): task for task in planned}
        settings = cache(lambda name: of_title[name].settings() if name in of_title else None)  # some read training images
        result: Json = {"schema": schemas.EVALUATION, **about}
        result["notes"] = {task.name: task.below_chance for task in planned if isinstance(task, FallsBelowChance)} | about.get("notes", {})
        result |= {"dataset": source.name, "weights": weights, "limit": source.limit, "data_hashes": fingerprints}
        result["asked"] = list(tasks or ())
        result["prompts"], result["cells"] = {}, cells
        if tasks is not None:
            result["cells"] = _kept_cells(out / "eval.json", result, chosen, settings) + cells
        # Runs are comparable even if they differ in the settings (such as the judge) of a task that gave no number.
        answered = {cell["task"] for cell in result["cells"] if cell["variant"] == "model" and cell["value"] is not None}
        result["prompts"] = {name: hashed(settings(name)) for name, task in of_title.items() if task.name in answered}
        result |= {"inference_flops_per_image": inference_flops(model, source), "hardware": hardware(_device_of(model)), **provenance()}
        spent = [
            {"task": title(task), "split": task.split, "variant": variant.name, "seconds": round(float(seconds), 1)}
            for (task, variant), seconds in zip(units, board.seconds, strict=False)
        ]
        result |= {"seconds": _since(start), "seconds_of": [each for each in spent if each["seconds"]]}
        write_json(out / "prompts.json", {name: settings(name) for name in result["prompts"]})
        write_json(out / "eval.json", result)
        drawn = {cell["records"] for cell in cells if cell["task"] == "drawing" and cell["variant"] == "model" and "records" in cell}
        if (name := f"drawing.{source.primary}.model.jsonl") in drawn:
            write_sheet(out / name)
    if everything:
        print_tables(console, result)
    print_screen(console, result, out.parent.parent)
    return result


def _later(task: Task, stage: str, about: Json) -> list[Json]:
    note = f"evaluated after stage {stage}, as in the paper: see the row {about.get('page', about['model'])} after {stage}"
    common = {"task": task.name, "split": task.split, "variant": "model", "value": None, "status": "not run", "note": note}
    return [common | {"metric": measure.name, "unit": measure.unit, "better": measure.better} for measure in task.measures]


def _kept_cells(path: Path, result: Json, chosen: Sequence[Task], settings: Callable[[str], Any]) -> list[Json]:
    if not path.exists():
        return []
    names = {task.name for task in chosen}
    try:
        old = read_json(path)
        if any(old.get(name) != result[name] for name in ("schema", "weights", "limit", "data_hashes")):
            return []
        if any(hashed(settings(name)) != value for name, value in old["prompts"].items()):
            return []
        return [cell for cell in old["cells"] if cell["task"] not in names]
    except (FileError, AttributeError, KeyError, TypeError) as error:  # it is written anew; the answers themselves are in the records
        print(f"{path}: the cells of other tasks are lost ({error}); evaluate them again", file=sys.stderr)
        return []


# ----------------------------------------------------------------------------------------------------- bookkeeping


def inference_flops(model: Any, source: Source) -> int | None:
    """Floating-point operations to encode one image (a multiply-add counts as two). For a model that only scores pairs, those to score
    the image with its caption; for a model that only generates, those to caption it."""
    sample = source.samples(source.primary)[0]
    with FlopCounterMode(display=False) as counter:
        if getattr(model, "encode_image", None):
            model.encode_image([sample.image])
        elif getattr(model, "score", None):
            model.score([sample.image], [sample.captions[0] if sample.captions else "a photo"])
        elif getattr(model, "caption", None):
            model.caption([sample.image])
    return counter.get_total_flops() or None


def _device_of(model: Any) -> torch.device:
    """The device of the model's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in getattr(model, "parameters", tuple)()), torch.device("cpu"))


def _trained_on(spec: str) -> str:
    """The name of the training set; the last part of its path if it no longer exists."""
    try:
        return find(spec, "train").name
    except (DataError, FileNotFoundError):
        return Path(spec).name


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    tyro.cli(main)
