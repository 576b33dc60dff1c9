"""One broken run never ends the report on the others: its file is named in a sentence, and nothing of it is shown or obeyed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import EvalError
from eval.base.provenance import weights_of
from eval.compare import compare
from eval.report import words
from eval.report.page import html
from eval.report.plain import markdown, status, table_csv
from eval.report.report import Report, build
from eval.report.results import read_results, read_runs
from tests.eval.fake_runs import claim, write, write_run

EVALUATION = "eval/scenes-tiny/eval.json"
SHOWCASE = "eval/scenes-tiny/showcase.json"
RECORDS = "eval/scenes-tiny/zeroshot.test.model.jsonl"
TORN = ["", "{", "[]", "null", '"text"', "[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, "\x00" * 64, "\xff\xfe"]
ODD = [None, "text", -1, 1e308, float("nan"), [], {}, [[1]], {"a": {"b": 1}}, True, 10**400]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A whole run, clip, beside the one that tests break, coca."""
    for model in ("clip", "coca"):
        write_run(tmp_path / "runs", model, samples=6)
    return tmp_path / "runs"


def report_on(runs: Path) -> Report:
    return build(read_runs(runs), (), None, runs / "claims")


def pages(report: Report) -> list[str]:
    return [row.page for dataset in report.datasets for row in dataset.rows]


@pytest.mark.parametrize("content", [*TORN, '{"schema": 7}', '{"schema": 1, "model": "clip"}'])
@pytest.mark.parametrize("name", [EVALUATION, "recipe.json", "cost.json"])
def test_a_run_with_a_broken_file_is_left_out_and_named(name: str, content: str, two: Path) -> None:
    path = two / "coca-tiny-s0" / name
    path.write_bytes(content.encode("latin-1"))
    report = report_on(two)
    if path.suffix == ".json" and name != EVALUATION and content.startswith('{"schema'):  # a whole file that says little
        return
    assert pages(report) == ["clip"]
    assert [str(path) in fault for fault in report.faults] == [True]
    assert all("\n" not in fault for fault in report.faults)
    assert any(str(path) in sentence for sentence in status(report))


@pytest.mark.parametrize("content", TORN)
def test_a_part_that_is_broken_costs_the_run_that_part_alone(content: str, two: Path) -> None:
    for name in (SHOWCASE, "train.jsonl"):
        (two / "coca-tiny-s0" / name).write_bytes(content.encode("latin-1"))
    report = report_on(two)
    assert pages(report) == ["clip", "coca"]
    said = " ".join(report.faults)
    assert "showcase.json" in said
    assert "train.jsonl" in said or not content


def test_what_is_no_file_is_named_and_not_waited_for(two: Path) -> None:
    for name, make in (("train.jsonl", os.mkfifo), (SHOWCASE, os.mkdir), (RECORDS, os.mkfifo)):
        path = two / "coca-tiny-s0" / name
        path.unlink()
        make(path)
    report = report_on(two)
    assert pages(report) == ["clip", "coca"]
    assert [Path(fault.split()[0].rstrip(":")).name for fault in report.faults] == ["train.jsonl", "showcase.json"]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in paths_in(each, (*path, key)))]


@pytest.mark.parametrize(
    "name", [EVALUATION, "recipe.json", "cost.json", pytest.param(SHOWCASE, marks=pytest.mark.slow), "train.jsonl", "claims"]
)
def test_any_value_of_any_field_leaves_the_other_run_its_row(name: str, two: Path) -> None:
    """Every field of every file in turn, by every odd value."""
    path = two / "coca-tiny-s0" / name
    if name == "claims":
        path = two / "claims/siglip/bias.json"
        path.parent.mkdir(parents=True)
        write(path, claim())
    text = path.read_text()
    whole = [json.loads(line) for line in text.splitlines()[:3]] if path.suffix == ".jsonl" else json.loads(text)
    for run in two.glob("*-s0"):  # few cells: a report of them takes no time
        few = json.loads((run / EVALUATION).read_text())
        write(run / EVALUATION, few | {"cells": few["cells"][:2]})
        whole = whole | {"cells": few["cells"][:2]} if name == EVALUATION else whole
    for number, place in enumerate(paths_in(whole)[1:]):
        changed = json.loads(json.dumps(whole))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = ODD[number % len(ODD)]
        path.write_text("\n".join(map(json.dumps, changed)) if path.suffix == ".jsonl" else json.dumps(changed))
        if len(place) > 1 and place[0] in ("data_hashes", "prompts") and inner[place[-1]] == "text":
            with pytest.raises(EvalError, match="differs between runs"):
                report_on(two)
            continue
        report = report_on(two)
        assert "clip" in pages(report), (place, inner[place[-1]])
        if number % 29 == 0:
            assert markdown(report)
            assert table_csv(report)
            assert html(report)


@pytest.mark.parametrize("name", ["samples_seen", "train_flops", "hardware"])
def test_a_cost_beyond_any_float_costs_its_run_alone(name: str, two: Path) -> None:
    path = two / "coca-tiny-s0" / "cost.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 10**400}))
    report = report_on(two)
    assert pages(report) == ["clip"]
    assert str(path) in report.faults[0]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("n", "-3", "n is -3, expected a whole number from 0 up"),
        ("n", "2.5", "n is 2.5, expected a whole number from 0 up"),
        ("n", "0", "expected none where n is 0"),
        ("n", "true", "n: expected a number, found True"),
        ("value", "NaN", "value: expected a finite number, found nan"),
        ("value", "-Infinity", "value: expected a finite number, found -inf"),
        ("value", "1e400", "value: expected a finite number, found inf"),
        ("value", "1" + "0" * 400, "value: expected a number below 1.8e+308, found a whole number with more digits"),
        ("value", "7", "value is 7, expected a share, from 0 to 1"),
        ("value", "-0.2", "value is -0.2, expected a share, from 0 to 1"),
        ("value", '"0.5"', "value: expected a number, found '0.5'"),
        ("value", "[0.5]", "value: expected a number, found [0.5]"),
        ("high", "0.000001", "expected at most high, 1e-06"),
        ("high", "1.5", "high is 1.5, expected a share, from 0 to 1"),
        ("unit", '"furlong"', "unit is 'furlong', expected share or score"),
        ("better", '"faster"', "better is 'faster', expected higher or lower or neither"),
        ("status", '"done"', "status is 'done', expected n/a or not run"),
    ],
)
def test_a_cell_that_cannot_be_is_left_out_alone_and_named(name: str, value: str, why: str, two: Path) -> None:
    path = two / "coca-tiny-s0" / EVALUATION
    whole = json.loads(path.read_text())
    row = pages(report_on(two))
    place = next(i for i, cell in enumerate(whole["cells"]) if cell.get("unit", "share") == "share" and (cell.get("low") or 0) > 0.1)
    whole["cells"][place][name] = "HERE"
    path.write_text(json.dumps(whole).replace('"HERE"', value))
    (run,) = (run for run in read_runs(two) if run.name == "coca-tiny-s0")
    (result,) = read_results([run])
    assert [(cell.value, cell.status) for cell in result.cells if cell.note.startswith("left out")] == [(None, "not run")]
    assert result.cells[place].note.endswith(why)
    (fault,) = run.faults
    assert fault.startswith(f"{path}: a cell is left out: ")
    assert f"{why}. Evaluate again: make eval-coca" in fault
    report = report_on(two)
    assert pages(report) == row == ["clip", "coca"]
    assert any(fault in sentence for sentence in status(report))
    assert "left out" in markdown(report)


def test_cells_that_cannot_be_are_counted(two: Path) -> None:
    path = two / "coca-tiny-s0" / EVALUATION
    whole = json.loads(path.read_text())
    write(path, whole | {"cells": [cell | {"n": -1} for cell in whole["cells"]]})
    (fault,) = report_on(two).faults
    assert f"{path}: {len(whole['cells'])} of {len(whole['cells'])} cells are left out, such as " in fault


@pytest.mark.parametrize(("name", "value"), [("samples_seen", -5), ("train_seconds", float("nan")), ("peak_memory_mb", float("inf"))])
def test_a_cost_that_cannot_be_costs_its_run_alone(name: str, value: float, two: Path) -> None:
    path = two / "coca-tiny-s0" / "cost.json"
    write(path, json.loads(path.read_text()) | {name: value})
    report = report_on(two)
    assert pages(report) == ["clip"]
    assert f"{path}: {name}: expected a " in report.faults[0]


def test_all_runs_broken_is_a_failure_that_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "runs", "clip", samples=4) / EVALUATION
    path.write_text("{")
    assert compare(runs=tmp_path / "runs", out=tmp_path / "out") == 1
    assert str(path) in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_said(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two.parent / "file").write_text("")
    assert compare(runs=two, out=two.parent / "file" / "out") == 1
    assert "report.md cannot be written: Not a directory" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- old numbers


def evaluated(run: Path, weights: bytes) -> None:
    """A run folder whose model has these weights, evaluated."""
    (run / "model.safetensors").write_bytes(weights)
    (run / "model.json").write_text("{}")
    write(run / EVALUATION, json.loads((run / EVALUATION).read_text()) | {"weights": weights_of(run)})


def test_scores_of_other_weights_than_the_runs_are_marked_everywhere(two: Path) -> None:
    for model in ("clip", "coca"):
        evaluated(two / f"{model}-tiny-s0", model.encode())
    assert not report_on(two).stale
    (two / "coca-tiny-s0" / "model.safetensors").write_bytes(b"trained anew")
    report = report_on(two)
    (said,) = report.stale
    assert said.startswith("coca-tiny-s0 on scenes-tiny: evaluated with other weights than the run has now (make eval-coca OUT=")
    assert "evaluated with other weights" in markdown(report)
    assert "evaluated with other weights" in html(report)
    assert ["other weights" in row.detail for row in report.datasets[0].rows] == [False, True]


def test_a_run_that_is_being_trained_anew_is_marked(two: Path) -> None:
    run = two / "coca-tiny-s0"
    evaluated(run, b"old")
    (run / "model.safetensors").unlink()
    assert not report_on(two).stale  # somebody sent the results without the weights
    (run / "checkpoint.safetensors").write_bytes(b"")
    assert len(report_on(two).stale) == 1


# ------------------------------------------------------------------------------------------------- texts that do harm

HARMFUL = "<img src=x onerror=alert(1)> \x1b[31mred \u202etxt.exe \u2066a\u200b |b `c` [d](http://e) :bomb: [bold]f"


def everywhere(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: each if key in ("schema", "image", "drawing", "records") else everywhere(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [everywhere(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def test_no_report_carries_html_escapes_or_turned_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs", "coca", samples=4)
    for name in (EVALUATION, SHOWCASE, "recipe.json", "cost.json"):
        write(run / name, everywhere(json.loads((run / name).read_text()), lambda text: text + HARMFUL))
    run.rename(run.with_name(f"coca{HARMFUL.replace('/', '')}"))
    path = tmp_path / "runs/claims/siglip/bias.json"
    path.parent.mkdir(parents=True)
    write(path, everywhere(claim(), lambda text: text + HARMFUL))
    assert compare(runs=tmp_path / "runs", out=tmp_path / "out") == 0
    shown = [(tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "csv", "html")] + [capsys.readouterr().out]
    for text in shown:
        assert not words.INVISIBLE.search(text)
    assert ":bomb: [bold]f" in " ".join(shown[0].split()).replace("\\", "")
    outside = shown[0].split("```")[0]  # the commands are in a block of code, and quoted for the shell
    for text in (outside, shown[1]):
        assert "<img" not in text
        assert "&lt;img" in text
    assert "](http" not in outside.replace("\\[d](http", "")
    assert "<img src=x" not in shown[2]


def test_no_cell_of_the_csv_is_a_formula(two: Path) -> None:
    path = two / "coca-tiny-s0" / EVALUATION
    write(path, everywhere(json.loads(path.read_text()), lambda text: f"=HYPERLINK({text})"))
    for row in csv.DictReader(table_csv(report_on(two)).splitlines()):
        assert not any(value.startswith(("=", "+", "@")) for value in row.values())
