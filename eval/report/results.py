"""Read the result files of finished evaluations, the input of the report.

A run folder contains `recipe.json`, `cost.json`, `train.jsonl` and, per data set it was evaluated on, `eval/<data set>/eval.json`
(one cell per number), `showcase.json` (a few images with the model's outputs) and per-sample records in `*.jsonl`. A model saved after
an earlier training stage has a run folder of its own in `stages/<stage>/`.
This module imports neither torch nor a model, so a report can be built on a machine without them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from data.files import FileError, parse_json, read_text
from eval import EvalError
from eval.base import schemas
from eval.base.provenance import weights_of
from eval.report import words
from eval.report.numbers import BETTER, UNITS, amount, finite, number, possible, refuse_unknown

AGAIN = "Delete it and run its train or eval command again"
DEEPEST = 50  # levels of an object in a file
PAID = ("samples_seen", "train_seconds", "train_flops")  # numbers of cost.json, for a run and its prerequisites
COSTS = (*PAID, "trainable_parameters", "total_parameters", "peak_memory_mb")
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
    """One training run. Its files are read lazily, because most reports need only some of them. Reading raises EvalError, except for the
    log, which the report does not require: `faults` then lists the error."""

    name: str
    folder: Path
    faults: list[str] = field(default_factory=list, init=False, compare=False)

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
        path = self.folder / "cost.json"
        return _checked_cost(read_json(path), path) if path.exists() else {}

    def spent(self, name: str) -> float | None:
        """A number of cost.json, summed over this run and its prerequisites; None if it was not recorded."""
        own = number(self.cost.get(name))
        return None if own is None else own + sum(number(each.get(name)) or 0.0 for each in _prerequisites(self.cost).values())

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The logged steps in order. A resumed run repeats some steps; the last record of each step counts."""
        steps = {line["step"]: line for line in self._lines if "event" not in line and _is_step(line)}
        return [steps[step] for step in sorted(steps)]

    @cached_property
    def validation(self) -> list[tuple[float, float]]:
        """(samples seen, total validation loss) for each validation during training."""
        found = [line for line in self._lines if line.get("event") == "validate"]
        return [(line["samples"], line["loss"]) for line in found if _is_number(line.get("samples")) and _is_number(line.get("loss"))]

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "train.jsonl"
        try:
            lines = read_jsonl(path)
        except EvalError as error:
            self.faults.append(str(error))
            return []
        if path.exists() and path.stat().st_size and not any("event" in line or _is_step(line) for line in lines):
            self.faults.append(f"{path}: no line of it describes a training step, so the report has no curves for this run. {AGAIN}.")
        return lines


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
    weights: str  # hash of those that were evaluated; "" where the file does not say
    unfinished: str  # how far the training was then; "" where it was over
    by_key: dict[tuple[Key, str], Cell] = field(repr=False)

    @property
    def command(self) -> str:
        """What evaluates the run again."""
        which = {"WEIGHTS": self.published} if self.published else {"OUT": self.run.home}
        return words.make(f"eval-{self.page}", **which, TEST=self.data or f".data/{self.dataset}")

    @cached_property
    def showcase(self) -> dict[str, Any]:
        """{} where there is none that can be read, or one of another schema: the table is worth having without pictures."""
        path = self.folder / "showcase.json"
        try:
            found = read_json(path) if path.exists() else {}
        except EvalError as error:
            self.run.faults.append(str(error))
            return {}
        return found if found.get("schema") == schemas.SHOWCASE else {}

    @cached_property
    def stale(self) -> str:
        """Why its numbers do not belong to the model now in the run folder; "" if they do or if this is unknown."""
        path = self.run.folder / "model.safetensors"
        if not self.weights:
            return ""
        if not path.exists():
            return "evaluated before the run was trained anew" if path.with_name("checkpoint.safetensors").exists() else ""
        try:
            return "" if weights_of(self.run.folder) == self.weights else "evaluated with other weights than the run has now"
        except OSError as error:
            return f"its weights cannot be read: {error.strerror}"


def read_runs(root: Path) -> list[Run]:
    """The runs under `root`, by name."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    except OSError as error:
        raise EvalError(f"{root} cannot be read: {error.strerror}") from error
    found = [each for path in folders for each in (path, *sorted(path.glob("stages/*")))]
    named = {path: words.plain("-".join(part for part in path.relative_to(root).parts if part != "stages")) for path in found}
    return [Run(named[path], path) for path in found if is_run(path)]


def is_run(folder: Path) -> bool:
    """Whether it holds a recipe, a model or an evaluation."""
    return any((folder / mark).exists() for mark in ("recipe.json", "model.json", "eval"))


def usable(runs: list[Run]) -> tuple[list[Run], list[Result], list[str]]:
    """Runs and results whose files are all valid, and a sentence about each of the others."""
    whole, results, faults = [], [], []
    for run in runs:
        try:
            assert isinstance(run.recipe, dict)
            assert isinstance(run.cost, dict)
        except EvalError as error:
            faults.append(str(error))
            continue
        whole.append(run)
        for path in sorted(run.folder.glob("eval/*/eval.json")):
            try:
                results.append(read_result(run, path.parent))
            except EvalError as error:
                faults.append(str(error))
    return whole, results, faults


def read_results(runs: list[Run]) -> list[Result]:
    return [read_result(run, path.parent) for run in runs for path in sorted(run.folder.glob("eval/*/eval.json"))]


def read_result(run: Run, folder: Path) -> Result:
    return result_of(read_json(folder / "eval.json"), run, folder / "eval.json")


def result_of(raw: dict[str, Any], run: Run, path: Path) -> Result:
    """Parse the content of an `eval.json` at `path`; the records are in the same folder. Cells with an impossible number lose it, which
    `run.faults` then says. Raises EvalError for other invalid content or another schema version."""
    if raw.get("schema") != schemas.EVALUATION:
        again = f"Evaluate again: make eval-{_page_of(raw)}"
        raise EvalError(f"{path}: schema {raw.get('schema')!r}, expected {schemas.EVALUATION}. {again}")
    faults: list[str] = []
    try:
        cells = tuple(read_cell(cell, path.parent, faults) for cell in raw["cells"])
        if faults:
            many = f"{len(faults)} of {len(cells)} cells are left out, such as " if len(faults) > 1 else "a cell is left out: "
            run.faults.append(f"{path}: {many}{faults[0]}. Evaluate again: make eval-{_page_of(raw)}")
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
            data=str(raw["data"]) if raw.get("data") else None,
            trained_on=str(raw["trained_on"]),
            published=str(raw.get("published") or ""),
            notes={str(task): str(note) for task, note in (raw.get("notes") or {}).items()},
            data_hashes=_hashes(raw["data_hashes"]),
            prompts={name: known for name, known in _hashes(raw.get("prompts") or {}).items() if known},
            cells=cells,
            inference_flops=amount(raw, "inference_flops_per_image"),
            hardware=str(raw.get("hardware") or ""),
            weights=str(raw.get("weights") or ""),
            unfinished=str(raw.get("unfinished") or ""),
            by_key={(cell.key, cell.variant): cell for cell in cells},
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise EvalError(f"{path}: {what}. Evaluate again: make eval-{_page_of(raw)}") from error


def _hashes(raw: Any) -> dict[str, str | None]:
    """Raises ValueError if it is not a hash; None if there is none."""
    if wrong := [known for known in raw.values() if not isinstance(known, str | None)]:
        raise ValueError(f"expected a hash, found {wrong[0]!r}")
    return dict(raw)


def _page_of(raw: dict[str, Any]) -> str:
    return str(raw.get("page") or raw.get("model") or "<page>")


def read_cell(raw: dict[str, Any], folder: Path, faults: list[str]) -> Cell:
    """A cell with an impossible number becomes one without a number; `faults` gets the reason."""
    key = Key(str(raw["task"]), str(raw["split"]), str(raw["metric"]))
    variant = str(raw.get("variant") or "model")
    unit, better = str(raw.get("unit") or "share"), str(raw.get("better") or "higher")
    status = str(raw.get("status") or "")
    note = str(raw.get("note") or "")
    numbers: dict[str, float | None] = dict.fromkeys(("value", "low", "high", "n"))
    try:
        refuse_unknown(unit=unit, better=better, status=status)
        numbers = possible({name: finite(raw, name) for name in numbers}, unit)
    except ValueError as error:
        faults.append(f"{' '.join(key)} ({variant}): {error}")
        unit, better = unit if unit in UNITS else UNITS[0], better if better in BETTER else BETTER[0]
        status, note = "not run", f"left out: {error}"
    if numbers["value"] is None and not status:
        status, note = "not run", note or "the result file gives no value and no reason"
    return Cell(
        key=key,
        variant=variant,
        value=numbers["value"],
        low=numbers["low"],
        high=numbers["high"],
        n=None if numbers["n"] is None else int(numbers["n"]),
        unit=unit,
        status=status,
        note=note,
        adapter=str(raw.get("adapter") or ""),
        records=folder / Path(raw["records"]).name
        if raw.get("records")
        else None,  # .name: records are in the folder of eval.json, nowhere else
        field=str(raw.get("field", raw["metric"])),
        weight=str(raw.get("weight") or ""),
        better=better,
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


def _checked_cost(cost: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        for name in COSTS:
            amount(cost, name)
        if not isinstance(hardware := cost.get("hardware"), str | None):
            raise ValueError(f"hardware: expected a text, found {hardware!r:.80}")
        for each in _prerequisites(cost).values():
            for name in PAID:
                amount(each, name)
    except (AttributeError, TypeError, ValueError) as error:
        raise EvalError(f"{path}: {error}. {AGAIN}.") from error
    return cost


def _is_step(line: dict[str, Any]) -> bool:
    """Whether a line of train.jsonl has the fields that the curves need, with valid values."""
    numbers = [line.get("step"), line.get("samples")]
    for name in ("terms", "chance"):
        if not isinstance(each := line.get(name, {}), dict):
            return False
        numbers += each.values()
    return all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object whose texts are safe to display. Raises EvalError for anything else."""
    try:
        value = parse_json(read_text(path, AGAIN), path, AGAIN)
        if not isinstance(value, dict):
            raise EvalError(f"{path}: expected a JSON object, found {type(value).__name__}. {AGAIN}.")
        return _shown(value, DEEPEST)
    except FileError as error:
        raise EvalError(f"{error}.") from error
    except RecursionError as error:
        raise EvalError(f"{path}: nested more than {DEEPEST} deep. {AGAIN}.") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file. Lines that do not parse are skipped: the file of a run in progress can end in a partial line.
    Raises EvalError if the file cannot be read."""
    try:
        texts = read_text(path, AGAIN, errors="replace").split("\n") if path.exists() else []
    except FileError as error:
        raise EvalError(f"{error}.") from error
    texts = [text for text in texts if text.strip()]
    try:
        lines = json.loads(f"[{','.join(texts)}]")  # one call is faster than one per line
    except (ValueError, RecursionError):
        lines = [_line(text) for text in texts]
    return [line for line in lines if isinstance(line, dict)]


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(value: Any, levels: int) -> Any:
    """The same with all texts, names included, as `words.plain` has them. Raises RecursionError below `levels`."""
    if not levels:
        raise RecursionError
    if isinstance(value, str):
        return words.plain(value)
    if isinstance(value, list):
        return [_shown(each, levels - 1) for each in value]
    if isinstance(value, dict):
        return {words.plain(name): _shown(each, levels - 1) for name, each in value.items()}
    return value
