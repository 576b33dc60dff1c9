"""Write a trained model in the form of another library: `python -m recipes.tools.export .runs/clip-small-s0 --format transformers`.

The folder is loaded back with that library and compared with the model right there. A model card (README.md) tells what it was trained
on, what that cost and what it reached.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors import SafetensorError

import models
from data.files import FileError, new_folder, read_json, write_text
from eval import EvalError
from eval.report.results import Cell, Result, Run, read_result
from models.shared.export import EVERY, Check, Format, Unsupported
from models.shared.lora import merge
from recipes.train.pages import names

FORMATS = ("transformers", "open_clip", "timm", "onnx")


def main(run: Annotated[Path, tyro.conf.Positional], format: str = "transformers", out: Path | None = None) -> None:
    """Write a trained model for another library.

    Args:
        run: run folder.
        format: transformers, open_clip, timm (the image tower) or onnx (both encoders of a contrastive model).
        out: folder to write. Default: RUN/export/FORMAT.
    """
    try:
        export(run, format, out or run / "export" / format)
    except (OSError, ValueError) as error:
        sys.exit(f"export: {error}")


def export(run: Path, format: str, out: Path) -> list[Check]:
    """Write `out`, whole or not at all. Raises ValueError for a format that does not hold the model, and if the written model differs."""
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}: expected {', '.join(FORMATS)}")
    if out.exists():
        raise ValueError(f"{out} is already there: remove it, or name another folder with --out")
    model = _trained(run)
    if hasattr(model, "adapted"):
        merge(model)  # no library knows our updates
    try:
        _refuse(model, format)
        with new_folder(out) as partial:
            found = formats(model)[format].write(model, partial)
            for check in found:
                print(f"{check.what}: the largest difference from ours is {check.largest:.1e} (at most {check.limit:g})")
            if wrong := [check for check in found if not check.largest <= check.limit]:
                raise ValueError(f"{wrong[0].what} differ by {wrong[0].largest:.1e} when {format} has loaded them: nothing was written")
            write_text(partial / "README.md", card(run, model, format))
    except Unsupported as error:
        others = " or ".join(f"FORMAT={name}" for name in able(model) if name != format) or "No other format"
        raise ValueError(f"{run} cannot be written for {format}: {error}. {others} can hold it") from error
    except SafetensorError as error:  # as of a full disk
        raise FileError(f"{out} cannot be written: {error}. Make room, or name another folder with --out") from error
    print(f"{out}: written for {format}")
    return found


def _trained(run: Path) -> Any:
    """Raises FileNotFoundError, with the command that trains it."""
    if (run / "model.safetensors").exists():
        return models.load(run)
    page = max((name for name in names() if run.name.startswith(f"{name}-")), key=len, default="<page>")
    begun = "its training was interrupted" if (run / "checkpoint.safetensors").exists() else "it is not trained"
    raise FileNotFoundError(f"{run} holds no model, {begun}: `make train-{page}` trains it, with the same PRESET=, DATA=, SEED= and OUT=")


def formats(model: Any) -> dict[str, Format]:
    """The formats of the model's package, and those of every model."""
    package = type(model).__module__.rpartition(".")[0]
    own = importlib.import_module(f"{package}.export") if importlib.util.find_spec(f"{package}.export") else None
    found = [name for name in ("transformers", "open_clip") if own and callable(getattr(own, name, None))]
    return {name: Format(getattr(own, name), getattr(own, f"refuse_{name}")) for name in found} | EVERY


def able(model: Any) -> list[str]:
    """The formats that hold the model."""
    found = []
    for name in FORMATS:
        with suppress(Unsupported):
            _refuse(model, name)
            found.append(name)
    return found


def _refuse(model: Any, format: str) -> None:
    if format not in formats(model):
        raise Unsupported(f"{format} has no {type(model).__name__}")
    formats(model)[format].refuse(model)


def card(run: Path, model: Any, format: str) -> str:
    """The model card: data, cost and results, from the files of the run folder."""
    recipe, cost = (read_json(run / name) if (run / name).exists() else {} for name in ("recipe.json", "cost.json"))
    parameters, data = sum(p.numel() for p in model.parameters()), Path(str(recipe.get("data", "unknown"))).name
    lines = [
        "---",
        f"library_name: {format}",
        "tags: [paragone, vision-language]",
        "---",
        f"# {recipe.get('page', model.name)}, {recipe.get('preset', 'custom')}, seed {recipe.get('seed', 0)}",
        "",
        f"{type(model).__name__} with {parameters:,} parameters (paradigm: {model.paradigm}), trained by Paragone on `{data}`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {cost[name]:,.0f} |" for what, name in COSTS.items() if isinstance(cost.get(name), int | float)),
        *(f"| {name} | {cost[name]} |" for name in ("hardware", "commit", "date") if isinstance(cost.get(name), str)),
    ]
    for result in _results(run):
        lines += ["", f"## On {result.dataset}", "", "| task | split | measure | value | 95 % |", "|---|---|---|---:|---:|"]
        lines += [
            f"| {cell.key.task} | {cell.key.split} | {cell.key.metric} | {cell.value:.3f} | {_interval(cell)} |"
            for cell in result.cells
            if cell.variant == "model" and cell.value is not None and cell.key.split in ("test", "val", "pairs")
        ]
    return "\n".join(lines) + "\n"


COSTS = {"samples seen": "samples_seen", "training, s": "train_seconds", "training FLOPs": "train_flops"}


def _results(run: Path) -> Iterator[Result]:
    """The evaluations of the model as it is, on whole splits. The others are named."""
    for path in sorted((run / "eval").glob("*/eval.json")):
        try:
            result = read_result(Run(run.name, run), path.parent)
            limited = "made with --limit" if read_json(path).get("limit") is not None else ""
            unfinished = f"made after {result.unfinished}" if result.unfinished else ""
            why = result.stale or unfinished or limited
        except EvalError as error:
            why = str(error)
        if why:
            print(f"{path}: not in the model card: {why}", file=sys.stderr)
        else:
            yield result


def _interval(cell: Cell) -> str:
    return "" if cell.low is None or cell.high is None else f"{cell.low:.3f} to {cell.high:.3f}"


if __name__ == "__main__":
    tyro.cli(main)
