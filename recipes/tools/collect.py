"""Collect results from runs into small files to commit: `python -m recipes.tools.results collect [RUN ...] [--runs .runs] [--commit HASH]`.

    recipes/results/runs/<run>.json              a finished run: provenance, recipe and costs; the headline cells and controls for each
                                                 data set it was evaluated on; model-specific measures
    recipes/results/published/<run>.json         published weights: their authors' scores beside ours
    recipes/results/claims/<page>.<claim>.json   a finished claim
    recipes/results/frontier/<page>.json         a page at several budgets; their figure is frontier.svg
    recipes/results/worlds/<page>.<data>.json    a page's recipe on the embedded and on another data set
    recipes/results/race/<page>.json             when a page reached three marks
    recipes/results/bench.json timing.json calibrate.json

A file contains only what is needed for the published numbers. Earlier results are kept until they are measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from eval import EvalError
from eval.base.provenance import provenance
from eval.report.authors import comparisons
from eval.report.claims import read_claim
from eval.report.headline import headline
from eval.report.results import Key, Run, read_json, read_result, read_runs
from eval.report.rows import CIRCUMSTANCES, keys

Json = dict[str, Any]
SCHEMA = 1
WIDTH = 140  # of the written files
MEASURES = {"masked.json": "measures", "form.json": "shares", "kept.json": "shares"}  # a measure's file in a run folder -> its numbers
PAID = ("samples_seen", "train_seconds", "train_flops")
COSTS = ("trainable_parameters", "total_parameters", "peak_memory_mb", "finished")
CELL = ("task", "split", "metric", "variant", "value", "low", "high", "n", "unit", "status", "note", "adapter", "better")


def collect(runs: Path, results: Path, names: Sequence[str] = (), commit: str = "") -> list[str]:
    """Write result files for everything under `runs`, or only for the named runs. `commit` is assumed for older runs that do not record
    theirs, together with the library versions that are installed now.

    Returns one line per written file and skipped run. Raises EvalError if a file cannot be read or no commit is known.
    """
    found = {run.name: run for run in read_runs(runs)}
    if unknown := [name for name in names if name not in found]:
        raise EvalError(f"{runs}: no run {unknown[0]!r}; available: {', '.join(found) or 'none'}")
    said = []
    for run in found.values():
        if run.name not in (names or found):
            continue
        if run.recipe.get("published") and (record := published_file(run)):
            said.append(_write(results / "published" / f"{run.name}.json", record))
        elif why := _unfit(run):
            said.append(f"skipped: {run.name}, {why}")
        else:
            said.append(_write(results / "runs" / f"{run.name}.json", run_file(run, commit)))
    if names:
        return said
    for path in sorted((runs / "claims").glob("*/*.json")):
        claim = claim_file(path, commit)
        said.append(_write(results / "claims" / f"{claim['model']}.{claim['claim']}.json", claim))
    for kind in ("frontier", "worlds", "race"):
        for path in sorted((runs / kind).glob("*.json")):
            said.append(_write(results / kind / path.name, _originated(read_json(path), path, commit)))
    for name, merged in (("bench.json", benched), ("timing.json", timed), ("calibrate.json", calibrated)):
        if (runs / name).exists():
            before = read_json(results / name) if (results / name).exists() else {}
            said.append(_write(results / name, merged(before, _originated(read_json(runs / name), runs / name, commit))))
    return said


def _unfit(run: Run) -> str:
    """The reason not to publish a run, or "" if there is none."""
    if run.recipe.get("published"):
        return "published weights of which no score of their authors is known, or which were not evaluated on its data"
    if not run.cost.get("finished") and not run.stage:
        return "training is not finished"
    if not _evaluations(run) and not any((run.folder / name).exists() for name in MEASURES):
        return f"not evaluated on whole splits yet; make eval-{run.recipe.get('page', run.recipe.get('name', '<page>'))}"
    if stale := next((found for path in _evaluations(run) if (found := read_result(run, path.parent).stale)), ""):
        return f"{stale}; make eval-{run.recipe.get('page', run.recipe.get('name', '<page>'))}"
    return ""


def published_file(run: Run) -> Json:
    """The authors' scores of published weights and ours; {} if none of them was measured on whole splits."""
    raws = [read_json(path) for path in _evaluations(run)]
    found = [(raw, [each.row() for each in comparisons(raw) if each.ours is not None]) for raw in raws]
    about = [
        {name: raw[name] for name in ("dataset", "date", "commit", "versions", "hardware")} | {"rows": rows} for raw, rows in found if rows
    ]
    return {"schema": SCHEMA, "weights": run.recipe["published"], "evaluations": about} if about else {}


def run_file(run: Run, commit: str = "") -> Json:
    cost, recipe = run.cost, run.recipe
    described = read_json(run.folder / "model.json")
    origin = _origin(cost, run.folder / "cost.json", commit)
    about: Json = {"schema": SCHEMA, "run": run.name, "page": recipe.get("page", recipe["name"]), "model": described["model"]}
    about |= {"paradigm": described["paradigm"], "preset": recipe["preset"], "seed": recipe["seed"]}
    about |= origin | {"hardware": cost["hardware"], "threads": cost["threads"]}
    about["recipe"] = {name: value for name, value in recipe.items() if name not in CIRCUMSTANCES | {"page"}}
    about["cost"] = {name: cost.get(name) for name in COSTS} | _paid(cost)
    about["evaluations"] = [evaluation(run, path, origin) for path in _evaluations(run)]
    about["measures"] = {
        name.removesuffix(".json"): read_json(run.folder / name)[field] for name, field in MEASURES.items() if (run.folder / name).exists()
    }
    return about


def evaluation(run: Run, path: Path, origin: Json) -> Json:
    """The headline cells of an eval.json with their controls, and the hashes that decide whether two evaluations are comparable."""
    raw, result = read_json(path), read_result(run, path.parent)
    shown = headline(keys([result]))
    order = {key: place for place, key in enumerate(shown)}
    cells = [cell for cell in raw["cells"] if _key(cell) in order]
    cells.sort(key=lambda cell: order[_key(cell)])
    tasks = {key.task for key in shown}
    return {
        "dataset": result.dataset,
        "trained_on": result.trained_on,
        **{name: raw.get(name) or origin[name] for name in ("date", "commit", "versions")},
        "hardware": result.hardware,
        "seconds": raw["seconds"],
        "inference_flops_per_image": raw["inference_flops_per_image"],
        "notes": {task: note for task, note in result.notes.items() if task in tasks},
        "data_hashes": {split: result.data_hashes.get(split) for split in sorted({key.split for key in shown})},
        "prompts": {name: value[:12] for name, value in result.prompts.items() if name.split("-")[0] in tasks},
        "cells": [{name: cell[name] for name in CELL if cell.get(name) not in (None, "")} for cell in cells],
    }


def _key(cell: Json) -> Key:
    return Key(cell["task"], cell["split"], cell["metric"])


def _evaluations(run: Run) -> list[Path]:
    """The run's evaluations on whole splits; those with `--limit` are not published."""
    return [path for path in sorted(run.folder.glob("eval/*/eval.json")) if read_json(path).get("limit") is None]


def _paid(cost: Json) -> Json:
    """The costs of a training run and of its prerequisites."""
    own = {name: cost.get(name) for name in PAID}
    return own | {"prerequisites": {role: {"run": each["run"]} | _paid(each) for role, each in (cost.get("prerequisites") or {}).items()}}


def claim_file(path: Path, commit: str = "") -> Json:
    read_claim(path)  # raises an EvalError that names what is invalid
    raw = _originated(read_json(path), path, commit)
    kept = ("name", "values", "mean", "low", "high", "differs")
    return raw | {"arms": [{name: arm[name] for name in kept} for arm in raw["arms"]]}


def benched(before: Json, new: Json) -> Json:
    """Put new benchmark rows before the older blocks; a benchmark that was run again is removed from its older block."""
    rows = [
        {name: row[name] for name in ("what", "ours", "theirs", "alike", "shapes", "bound") if name in row}
        | {"times_faster": median(row["ratios"]), "low": min(row["ratios"]), "high": max(row["ratios"]), "repetitions": len(row["ratios"])}
        for row in new["rows"]
    ]
    again = {row["what"] for row in rows}
    blocks = [block | {"rows": [row for row in block["rows"] if row["what"] not in again]} for block in before.get("blocks", ())]
    about = {name: new[name] for name in ("date", "commit", "hardware", "versions")}
    return {"schema": SCHEMA, "blocks": [about | {"rows": rows}, *(block for block in blocks if block["rows"])]}


def timed(before: Json, new: Json) -> Json:
    """Merge new timings: run -> minutes and provenance."""
    return {"schema": SCHEMA, "runs": before.get("runs", {}) | new}


def calibrated(before: Json, new: Json) -> Json:
    return {"schema": SCHEMA} | new


# ------------------------------------------------------------------------------------------------------ provenance


def _originated(raw: Json, path: Path, commit: str) -> Json:
    """Add date, commit and library versions; timings record them for each run."""
    if path.name == "timing.json":
        return {name: each | _origin(each, path, commit) for name, each in raw.items()}
    return raw | _origin(raw, path, commit)


def _origin(raw: Json, path: Path, commit: str) -> Json:
    if raw.get("commit"):
        return {name: raw[name] for name in ("date", "commit", "versions")}
    if not commit:
        raise EvalError(f"{path}: no commit is recorded. If you know it: python -m recipes.tools.results collect --commit HASH")
    day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    return {"date": day, "commit": commit, "versions": provenance()["versions"]}


def _write(path: Path, value: Json) -> str:
    text = pretty(_rounded(value)) + "\n"
    same = path.exists() and path.read_text(encoding="utf-8") == text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"{'unchanged' if same else 'written'}: {path}"


def _rounded(value: Any) -> Any:
    """Round to six significant digits, twice as many as are shown."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def pretty(value: Any, depth: int = 0) -> str:
    """JSON with one line per table cell, and per object or list that fits on a line."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list):
        return flat
    inside = value.values() if isinstance(value, dict) else value
    innermost = not any(isinstance(each, dict | list) for each in inside)
    if depth and (innermost or depth + len(flat) <= WIDTH):
        return flat
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {pretty(each, depth + 1)}" for name, each in value.items()]
    else:
        parts = [pretty(each, depth + 1) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    space = "\n" + " " * depth
    return opening + ",".join(f"{space} {each}" for each in parts) + space + closing
