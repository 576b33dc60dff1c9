"""Read the result files of finished evaluations, the input of the report.

A run folder contains `recipe.json`, `cost.json`, `train.jsonl` and, per data set it was evaluated on, `eval/<data set>/eval.json`
(one cell per number), `showcase.json` (a few images with the model's outputs) and per-sample records in `*.jsonl`. A model saved after
an earlier training stage has a run folder of its own in `stages/<stage>/`.
This module imports neither torch nor a model, so a report can be built on a machine without them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from eval import EvalError
from eval.base import schemas
from eval.report import words

CONTROL_ORDER = ("chance", "oracle", "untrained", "shuffled images", "blank images")  # other variants follow in order of occurrence


class Key(NamedTuple):
    """Identifies a measurement. Runs are compared only under the same key and on the same data."""

    task: str
    split: str
    metric: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of one run. Without a number `value` is None and `note` gives the reason; 0 never means "could not"."""

    key: Key
    variant: str = "model"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = "share"
    status: str = ""  # "", "n/a" (the paradigm cannot) or "not run"
    note: str = ""
    adapter: str = ""
    records: Path | None = None  # per-sample JSONL, for paired tests
    field: str = ""  # the numeric field of the records whose mean is the value; "" if the value is not a mean over records
    weight: str = ""  # for ratios: the field whose sum is the denominator, instead of the number of records
    better: str = "higher"  # or "lower", or "neither" (a yes-rate is not a merit)


@dataclass(frozen=True)
class Run:
    """One training run. Its files are read lazily, because most reports need only some of them."""

    name: str
    folder: Path

    @property
    def home(self) -> Path:
        """The folder of the whole training run, also for the model of one of its stages."""
        return self.folder.parent.parent if self.stage else self.folder

    @property
    def page(self) -> str:
        """The page of recipes/ that it was trained from; for older runs, the model's name."""
        return str(self.recipe.get("page") or self.recipe.get("name") or "")

    @property
    def stage(self) -> str:
        """The training stage after which the model was saved; "" for the finished model."""
        return str(self.recipe.get("stage") or "")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return read_json(self.folder / "recipe.json") if (self.folder / "recipe.json").exists() else {}

    @cached_property
    def cost(self) -> dict[str, Any]:
        return read_json(self.folder / "cost.json") if (self.folder / "cost.json").exists() else {}

    def spent(self, name: str) -> float | None:
        """A number of cost.json, summed over this run and its prerequisites; None if it was not recorded."""
        own = number(self.cost.get(name))
        return None if own is None else own + sum(number(each.get(name)) or 0.0 for each in _prerequisites(self.cost).values())

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The logged steps in order. A resumed run repeats some steps; the last record of each step counts."""
        lines = [line for line in read_jsonl(self.folder / "train.jsonl") if "event" not in line]
        steps = {line["step"]: line for line in lines if {"step", "samples"} <= line.keys()}
        return [steps[step] for step in sorted(steps)]

    @cached_property
    def validation(self) -> list[tuple[float, float]]:
        """(samples seen, total validation loss) for each validation during training."""
        lines = [line for line in read_jsonl(self.folder / "train.jsonl") if line.get("event") == "validate"]
        return [(line["samples"], line["loss"]) for line in lines if number(line.get("loss")) is not None and "samples" in line]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The evaluation of one run on one data set."""

    run: Run
    folder: Path
    page: str  # page of recipes/; names the row
    stage: str  # training stage after which the model was saved; "" for the finished model
    model: str
    paradigm: str
    preset: str
    seed: int
    dataset: str
    data: str | None  # path or URL of the data set at the time of the evaluation
    trained_on: str
    published: str  # the value of WEIGHTS= for published weights; "" for weights trained here
    notes: dict[str, str]  # task -> the model's explanation of its result
    data_hashes: dict[str, str | None]
    prompts: dict[str, str]
    cells: tuple[Cell, ...]
    inference_flops: float | None
    hardware: str
    by_key: dict[tuple[Key, str], Cell] = field(repr=False)

    @property
    def command(self) -> str:
        """What evaluates the run again."""
        which = {"WEIGHTS": self.published} if self.published else {"OUT": self.run.home}
        return words.make(f"eval-{self.page}", **which, TEST=self.data or f".data/{self.dataset}")

    @cached_property
    def showcase(self) -> dict[str, Any]:
        """{} where there is none, or one of another schema: the table is worth having without pictures."""
        path = self.folder / "showcase.json"
        found = read_json(path) if path.exists() else {}
        return found if found.get("schema") == schemas.SHOWCASE else {}


def read_runs(root: Path) -> list[Run]:
    """The runs under `root`, by name. A folder counts as a run when it holds a recipe, a model or an evaluation."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [each for path in folders for each in (path, *sorted(path.glob("stages/*")))]
    marks = ("recipe.json", "model.json", "eval")
    named = {path: "-".join(part for part in path.relative_to(root).parts if part != "stages") for path in found}
    return [Run(named[path], path) for path in found if any((path / mark).exists() for mark in marks)]


def read_results(runs: list[Run]) -> list[Result]:
    return [read_result(run, path.parent) for run in runs for path in sorted(run.folder.glob("eval/*/eval.json"))]


def read_result(run: Run, folder: Path) -> Result:
    return result_of(read_json(folder / "eval.json"), run, folder / "eval.json")


def result_of(raw: dict[str, Any], run: Run, path: Path) -> Result:
    """Parse the content of an `eval.json` at `path`; the records are in the same folder. Raises EvalError for invalid content or another
    schema version."""
    if raw.get("schema") != schemas.EVALUATION:
        again = f"Evaluate again: make eval-{_page_of(raw)}"
        raise EvalError(f"{path}: schema {raw.get('schema')!r}, expected {schemas.EVALUATION}. {again}")
    try:
        cells = tuple(read_cell(cell, path.parent) for cell in raw["cells"])
        return Result(
            run=run,
            folder=path.parent,
            page=str(raw.get("page") or raw["model"]),
            stage=str(raw.get("stage") or ""),
            model=str(raw["model"]),
            paradigm=str(raw["paradigm"]),
            preset=str(raw["preset"]),
            seed=int(raw["seed"]),
            dataset=str(raw["dataset"]),
            data=raw.get("data"),
            trained_on=str(raw["trained_on"]),
            published=str(raw.get("published") or ""),
            notes={str(task): str(note) for task, note in (raw.get("notes") or {}).items()},
            data_hashes=dict(raw["data_hashes"]),
            prompts=dict(raw.get("prompts") or {}),
            cells=cells,
            inference_flops=number(raw.get("inference_flops_per_image")),
            hardware=str(raw.get("hardware") or ""),
            by_key={(cell.key, cell.variant): cell for cell in cells},
        )
    except (KeyError, TypeError, ValueError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise EvalError(f"{path}: {what}. Evaluate again: make eval-{_page_of(raw)}") from error


def _page_of(raw: dict[str, Any]) -> str:
    return str(raw.get("page") or raw.get("model") or "<page>")


def read_cell(raw: dict[str, Any], folder: Path) -> Cell:
    value = number(raw.get("value"))
    status = str(raw.get("status") or "")
    note = str(raw.get("note") or "")
    if value is None and not status:
        status, note = "not run", note or "the result file gives no value and no reason"
    return Cell(
        key=Key(str(raw["task"]), str(raw["split"]), str(raw["metric"])),
        variant=str(raw.get("variant") or "model"),
        value=value,
        low=number(raw.get("low")),
        high=number(raw.get("high")),
        n=raw.get("n"),
        unit=str(raw.get("unit") or "share"),
        status=status,
        note=note,
        adapter=str(raw.get("adapter") or ""),
        records=folder / Path(raw["records"]).name
        if raw.get("records")
        else None,  # .name: records are in the folder of eval.json, nowhere else
        field=str(raw.get("field", raw["metric"])),
        weight=str(raw.get("weight") or ""),
        better=str(raw.get("better") or "higher"),
    )


def is_below(low: float | None, high: float | None, chance: float | None, better: str) -> bool:
    """Whether the whole interval is worse than chance."""
    if chance is None or low is None or high is None:
        return False
    return (better == "higher" and high < chance) or (better == "lower" and low > chance)


def refuse_unlike(results: list[Result]) -> None:
    """Raise EvalError if runs evaluated on the same data set used different data or different prompts."""
    complaints = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        same = [result for result in results if result.dataset == dataset]
        for what, kind in (("data hash of split", "data_hashes"), ("prompt hash of task", "prompts")):
            for name in dict.fromkeys(name for result in same for name in getattr(result, kind)):
                by_hash: dict[str, list[Result]] = {}
                for result in same:
                    if known := getattr(result, kind).get(name):  # a data set without an index has no hash to compare
                        by_hash.setdefault(known, []).append(result)
                if len(by_hash) > 1:
                    lines = [f"  {known[:12]}  {', '.join(result.run.name for result in group)}" for known, group in by_hash.items()]
                    again = dict.fromkeys(result.command for group in by_hash.values() for result in group)
                    complaints.append(
                        f"{dataset}: the {what} {name!r} differs between runs, so their results are not comparable:\n"
                        + "\n".join(lines)
                        + "\n  Evaluate the outdated ones again:\n    "
                        + "\n    ".join(again)
                    )
    if complaints:
        raise EvalError("\n".join(complaints))


def _prerequisites(cost: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Costs of all direct and indirect prerequisite runs, each run once: {run name: costs}."""
    found: dict[str, dict[str, Any]] = {}
    for role, each in (cost.get("prerequisites") or {}).items():
        found |= {str(each.get("run", role)): each} | _prerequisites(each)
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{path}: cannot be read as JSON ({error}). Delete it and run its train or eval command again.") from error
    if not isinstance(value, dict):
        raise EvalError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file. Lines that do not parse are skipped: the file of a run in progress can end in a partial line."""
    texts = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    texts = [text for text in texts if text.strip()]
    try:
        lines = json.loads(f"[{','.join(texts)}]")  # one call is faster than one per line
    except ValueError:
        lines = [_line(text) for text in texts]
    return [line for line in lines if isinstance(line, dict)]


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def number(value: Any) -> float | None:
    """A finite float, or None for None, NaN and infinities."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {value!r}")
    return float(value) if math.isfinite(value) else None
