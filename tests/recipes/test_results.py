"""Published results: collected from runs, rendered from the committed files alone, typed nowhere else."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eval import EvalError
from eval.report.headline import headline
from eval.report.words import MISSING
from eval.run import LATER
from eval.tasks import headlines
from eval.tasks.winoground import Winoground
from models import model_of
from recipes.tools.collect import collect, pretty
from recipes.tools.markdown import column_name
from recipes.tools.older import older_keys
from recipes.tools.results import (
    BEGIN,
    END,
    MARK,
    ROOT,
    SCHEMA,
    Published,
    readme_columns,
    readme_table,
    results_page,
    rough_section,
    write,
)
from recipes.train.pages import preset
from tests.eval.fake_runs import claim, write_run
from tests.eval.fake_runs import write as write_json

COMMIT = "0123456789" * 4


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What rendering reads and writes, and nothing else."""
    shutil.copytree(ROOT / "recipes" / "results", tmp_path / "recipes" / "results")
    for name in ("README.md", "recipes/RESULTS.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def uncollected(project: Path) -> Path:
    """The project before any run was collected."""
    shutil.rmtree(project / "recipes" / "results" / "runs", ignore_errors=True)
    return project


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of CLIP and one of CoCa, evaluated; the seeds' own zero-shot shapes are .6 and .7."""
    folder = tmp_path / "runs"
    for model, seed, paradigm, shape in (("clip", 0, "contrastive", 0.6), ("clip", 1, "contrastive", 0.7), ("coca", 0, "generative", 0.5)):
        run = write_run(folder, model, seed, samples=20)
        write_json(run / "model.json", {"model": model, "paradigm": paradigm})
        change(run / "recipe.json", preset="tiny")
        result = json.loads((run / "eval" / "scenes-tiny" / "eval.json").read_text())
        for each in result["cells"]:
            if (each["task"], each["metric"], each["split"], each["variant"]) == ("zeroshot", "shape", "test", "model"):
                each |= {"value": shape, "low": shape - 0.05, "high": shape + 0.05}
        write_json(run / "eval" / "scenes-tiny" / "eval.json", result)
    return folder


def change(path: Path, **fields: Any) -> None:
    write_json(path, json.loads(path.read_text()) | fields)


def both(project: Path) -> tuple[bytes, bytes]:
    return (project / "recipes" / "RESULTS.md").read_bytes(), (project / "README.md").read_bytes()


# ---------------------------------------------------------------------------------------------- what is committed


def test_the_committed_pages_are_what_the_command_writes(project: Path) -> None:
    write(project)
    assert both(project) == both(ROOT), "run `make results` and commit what it writes"


def test_without_its_digits_the_page_comes_back_to_the_byte(project: Path) -> None:
    page = project / "recipes" / "RESULTS.md"
    bare = re.sub(r"\d", "", page.read_text())
    assert bare != page.read_text()
    page.write_text(bare)
    readme = project / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + re.sub(r"\d", "", rest.split(END)[0]) + END + rest.split(END)[1])
    write(project)
    assert both(project) == both(ROOT)


def test_the_contents_are_the_sections_that_are_there(project: Path) -> None:
    def contents() -> list[str]:
        write(project)
        page = (project / "recipes" / "RESULTS.md").read_text()
        linked = re.findall(r"\[([^]]+)\]\(#[\w-]+\)", page.split("\n## ")[0])
        assert linked == re.findall(r"^## (.+)$", page, re.MULTILINE)
        return linked

    assert "Fault injection" in contents()
    (project / "recipes" / "results" / "stress.json").unlink()
    assert "Fault injection" not in contents()


def test_every_older_claim_is_still_declared() -> None:
    """Or running it again would not replace the row."""
    rows = [row for about in json.loads((ROOT / "recipes/results/earlier.json").read_text())["claims"] for row in about["rows"]]
    assert rows
    for row in rows:
        names = [claim.name for claim in importlib.import_module(f"recipes.{row['page']}").CLAIMS]
        assert row["claim"] in names, f"earlier.json: recipes/{row['page']}.py declares no claim {row['claim']!r}, only {names}"


def test_every_older_row_can_be_replaced() -> None:
    """By a run of a page that exists, in columns that a collected run has, too."""
    block = json.loads((ROOT / "recipes/results/earlier.json").read_text())["models"]
    for row in block["rows"]:
        assert model_of(preset(row["page"], block["preset"]).model).paradigm == row["paradigm"]
    columns = older_keys(block["rows"])
    common = [key for key in columns if all("/".join(key) in row["values"] for row in block["rows"])]
    assert headline(common) == common
    assert {key.task for key in columns} <= headlines().keys()
    assert {name for each in block["controls"] for name in each["values"]} <= {"/".join(key) for key in columns}
    wanted = {column_name(key) for key in readme_columns(columns)}
    assert len(wanted) >= 8
    assert wanted <= set(cells((ROOT / "README.md").read_text(), "*oracle*"))


def test_reasons_of_older_rows_are_what_the_code_says() -> None:
    """Their evaluations did not record them yet."""
    block = json.loads((ROOT / "recipes/results/earlier.json").read_text())["models"]
    assert block["notes"] == {"winoground": Winoground.below_chance}
    for row in block["rows"]:
        model = model_of(preset(row["page"], block["preset"]).model)
        later = {task: LATER.format(stage) for stage, tasks in model.asked_after.items() for task in tasks}
        assert row.get("notes", {}) == {**later, **model.notes}, row["page"]


def test_what_is_below_chance_says_why(uncollected: Path, runs: Path) -> None:
    path = runs / "clip-tiny-s0" / "eval" / "scenes-tiny" / "eval.json"
    result = json.loads(path.read_text())
    for each in result["cells"]:
        if (each["task"], each["metric"], each["split"], each["variant"]) == ("zeroshot", "shape", "test", "model"):
            each |= {"value": 0.05, "low": 0.04, "high": 0.06}
    write_json(path, result | {"notes": {"zeroshot": "It says the opposite."}})
    results = uncollected / "recipes" / "results"
    collect(runs, results, ["clip-tiny-s0"], COMMIT)
    page = results_page(Published(results))
    assert f".050 (.040{MISSING}.060)↓" == cells(page, "clip")["zeroshot: shape"]
    said = f"- ↓ below chance: clip, zeroshot shape: .050 (.040{MISSING}.060), chance "
    assert [line for line in page.splitlines() if line.startswith(said) and line.endswith("It says the opposite.")]
    readme = readme_table(Published(results))
    assert cells(readme, "clip")["zeroshot: shape"] == ".050↓"
    assert cells(readme, f"frozen {MARK}")["winoground: group, pairs"] == ".010↓"
    assert ": for [these reasons](recipes/RESULTS.md#models)." in readme
    older = [line for line in page.splitlines() if line.startswith("- ↓ below chance: frozen, binding")]
    assert len(older) == 1
    assert "often writes neither" in older[0]


def test_no_other_file_types_a_result() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    outside = re.sub(f"{BEGIN}.*?{END}", "", (ROOT / "README.md").read_text(), flags=re.S)
    prose = {"README.md": outside}
    prose |= {
        name: (ROOT / name).read_text() for name in tracked if name.endswith(".md") and name not in ("README.md", "recipes/RESULTS.md")
    }
    prose |= {name: docstring(ROOT / name) for name in tracked if re.fullmatch(r"recipes/\w+\.py", name)}
    assert any(name.startswith("models/") for name in prose)
    assert "recipes/clip.py" in prose
    for name, text in prose.items():
        assert not typed(text), f"{name} types {typed(text)}: only `make results` publishes results"


def typed(text: str) -> list[str]:
    """A share with three decimals is a result, unless it is Adam's beta. So are a duration and a paragraph headed as measured."""
    return re.findall(r"(?<![\w.])0?\.\d{3}\b|\b\d+(?:\.\d+)? ?(?:min|minutes|h|hours)\b|\bMeasured\b", re.sub(r"betas( \.\d+)+", "", text))


def docstring(path: Path) -> str:
    return importlib.import_module(f"recipes.{path.stem}").__doc__ or "" if path.stem != "__init__" else ""


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("R@1 .847 of 500", True),
        ("0.847", True),
        ("**Measured**", True),
        ("betas .9 .999", False),
        ("in 55 minutes", True),
        ("takes 1.2 h", True),
        ("--minutes 12", False),
    ],
)
def test_what_counts_as_a_result(text: str, wrong: bool) -> None:
    assert bool(typed(text)) is wrong


# ------------------------------------------------------------------------------------------------------ rendering


def test_seeds_become_their_mean_and_its_interval(project: Path, runs: Path) -> None:
    shutil.rmtree(project / "recipes" / "results")
    collect(runs, project / "recipes" / "results", commit=COMMIT)
    write(project)
    page, readme = (text.decode() for text in both(project))
    shape = cells(page, "clip")["zeroshot: shape"]
    assert shape == f".650 (.015{MISSING}1.000)"  # Student t: .65 +- 12.706 x .0707 / sqrt 2, cut off at 1
    assert cells(page, "coca")["zeroshot: shape"] == f".500 (.450{MISSING}.550)"  # one seed keeps its bootstrap
    assert cells(page, "clip")["seeds"] == "2"
    assert cells(page, "*oracle*")["zeroshot: shape"] == "1.000"
    assert cells(page, "*chance*")["zeroshot: shape"] == ".125"
    assert cells(page, "clip")["captioning: CIDEr-D"] == "n/a"
    assert cells(readme, "clip")["zeroshot: shape"] == ".650"
    assert f"commit {COMMIT[:7]}" in page
    first = both(project)
    write(project)
    assert both(project) == first


def cells(page: str, label: str, mark: str = "") -> dict[str, str]:
    """Of the first table with such a row, `mark` behind its label or not: its cells by column."""
    lines = page.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith((f"| {label} |", f"| {label}{mark} |")))
    head = next(lines[number - 1] for number in range(place, 0, -1) if lines[number].startswith("|---"))
    return dict(zip(*([each.strip() for each in line.strip("|").split("|")] for line in (head, lines[place])), strict=True))


def test_a_row_has_the_name_of_its_page(uncollected: Path, runs: Path) -> None:
    for seed in (0, 1):
        change(runs / f"clip-tiny-s{seed}" / "recipe.json", page="lit")
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    write(uncollected)
    assert cells((uncollected / "README.md").read_text(), "lit")["seeds"] == "2"


def test_the_model_of_an_earlier_stage_has_a_row_of_its_own(uncollected: Path, runs: Path) -> None:
    run = runs / "coca-tiny-s0"
    shutil.copytree(run, kept := run / "stages" / "contrast")
    change(kept / "recipe.json", stage="contrast")
    change(kept / "cost.json", finished=False, samples_seen=1000)
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    write(uncollected)
    page = (uncollected / "recipes" / "RESULTS.md").read_text()
    assert cells(page, "coca after contrast")["zeroshot: shape"] == cells(page, "coca")["zeroshot: shape"]
    costs = page[page.index("Costs, prerequisites included") :]
    assert [cells(costs, row)["samples"] for row in ("coca after contrast", "coca")] == ["1.00 k", "640 k"]


def older_pages(project: Path) -> list[str]:
    return [row["page"] for row in Published(project / "recipes" / "results").older]


def test_a_collected_run_replaces_its_older_row_alone(uncollected: Path, runs: Path) -> None:
    before = older_pages(uncollected)
    assert {"clip", "coca", "siglip"} <= set(before)
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    assert older_pages(uncollected) == [page for page in before if page not in ("clip", "coca")]
    write(uncollected)
    page, readme = (text.decode() for text in both(uncollected))
    assert cells(readme, "clip")["zeroshot: shape"] == ".650"
    older = page[page.index("### Models, older code") :].split("\n## ")[0]
    published = cells(older, "siglip")["zeroshot: shape"]
    assert published.startswith(cells(readme, f"siglip {MARK}")["zeroshot: shape"] + " (")
    for label in ("clip", "coca"):
        assert f"| {label} |" not in older
        assert f"| {label} {MARK} |" not in readme
    assert readme.index("| clip |") < readme.index(f"| siglip {MARK} |") < readme.index("| coca |")  # a paradigm stays together
    oracle = cells(readme, "*oracle*")
    assert oracle["zeroshot: shape"] == "1.000"
    assert oracle["captioning: CIDEr-D"].endswith(MARK)  # the collected runs have none


def test_the_data_set_with_the_most_rows_leads_those_of_older_code_included(uncollected: Path, runs: Path) -> None:
    for run in runs.iterdir():
        change(run / "eval" / "scenes-tiny" / "eval.json", dataset="a-smaller-set")
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    assert list(Published(uncollected / "recipes" / "results").results) == ["a-smaller-set"]
    write(uncollected)
    assert "`a-smaller-set`" in both(uncollected)[1].decode()  # the only one with collected runs
    one = runs / "clip-tiny-s0"
    change(one / "eval" / "scenes-tiny" / "eval.json", dataset="scenes-tiny")
    collect(runs, uncollected / "recipes" / "results", ["clip-tiny-s0"], commit=COMMIT)
    assert list(Published(uncollected / "recipes" / "results").results) == ["scenes-tiny", "a-smaller-set"]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("recipe.json", {"page": "lit"}),
        ("recipe.json", {"preset": "small"}),
        ("eval/scenes-tiny/eval.json", {"trained_on": "photos"}),
        ("recipe.json", {"stage": "contrast"}),
    ],
)
def test_another_experiment_replaces_no_older_row(uncollected: Path, runs: Path, file: str, fields: dict[str, Any]) -> None:
    before = older_pages(uncollected)
    change(runs / "coca-tiny-s0" / file, **fields)
    collect(runs, uncollected / "recipes" / "results", ["coca-tiny-s0"], commit=COMMIT)
    assert older_pages(uncollected) == before


def test_with_the_last_older_row_everything_marked_leaves(uncollected: Path, runs: Path) -> None:
    earlier = uncollected / "recipes" / "results" / "earlier.json"
    block = json.loads(earlier.read_text())["models"]
    rows = [row for row in block["rows"] if row["page"] in ("clip", "coca")]
    change(earlier, models=block | {"rows": rows})
    for path in runs.glob("*/eval/*/eval.json"):  # a control that only the older rows have
        change(path, cells=[each for each in json.loads(path.read_text())["cells"] if each["variant"] != "oracle"])
    write(uncollected)
    assert MARK in readme_table(Published(uncollected / "recipes" / "results"))
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    published = Published(uncollected / "recipes" / "results")
    assert MARK not in readme_table(published)
    assert "### Models, older code" not in results_page(published)


def test_a_tested_claim_replaces_its_older_row(uncollected: Path, runs: Path) -> None:
    folder = runs / "claims" / "siglip"
    folder.mkdir(parents=True)
    name = "bias-starts-at-minus-ten"
    write_json(folder / f"{name}.json", claim(claim=name, sentence="Tested again."))
    (older,) = (row for row in Published(uncollected / "recipes/results").claims if row["claim"] == name)
    assert older["mark"] == "older code"
    collect(runs, uncollected / "recipes" / "results", commit=COMMIT)
    published = Published(uncollected / "recipes/results")
    (again,) = (row for row in published.claims if row["claim"] == name)
    assert again["sentence"] == "Tested again."
    assert "mark" not in again
    assert again["seeds"] == 2
    page = results_page(published)
    assert older["sentence"] not in page
    assert f"| {COMMIT[:7]} |" in page


def test_like_for_like_leads_the_speeds() -> None:
    page = results_page(Published(ROOT / "recipes" / "results"))
    assert page.index("Like for like, fp32") < page.index("Like for like, bf16") < page.index("Default settings of both libraries")


def test_a_benchmark_run_again_replaces_its_rows_alone(project: Path, runs: Path) -> None:
    row = {
        "what": "loader",
        "ours": "a",
        "theirs": "b",
        "alike": "",
        "shapes": "",
        "ratios": [1.0, 3.0, 2.0],
        "our_rates": [],
        "their_rates": [],
    }
    write_json(runs / "bench.json", {"hardware": "an abacus", "date": "2030-01-01", "commit": COMMIT, "versions": {}, "rows": [row]})
    before = Published(project / "recipes/results").speed
    collect(runs, project / "recipes" / "results", commit=COMMIT)
    after = Published(project / "recipes/results").speed
    (new,) = (each for each in after if each["what"] == "loader")
    assert (new["times_faster"], new["low"], new["high"], new["hardware"]) == (2.0, 1.0, 3.0, "an abacus")
    others = [each for each in before if each["what"] != "loader"]
    assert others
    assert [each for each in after if each["what"] != "loader"] == others


def test_a_readme_without_its_markers_is_refused(project: Path) -> None:
    (project / "README.md").write_text("no place for a table")
    page = (project / "recipes" / "RESULTS.md").read_bytes()
    with pytest.raises(EvalError, match="results: begin"):
        write(project)
    assert (project / "recipes" / "RESULTS.md").read_bytes() == page


# ----------------------------------------------------------------------------------------------------- collecting


def test_what_is_collected_of_a_run(tmp_path: Path, runs: Path) -> None:
    run = runs / "clip-tiny-s0"
    origin = {"commit": COMMIT + "-dirty", "date": "2030-01-01", "versions": {"torch": "9"}}
    change(run / "cost.json", **origin, prerequisites={"eyes": {"run": "vq-tiny-s0", "samples_seen": 5, "train_flops": 1.0, "threads": 1}})
    write_json(run / "masked.json", {"data": "d", "pictures": 3, "measures": {"words found": 0.123456789}})
    collect(runs, tmp_path / "out", ["clip-tiny-s0"])
    assert [path.name for path in (tmp_path / "out").rglob("*.json")] == ["clip-tiny-s0.json"]
    found = json.loads((tmp_path / "out/runs/clip-tiny-s0.json").read_text())
    assert {name: found[name] for name in origin} == origin
    assert "seed" not in found["recipe"]
    assert found["recipe"]["optim"] == {"lr": 0.001}
    assert found["cost"]["prerequisites"]["eyes"]["samples_seen"] == 5
    assert "threads" not in found["cost"]["prerequisites"]["eyes"]
    assert found["measures"] == {"masked": {"words found": 0.123457}}
    (evaluated,) = found["evaluations"]
    measured = {(each["task"], each["metric"], each["split"]) for each in evaluated["cells"]}
    assert ("zeroshot", "shape", "test") in measured
    assert ("foils", "swap_attribute", "test") in measured
    assert not [each for each in measured if each[1] == "colour" or each[2] != "test"]  # no headline
    assert {"model", "chance", "untrained", "oracle", "shuffled images", "blank images"} <= {each["variant"] for each in evaluated["cells"]}


def test_an_older_run_has_to_be_told_its_commit(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(EvalError, match="collect --commit"):
        collect(runs, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "fields", "why"),
    [
        ("cost.json", {"finished": False}, "not finished"),
        ("recipe.json", {"published": "open_clip:ViT"}, "published weights"),
        ("eval/scenes-tiny/eval.json", {"limit": 50}, "whole splits"),
    ],
)
def test_what_is_no_result_is_left_out(tmp_path: Path, runs: Path, file: str, fields: dict[str, Any], why: str) -> None:
    change(runs / "coca-tiny-s0" / file, **fields)
    said = collect(runs, tmp_path / "out", commit=COMMIT)
    assert [line for line in said if "coca" in line and why in line]
    assert not (tmp_path / "out/runs/coca-tiny-s0.json").exists()
    assert (tmp_path / "out/runs/clip-tiny-s0.json").exists()


def test_json_with_lines_of_their_own_for_what_fits() -> None:
    value = {"a": 1, "cells": [{"task": "x" * 100, "n": 1}, {"task": "y" * 200}], "empty": {}, "text": "é"}
    assert json.loads(pretty(value)) == value
    assert '\n  {"task": "' + "x" * 100 + '", "n": 1},\n' in pretty(value)


def test_rough_handling_says_what_was_not_tried(tmp_path: Path) -> None:
    about = {"seed": 0, "seconds": 540, "hardware": "CPU", "date": "2026-01-01", "commit": COMMIT, "versions": {"torch": "2"}}
    rows = [{"attack": "kills", "tried": 3, "faults": ["clip: gone"], "note": "in 3 of 9 stages"}]
    rows += [{"attack": "full disks", "tried": 0, "faults": [], "note": "not tried: no root"}]
    (tmp_path / "stress.json").write_text(json.dumps({"schema": SCHEMA, **about, "rows": rows}))
    lines = rough_section(Published(tmp_path))
    assert "| kills | 3 | 1 | in 3 of 9 stages |" in lines
    assert "| full disks | 0 | 0 | not tried: no root |" in lines
    assert "- clip: gone" in lines
