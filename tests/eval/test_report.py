"""Parts of the report, each on numbers whose right answer is known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import EvalError
from eval.report.answers import read_answers, totals_of
from eval.report.claims import read_claim, read_claims
from eval.report.columns import attribute_columns, overview_columns, task_columns, use_columns
from eval.report.figures import pareto_front, stage_starts, training_curves
from eval.report.hallucination import curve, rates
from eval.report.headline import headline
from eval.report.paired import differences, image_use
from eval.report.results import Key, Result, Run, read_jsonl, read_results, read_runs
from eval.report.rows import Row, to_rows
from eval.report.tables import Footnotes, TableMaker
from tests.eval.fake_runs import claim, write, write_lines

RIGHT = Key("vqa", "test", "accuracy")


def make_run(root: Path, name: str, cells: list[dict[str, Any]], seed: int = 0, cost: dict[str, Any] | None = None) -> Path:
    """A run folder whose records lie beside its cells: "lines" of a cell become its file of records."""
    run = root / f"{name}-tiny-s{seed}"
    folder = run / "eval" / "pets"
    folder.mkdir(parents=True)
    for number, cell in enumerate(cells):
        cell |= {"task": cell.get("task", "vqa"), "split": cell.get("split", "test"), "metric": cell.get("metric", "accuracy")}
        if "lines" in cell:
            cell["records"] = f"{number}.jsonl"
            write_lines(folder / cell["records"], cell.pop("lines"))
    about: dict[str, Any] = {"schema": 1, "model": name, "paradigm": "none", "preset": "tiny", "seed": seed, "dataset": "pets"}
    write(folder / "eval.json", about | {"trained_on": "pets", "data_hashes": {}, "prompts": {}, "cells": cells})
    write(run / "recipe.json", {"name": name, "seed": seed})
    if cost:
        write(run / "cost.json", cost)
    return run


def rows_of(root: Path) -> list[Row]:
    return to_rows(read_results(read_runs(root)))


def lines(answers: list[float], **fields: Any) -> list[dict[str, Any]]:
    return [{"key": str(i), "accuracy": answer} | fields for i, answer in enumerate(answers)]


def asked(own: list[float], **controls: list[float]) -> list[dict[str, Any]]:
    """The model's cell and those of controls, with their records."""
    variants = {"model": own} | {name.replace("_", " "): answers for name, answers in controls.items()}
    return [{"variant": name, "value": sum(answers) / len(answers), "lines": lines(answers)} for name, answers in variants.items()]


# ------------------------------------------------------------------------------------------------ what pictures are worth


def test_a_model_that_does_not_look_gains_nothing_from_its_pictures(tmp_path: Path) -> None:
    make_run(tmp_path, "blind", asked([1.0, 0.0] * 50, shuffled_images=[1.0, 0.0] * 50))
    value = image_use(rows_of(tmp_path)[0], RIGHT, "shuffled images")
    assert (value.value, value.low, value.high) == (0.0, 0.0, 0.0)


def test_one_that_looks_does_and_only_common_samples_count(tmp_path: Path) -> None:
    """Right on all of 100 samples; the control was asked about the first 50 and is right on every second."""
    make_run(tmp_path, "looks", asked([1.0] * 100, blank_images=[1.0, 0.0] * 25))
    value = image_use(rows_of(tmp_path)[0], RIGHT, "blank images")
    assert value.value == pytest.approx(0.5)
    assert value.n == 50
    assert value.low is not None
    assert value.high is not None
    assert 0.3 < value.low < 0.5 < value.high < 0.7
    assert "1 seed" in value.how


def test_over_seeds_the_interval_is_students(tmp_path: Path) -> None:
    for seed, share in enumerate((8, 9, 10)):
        make_run(tmp_path, "looks", asked([1.0] * share + [0.0] * (10 - share), blank_images=[0.0] * 10), seed)
    value = image_use(rows_of(tmp_path)[0], RIGHT, "blank images")
    assert value.value == pytest.approx(0.9)
    assert (value.low, value.high) == pytest.approx((0.9 - 0.24841, 0.9 + 0.24841), abs=1e-4)


def test_where_less_is_better_a_gain_is_still_positive(tmp_path: Path) -> None:
    cells = asked([0.0] * 10, blank_images=[1.0] * 10)
    for cell in cells:
        cell["better"] = "lower"
    make_run(tmp_path, "honest", cells)
    assert image_use(rows_of(tmp_path)[0], RIGHT, "blank images").value == pytest.approx(1.0)


def test_a_statistic_of_all_answers_has_no_interval(tmp_path: Path) -> None:
    cells = asked([1.0] * 10, blank_images=[0.0] * 10)
    for cell, whole in zip(cells, (1.5, 0.25), strict=True):
        cell |= {"value": whole, "field": "", "unit": "score"}
    make_run(tmp_path, "speaker", cells)
    value = image_use(rows_of(tmp_path)[0], RIGHT, "blank images")
    assert (value.value, value.low) == (1.25, None)


def test_what_a_model_cannot_do_it_cannot_do_blindly(tmp_path: Path) -> None:
    make_run(tmp_path, "mute", [{"value": None, "status": "n/a", "note": "needs answer"}])
    value = image_use(rows_of(tmp_path)[0], RIGHT, "blank images")
    assert (value.value, value.status, value.note) == (None, "n/a", "needs answer")


# -------------------------------------------------------------------------------------------------------------- records


def ratio(root: Path, name: str, hits: list[float], said: list[float]) -> None:
    records = [{"key": str(i), "accuracy": hit, "said": count} for i, (hit, count) in enumerate(zip(hits, said, strict=True))]
    make_run(root, name, [{"value": sum(hits) / sum(said), "weight": "said", "lines": records}])


def test_a_ratio_is_formed_again_from_its_weight(tmp_path: Path) -> None:
    """Precision 30 of 60 against 30 of 90: as means of the field both would be .3."""
    ratio(tmp_path, "a", [1.0] * 30 + [0.0] * 70, [1.0] * 60 + [0.0] * 40)
    ratio(tmp_path, "b", [1.0] * 30 + [0.0] * 70, [1.0] * 90 + [0.0] * 10)
    pair = differences(rows_of(tmp_path), [RIGHT])[RIGHT][0, 1]
    assert pair.value == pytest.approx(1 / 2 - 1 / 3)
    assert pair.proven


def test_a_statistic_of_all_answers_is_not_averaged(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path, name, [{"value": 1.0, "field": "", "lines": lines([1.0] * 10)}])
    assert differences(rows_of(tmp_path), [RIGHT]) == {}


def test_totals_are_grouped_by_sample(tmp_path: Path) -> None:
    make_run(tmp_path, "a", [{"value": 0.75, "lines": [*lines([1.0, 1.0]), *lines([0.0, 1.0]), {"header": "end"}]}])
    (result,) = read_results(read_runs(tmp_path))
    assert totals_of(result.cells[0]) == {"0": (1.0, 2.0), "1": (2.0, 2.0)}


def test_records_that_change_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_lines(path, lines([1.0]))
    assert read_answers(path).names == ["0"]
    write_lines(path, lines([1.0, 1.0]))
    assert read_answers(path).names == ["0", "1"]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n{"b": ')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}]


# ---------------------------------------------------------------------------------------------------------------- costs


def test_costs_include_what_a_run_builds_on(tmp_path: Path) -> None:
    tokenizer = {"run": "vq-tiny-s0", "samples_seen": 40, "train_seconds": 4, "train_flops": 1e9}
    nested = {"run": "lm-tiny-s0", "samples_seen": 5, "train_flops": 1e6, "prerequisites": {"image_tokenizer": tokenizer}}
    cost: dict[str, Any] = {"samples_seen": 100, "train_seconds": 10, "train_flops": 1e12, "peak_memory_mb": 7}
    cost["prerequisites"] = {"language_model": nested, "image_tokenizer": tokenizer}  # which is still paid for once
    make_run(tmp_path, "cm3leon", [{"value": 1.0}], cost=cost)
    (row,) = rows_of(tmp_path)
    assert row.cost("samples_seen") == 145
    assert row.cost("train_seconds") == 14
    assert row.cost("train_flops") == pytest.approx(1e12 + 1e9 + 1e6)
    assert row.cost("peak_memory_mb") == 7
    assert row.cost("trainable_parameters") is None


# -------------------------------------------------------------------------------------------------------------- columns


def test_few_columns_stand_for_many() -> None:
    metrics = {"zeroshot": ("colour", "shape", "size"), "retrieval": ("i2t R@1 (500)", "i2t R@5 (500)"), "probe": ("shape",)}
    metrics |= {"captioning": ("BLEU-4", "CIDEr-D", "object F1"), "anew": ("first", "second")}
    keys = [Key(task, split, metric) for task, names in metrics.items() for split in ("test", "style") for metric in names]
    assert [(key.task, key.split, key.metric) for key in headline(keys)] == [
        ("zeroshot", "test", "shape"),
        ("retrieval", "test", "i2t R@1 (500)"),
        ("captioning", "test", "CIDEr-D"),
        ("captioning", "test", "object F1"),
        ("anew", "test", "first"),
    ]


def test_an_attribute_is_named_by_what_is_said_of_it_alone(tmp_path: Path) -> None:
    names = ("colour", "colour+shape", "replace_attribute_colour", "swap_attribute_colour", "colour precision", "colourless")
    keys = [Key("foils", "test", name) for name in names] + [Key("zeroshot", "test", "shape"), Key("zeroshot", "style", "shape")]
    shown = [(column.group, column.label, column.key.metric) for column in attribute_columns(keys, [])]
    assert shown == [
        ("shape", "zeroshot", "shape"),
        ("colour", "foils", "colour"),
        ("colour", "foils replace", "replace_attribute_colour"),
        ("colour", "foils swap", "swap_attribute_colour"),
    ]


def test_tables_say_which_adapter_made_a_cell_and_show_the_second_one(tmp_path: Path) -> None:
    other = Key("foils", "test", "swap")
    cells = asked([1.0] * 4, blank_images=[0.0] * 4)
    cells += [{"task": "foils", "metric": "swap", "value": 0.5, "adapter": "matching head"}]
    cells += [{"task": "foils", "metric": "swap", "variant": "by embedding similarity", "value": 0.25, "adapter": "embedding similarity"}]
    cells[0]["adapter"] = "generated answer"
    make_run(tmp_path, "blip2", cells)
    make_run(tmp_path, "mute", [{"task": task, "value": None, "status": "n/a", "note": "needs words"} for task in ("vqa", "foils")])
    rows, keys = rows_of(tmp_path), [RIGHT, other]
    make = TableMaker(rows, {}, Footnotes())
    table = make("Overview", overview_columns(keys, rows), overview=True)
    assert table.remarks[0] == "Scored by: a = embedding similarity, b = generated answer, c = matching head."
    first = table.blocks[0]
    assert [(each.text, each.adapter) for each in first.line.entries[:2]] == [("1.000", "b"), (".500", "c")]
    assert [(line.detail, line.entries[1].text, line.entries[1].adapter) for line in first.others] == [
        ("by embedding similarity", ".250", "a")
    ]
    use = make("Image use", use_columns(keys, rows), controls=False)
    assert use.groups == [("vqa accuracy", [("\N{MINUS SIGN}\N{NO-BREAK SPACE}blank", use.groups[0][1][0][1])])]
    assert use.blocks[0].line.entries[0].text == "+1.000"
    detail = make("vqa", task_columns("vqa", keys, rows))
    assert [group for group, _ in detail.groups] == ["test", "image use · test"]
    assert detail.blocks[0].line.absent is None
    absent = detail.blocks[1].line.absent
    assert absent is not None
    assert (absent.text, absent.title) == ("n/a", "needs words")


# -------------------------------------------------------------------------------------------------------------- figures


def test_the_pareto_front_is_what_none_beats_for_less() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.8), (3.0, 0.9), (5.0, 0.9)]
    assert pareto_front(points) == [(1.0, 0.5), (3.0, 0.9)]
    assert pareto_front(points, lower=True) == [(1.0, 0.5), (2.0, 0.4)]
    assert pareto_front([]) == []


def test_stages_begin_where_their_name_changes() -> None:
    log = [{"samples": 1, "stage": "a"}, {"samples": 2, "stage": "a"}, {"samples": 3, "stage": "b"}]
    assert stage_starts(log) == [2]
    assert stage_starts([{"samples": 1}, {"samples": 2}]) == []


def polled(truth: list[int], margins: list[float | None], said: list[int | None]) -> list[dict[str, Any]]:
    return [{"truth": t, "margin": m, "said": s} for t, m, s in zip(truth, margins, said, strict=True)]


def test_the_roc_of_a_perfect_a_constant_and_a_silent_model() -> None:
    perfect = polled([1, 0, 1, 0], [2.0, -2.0, 1.0, -1.0], [1, 0, 1, 0])
    assert rates(perfect) == (0.0, 1.0)
    assert curve(perfect).tolist() == [[0, 0], [0, 0.5], [0, 1], [0.5, 1], [1, 1]]
    constant = polled([1, 0, 1, 0], [0.0] * 4, [1] * 4)
    assert rates(constant) == (1.0, 1.0)
    assert curve(constant).tolist() == [[0, 0], [1, 1]]  # ties turn together: the diagonal
    silent = polled([1, 0], [None, None], [None, None])
    assert rates(silent) == (0.0, 0.0)
    assert curve(silent).shape == (0, 2)
    assert rates(polled([1], [1.0], [1])) is None
    assert curve(polled([1], [1.0], [1])).shape == (0, 2)


def test_a_long_curve_keeps_its_ends() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 1000).tolist()
    points = curve(polled(truth, generator.normal(size=1000).tolist(), [0] * 1000))
    assert len(points) <= 120
    assert (points[0].tolist(), points[-1].tolist()) == ([0, 0], [1, 1])
    assert (np.diff(points, axis=0) >= 0).all()


# --------------------------------------------------------------------------------------------------------------- claims


def test_a_claim_is_told_with_its_numbers(tmp_path: Path) -> None:
    for page in ("zoo", "siglip", "clip"):
        (tmp_path / page).mkdir()
        write(tmp_path / page / "bias.json", claim(model=page))
    (tmp_path / "siglip/measured").mkdir()
    write(tmp_path / "siglip/measured/bias.low.s0.json", {"value": 1})
    found, faults = read_claims(tmp_path, ("clip", "siglip"))
    assert faults == []
    assert [each.page for each in found] == ["clip", "siglip", "zoo"]
    assert found[0].result == "retrieval i2t R@1: low .550; zero .400. low ahead of zero by +.150 (+.050 to +.250)"
    assert found[0].arms[1].differs == "bias: -10 | 0"
    assert "4 runs, 64.0" in found[0].cost
    assert read_claims(tmp_path / "nothing", ()) == ([], [])


@pytest.mark.parametrize("broken", ["{", json.dumps({"schema": 9}), json.dumps({"schema": 1, "model": "clip"})])
def test_a_broken_claim_is_named(broken: str, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    path = tmp_path / "clip/x.json"
    path.write_text(broken)
    with pytest.raises(EvalError, match=r"x\.json"):
        read_claim(path)


def test_results_and_runs_are_read_lazily(tmp_path: Path) -> None:
    run = make_run(tmp_path, "clip", [{"value": 1.0}])
    (run / "cost.json").write_text("{")
    (result,) = read_results([Run(run.name, run)])
    assert isinstance(result, Result)
    with pytest.raises(EvalError, match=r"cost\.json"):
        result.run.spent("samples_seen")


# ------------------------------------------------------------------------------------------------------------ curves


@pytest.mark.parametrize(("losses", "lowest"), [([0.16, 0.02], 0.0), ([0.16, -0.32], -2.0), ([0.16, 0.12, -0.64], -4.0)])
def test_curves_show_a_loss_below_zero(losses: list[float], lowest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = [{"step": i, "samples": 8 * i, "terms": {"pairs": loss}, "chance": {"pairs": 0.16}} for i, loss in enumerate(losses, start=1)]
    write_lines(tmp_path / "train.jsonl", log)
    monkeypatch.setattr("eval.report.figures.svg", lambda figure, _: figure.axes[0].get_ylim())
    below, above = training_curves([Run("run", tmp_path)], "", 24) or (None, None)  # type: ignore[misc]
    assert (below, above) == pytest.approx((1.1 * lowest, 1.25))
