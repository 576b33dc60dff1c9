"""The side-by-side report, on made-up run folders whose right answer is known by hand."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from eval import EvalError
from eval.base.console import plain_console
from eval.base.metrics import t_interval
from eval.compare import compare
from eval.report import graph, plain, plots, words
from eval.report import picture as screenshot
from eval.report.columns import COSTS
from eval.report.headline import headline
from eval.report.paired import differences
from eval.report.report import Report, build
from eval.report.results import Key, read_runs
from eval.report.rows import combine, keys
from tests.eval.fake_runs import PARADIGMS, claim, write, write_lines, write_run

COLOUR = Key("zeroshot", "test", "colour")


def report_on(root: Path, dataset: str | None = None) -> Report:
    return build(read_runs(root), tuple(PARADIGMS), dataset)


def edit(path: Path, **fields: Any) -> None:
    write(path, json.loads(path.read_text()) | fields)


def edit_cells(run: Path, key: Key, **fields: Any) -> None:
    path = run / "eval/scenes-tiny/eval.json"
    raw = json.loads(path.read_text())
    for cell in raw["cells"]:
        if (cell["task"], cell["split"], cell["metric"], cell["variant"]) == (*key, "model"):
            cell |= fields
    write(path, raw)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a report's time goes into its plots."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write("<svg></svg>"))


def test_two_models_give_all_four_outputs_which_are_a_function_of_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("clip", "coca"):
        write_run(tmp_path / "runs", model)
    for out in ("one", "two"):
        assert compare(runs=tmp_path / "runs", out=tmp_path / out, pages="clip siglip lit") == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"report.html", "report.md", "report.csv"}
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    printed = capsys.readouterr().out
    assert "zeroshot" in printed
    assert "Not trained yet: siglip, lit (make" in printed


@pytest.mark.parametrize("width", [60, 80, 100, 160, 200])
def test_tables_fit_the_terminal_with_whole_columns(width: int, tmp_path: Path) -> None:
    for model in ("clip", "coca"):
        write_run(tmp_path, model)
    report, out = report_on(tmp_path), io.StringIO()
    plain.terminal(report, plain_console(width=width, file=out))
    tables = out.getvalue().partition("2 models")[0]
    assert max(map(len, tables.splitlines())) <= width
    assert not re.search(r"…|\.\.\.", tables)
    heads = [label for _, columns in report.datasets[0].overview.groups for label, _ in columns]
    for head in (*heads[: -len(COSTS)], "samples", "FLOP"):
        assert all(word in tables for word in head.replace("_", " ").split()), head


def test_nothing_trained_yet_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert compare(runs=tmp_path / "none", out=tmp_path / "out", pages="clip siglip") == 0
    printed = capsys.readouterr().out
    assert "Not trained yet: clip, siglip" in printed
    assert "make train-clip eval-clip" in printed
    assert not (tmp_path / "out").exists()


def test_the_default_folder_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare(pages="clip") == 0
    assert "make train-clip eval-clip" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["typo", "a file"])
def test_a_folder_of_runs_that_is_none_is_refused_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a file").write_text("")
    assert compare(runs=tmp_path / name, out=tmp_path / "out") == 1
    assert f"{tmp_path / name}: no such folder; expected the folder that contains the run folders" in capsys.readouterr().err


def test_a_run_in_place_of_the_folder_of_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "clip")
    assert compare(runs=run, out=tmp_path / "out") == 1
    assert f"{run} is a run itself; expected the folder that contains it: --runs {tmp_path}" in capsys.readouterr().err


def test_a_run_without_evaluation_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "clip")
    write_run(tmp_path, "siglip")
    (tmp_path / "siglip-tiny-s0/eval/scenes-tiny/eval.json").unlink()
    report = report_on(tmp_path)
    assert report.unevaluated == ["siglip"]
    assert "siglip" not in report.untrained
    assert "clip" not in report.untrained


def test_an_unknown_data_set_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "clip")
    assert compare(runs=tmp_path, out=tmp_path / "out", dataset="elsewhere") == 1
    assert "elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["data_hash", "prompt_hash"])
def test_unlike_runs_are_refused_by_name(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "clip")
    hashes: Any = {field: "f00d" * 16}
    write_run(tmp_path, "siglip", **hashes)
    assert compare(runs=tmp_path, out=tmp_path / "out") == 1
    message = capsys.readouterr().err
    commands = [f"make eval-{model} OUT={tmp_path}/{model}-tiny-s0 TEST=.data/scenes-tiny" for model in ("clip", "siglip")]
    for part in ("clip-tiny-s0", "siglip-tiny-s0", "f00df00df00d", *commands):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_unlike_runs_on_another_data_set_do_not_stand_in_the_way(tmp_path: Path) -> None:
    write_run(tmp_path, "clip")
    write_run(tmp_path, "clip", dataset="other")
    write_run(tmp_path, "siglip", dataset="other", data_hash="f" * 64)
    assert [dataset.name for dataset in report_on(tmp_path, "scenes-tiny").datasets] == ["scenes-tiny"]
    with pytest.raises(EvalError):
        report_on(tmp_path)


def test_seeds_are_averaged_and_other_recipes_are_not(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, "clip", seed)
    write_run(tmp_path, "clip", 3, recipe={"lr": 0.1})
    rows = report_on(tmp_path).datasets[0].rows
    assert [len(row.results) for row in rows] == [3, 1]
    assert rows[0].name == "clip (optim.lr=0.001)"
    assert rows[1].name == "clip (optim.lr=0.1)"
    values = [result.by_key[COLOUR, "model"].value for result in rows[0].results]
    assert rows[0].value(COLOUR).value == pytest.approx(sum(v for v in values if v is not None) / 3)
    assert "3 seeds" in rows[0].value(COLOUR).how
    assert "1 seed" in rows[1].value(COLOUR).how


def test_commands_say_how_each_run_came_about(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "clip"), write_run(tmp_path, "clip", recipe={"lr": 0.1})]
    write_run(tmp_path, "clip", dataset="photos")
    assert report_on(tmp_path).commands == [
        f"make train-clip PRESET=tiny SEED=0 DATA=.data/scenes-tiny OUT={runs[0]} ARGS='--optim.lr 0.001'",
        f"make eval-clip OUT={runs[0]} TEST=.data/scenes-tiny",
        f"make eval-clip OUT={runs[0]} TEST=.data/photos",
        f"make train-clip PRESET=tiny SEED=0 DATA=.data/scenes-tiny OUT={runs[1]} ARGS='--optim.lr 0.1'",
        f"make eval-clip OUT={runs[1]} TEST=.data/scenes-tiny",
        "make compare",
    ]


def test_one_seed_trained_twice_does_not_count_as_two(tmp_path: Path) -> None:
    write_run(tmp_path, "clip")
    write_run(tmp_path, "clip").rename(tmp_path / "again")
    write_run(tmp_path, "clip")
    assert [len(row.results) for row in report_on(tmp_path).datasets[0].rows] == [1, 1]


def test_other_training_data_or_preset_make_other_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "clip", 0)
    edit(write_run(tmp_path, "clip", 1) / "eval/scenes-tiny/eval.json", trained_on="photos")
    edit(write_run(tmp_path, "clip", 2) / "eval/scenes-tiny/eval.json", preset="small")
    names = {row.name for row in report_on(tmp_path).datasets[0].rows}
    assert names == {"clip (tiny, scenes-tiny)", "clip (tiny, photos)", "clip (small, scenes-tiny)"}


def test_interval_over_seeds_is_students() -> None:
    low, high = t_interval([0.5, 0.6, 0.7])  # t(2, .975) = 4.303, standard error .1 / sqrt 3
    assert (low, high) == pytest.approx((0.6 - 0.24841, 0.6 + 0.24841), abs=1e-4)


@pytest.mark.usefixtures("without_plots")
def test_what_could_not_be_measured_is_never_a_zero(tmp_path: Path) -> None:
    write_run(tmp_path, "clip")
    run = write_run(tmp_path, "cm3leon")
    (run / "cost.json").unlink()
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    reason = "ranking 500 x 2412 pairs by likelihood is out of budget"
    assert f'title="{reason}">n/a<sup>' in page
    assert re.search(rf'-note-\d+">{reason}</li>', page)
    lines = list(csv.DictReader((tmp_path / "out/report.csv").open()))
    missing = [line for line in lines if line["run"] == "cm3leon-tiny-s0" and line["task"] == "retrieval"]
    assert missing
    assert all(line["value"] == "" and line["status"] == "n/a" for line in missing if line["variant"] == "model")
    costs = {line["metric"]: line["value"] for line in lines if line["run"] == "cm3leon-tiny-s0" and line["task"] == "cost"}
    assert costs["train_flops"] == ""
    assert costs["inference_flops"] == "210000000.0"


def test_a_value_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    edit_cells(write_run(tmp_path, "clip"), COLOUR, value=float("nan"))
    value = report_on(tmp_path).datasets[0].rows[0].value(COLOUR)
    assert value.value is None
    assert value.status == "not run"


def test_a_missing_cell_says_what_would_fill_it() -> None:
    assert combine([None], "clip").status == "not run"
    assert "make eval-clip" in combine([None], "clip").note


def two_runs(root: Path, a: list[float], b: list[float], **fields: Any) -> Report:
    """clip answered `a`, siglip `b`, on the same samples, one colour question each."""
    for model, answers in (("clip", a), ("siglip", b)):
        run = write_run(root, model)
        lines = [{"key": str(index), "colour": answer} for index, answer in enumerate(answers)]
        write_lines(run / "eval/scenes-tiny/zeroshot.test.model.jsonl", [{"header": {}}, *lines, {"header": "end"}])
        edit_cells(run, COLOUR, **{"value": sum(answers) / len(answers)} | fields)
    return report_on(root)


def test_a_difference_on_the_same_samples_is_proven_where_intervals_overlap(tmp_path: Path) -> None:
    """60 of 100 against 50 of 100: each interval is +-.10, but clip is right wherever siglip is, and on ten samples more."""
    report = two_runs(tmp_path, [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50)
    pair = report.datasets[0].proofs[COLOUR][0, 1]
    assert pair.proven
    assert pair.value == pytest.approx(0.1)
    assert 0.03 < pair.low < 0.06 < 0.14 < pair.high < 0.17
    assert not report.datasets[0].proofs[COLOUR][1, 0].proven
    best = [block.line.entries[0].best for block in report.datasets[0].tasks[0].blocks]
    assert best == [True, False]


def test_the_same_difference_on_unrelated_samples_is_not_proven(tmp_path: Path) -> None:
    report = two_runs(tmp_path, ([1.0] * 6 + [0.0] * 4) * 10, [1.0] * 50 + [0.0] * 50)
    assert not any(pair.proven for pair in report.datasets[0].proofs[COLOUR].values())


def test_less_can_be_better_and_a_rate_has_no_merit(tmp_path: Path) -> None:
    a, b = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    assert two_runs(tmp_path / "lower", a, b, better="lower").datasets[0].proofs[COLOUR][1, 0].proven
    assert COLOUR not in two_runs(tmp_path / "neither", a, b, better="neither").datasets[0].proofs


def test_records_whose_mean_is_not_the_value_prove_nothing(tmp_path: Path) -> None:
    two_runs(tmp_path, [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50)
    edit_cells(tmp_path / "clip-tiny-s0", COLOUR, value=0.9)
    dataset = report_on(tmp_path).datasets[0]
    assert COLOUR not in differences(dataset.rows, [COLOUR])


def test_several_records_of_a_sample_stay_together(tmp_path: Path) -> None:
    """Ten samples of ten records each, all right or all wrong: as uncertain as ten records, not a hundred."""
    few = two_runs(tmp_path / "few", [1.0] * 6 + [0.0] * 4, [1.0, 0.0] * 5).datasets[0].proofs[COLOUR][0, 1]
    for run, answers in (("clip", [1.0] * 6 + [0.0] * 4), ("siglip", [1.0, 0.0] * 5)):
        lines = [{"key": str(i), "colour": answer} for i, answer in enumerate(answers) for _ in range(10)]
        write_lines(tmp_path / f"few/{run}-tiny-s0/eval/scenes-tiny/zeroshot.test.model.jsonl", lines)
    many = report_on(tmp_path / "few").datasets[0].proofs[COLOUR][0, 1]
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_needs_no_network_and_runs_no_strangers_script(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' onmouseover=alert(1) $x_{$ </title></svg>"
    run = write_run(tmp_path, "clip", trained_on=evil)
    folder = run / "eval/scenes-tiny"
    edit_cells(run, COLOUR, metric=evil, note=evil, adapter=evil)
    edit_cells(run, Key("foils", "test", "swap_attribute"), value=None, status="n/a", note=evil)
    edit(folder / "eval.json", hardware=evil)
    edit(run / "cost.json", hardware=evil)
    log = (run / "train.jsonl").read_text().replace('"image to text"', json.dumps(evil))
    (run / "train.jsonl").write_text(log)
    shown = json.loads((folder / "showcase.json").read_text())
    shown["items"][0] |= {"truth": [evil], "prompt": evil, "key": evil, "ranked": [{"text": evil, "score": 1, "correct": False}]}
    shown["items"][0] |= {"caption": [[evil, False]], "answers": [{"question": evil, "truth": evil, "said": evil, "right": False}]}
    shown["items"][0]["unmasked"] = ["https://example.com/spy.png", evil, evil]
    shown["items"][1]["image"] = "https://example.com/spy.png"
    shown["items"][2]["image"] = "data:image/svg+xml;base64,AAAA"
    write(folder / "showcase.json", shown)
    told = dict.fromkeys(("sentence", "paper", "note", "metric", "verdict"), evil)
    (tmp_path / "claims" / "clip").mkdir(parents=True)
    write(tmp_path / "claims" / "clip" / "x.json", claim(**told, commands=[evil]))
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0

    text = (tmp_path / "out/report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert page.handlers == []
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "url(http" not in text
    assert "@import" not in text
    assert "spy.png" not in text
    markdown, _, commands = (tmp_path / "out/report.md").read_text().partition("\n```\n")
    assert "<script" not in markdown
    assert commands.count("```") == 1


@pytest.mark.usefixtures("without_plots")
def test_pictures_show_what_was_hidden_and_filled_in(tmp_path: Path) -> None:
    run = write_run(tmp_path, "clip")
    path = run / "eval/scenes-tiny/showcase.json"
    shown = json.loads(path.read_text())
    shown["items"][0]["unmasked"] = [f"data:image/png;base64,{name}" for name in ("hidden", "helped", "alone")]
    write(path, shown)
    (row,) = report_on(tmp_path).datasets[0].pictures[0].shown
    assert row.unmasked == shown["items"][0]["unmasked"]
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert all(page.count(f"base64,{name}") == 1 for name in ("hidden", "helped", "alone"))
    assert page.count("reconstructed without the caption") >= 1


SHARES, AREA = [[0.1, 0.2], [0.3, 0.4]], [0.125, 0, 0.875, 1]


def looking(folder: Path, **changes: Any) -> Any:
    """What the report takes from the attention of the first picture, whose fields are changed."""
    run = write_run(folder, "coca", samples=6, log=False)
    path = run / "eval/scenes-tiny/showcase.json"
    shown = json.loads(path.read_text())
    shown["items"][0]["look"] = {"shares": SHARES, "area": AREA} | changes
    write(path, shown)
    return report_on(folder).datasets[0].pictures[0].shown[0].look


@pytest.mark.usefixtures("without_plots")
def test_pictures_show_where_a_model_looked(tmp_path: Path) -> None:
    found = looking(tmp_path)
    assert (found.side, found.percent, found.area) == (2, [25, 50, 75, 100], AREA)
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('data-look="25 50 75 100" data-area="0.125 0.0 0.875 1.0"') == 6
    assert "function drawVeil" in page


@pytest.mark.usefixtures("without_plots")
def test_a_reader_switches_attention_on_and_off(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = next(filter(None, map(shutil.which, screenshot.BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    write_run(tmp_path, "coca", samples=6, log=False)
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "out/report.html").as_uri())
        veil, button = page.locator(".picture.current canvas"), page.locator(".picture.current [data-look]")
        for act, seen in ((button.hover, True), (button.click, True), (lambda: page.mouse.move(0, 0), True), (button.click, False)):
            act()
            assert veil.is_visible() is seen
        button.click()
        alphas = veil.evaluate("canvas => [...canvas.getContext('2d').getImageData(0, 0, 2, 2).data].filter((_, i) => i % 4 === 3)")
        assert alphas == [165, 110, 55, 0]  # 2.2 for each percent less than the largest
        image, box = page.locator(".picture.current .what img").bounding_box(), veil.bounding_box()
        assert box["width"] == pytest.approx(image["width"] * 0.75, abs=1)  # its area
        assert box["x"] - image["x"] == pytest.approx(image["width"] * 0.125, abs=1)
        page.context.browser.close()
    assert wrong == []


@pytest.mark.usefixtures("without_plots")
def test_showcases_without_attention_are_read(tmp_path: Path) -> None:
    write_run(tmp_path, "clip", samples=6, log=False)
    assert report_on(tmp_path).datasets[0].pictures[0].shown[0].look is None
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    assert "data-look=" not in (tmp_path / "out/report.html").read_text().partition("<script>")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": []},
        {"shares": [[0.5, 0.5]]},
        {"shares": [[1], [0.5, 0.5]]},
        {"shares": [[0, 0], [0, 0]]},
        {"shares": [[1, -1], [0, 1]]},
        {"shares": [[1, float("nan")], [0, 1]]},
        {"shares": [[1.0] * 65] * 65},
        {"area": [0, 0, 1]},
        {"area": [0.5, 0, 0.5, 1]},
        {"area": [0, 0, 2, 1]},
        {"area": [-1, 0, 1, 1]},
        {"area": [0, 0, 1, float("inf")]},
    ],
    ids=str,
)
def test_attention_that_is_none_is_left_out(changes: dict[str, Any], tmp_path: Path) -> None:
    assert looking(tmp_path, **changes) is None
    assert report_on(tmp_path).faults == []


@pytest.mark.parametrize(
    ("name", "value"), [("shares", [["red"]]), ("shares", "red"), ("shares", 1), ("area", None), ("area", ["url(evil)"] * 4)]
)
def test_attention_of_another_kind_is_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(IndexError):  # no picture of this run is shown
        looking(tmp_path, **{name: value})
    assert "showcase.json: " in " ".join(report_on(tmp_path).faults)


@pytest.mark.usefixtures("without_plots")
def test_pictures_show_what_a_ranking_rests_on(tmp_path: Path) -> None:
    run = write_run(tmp_path, "clip")
    path = run / "eval/scenes-tiny/showcase.json"
    shown = json.loads(path.read_text())
    pairs = [{"image": image, "text": "a red star", "share": 0.25} for image in ("data:image/png;base64,pair", "javascript:alert(1)")]
    shown["items"][0]["because"] = pairs
    write(path, shown)
    (row,) = report_on(tmp_path).datasets[0].pictures[0].shown
    assert [(each.image, each.text, each.share) for each in row.because] == [(pairs[0]["image"], "a red star", 0.25)]
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("base64,pair") == 1
    assert "25 %" in page
    assert "javascript" not in page


def test_pictures_show_each_models_first_choice(tmp_path: Path) -> None:
    write_run(tmp_path, "clip", skill=1.0)
    write_run(tmp_path, "siglip", skill=-1.0)
    pictures = report_on(tmp_path).datasets[0].pictures
    assert len(pictures) == 6
    for picture in pictures:
        assert [(shown.model, shown.ranked[0].correct) for shown in picture.shown] == [("clip", True), ("siglip", False)]
        assert not picture.agree


@pytest.mark.usefixtures("without_plots")
def test_captions_with_a_score_stand_from_the_best_to_the_worst(tmp_path: Path) -> None:
    path = write_run(tmp_path, "coca") / "eval/scenes-tiny/showcase.json"
    shown = json.loads(path.read_text())
    for item, score in zip(shown["items"], (0.25, 1.5, None, 0.75), strict=False):
        item |= {"score": score, "truth": [*item["truth"], "what another wrote"]}
    path.write_text(json.dumps(shown))
    pictures = report_on(tmp_path).datasets[0].pictures
    assert [picture.score for picture in pictures] == [1.5, 0.75, 0.25, None, None, None]
    assert [picture.key for picture in pictures][3:] == [shown["items"][row]["key"] for row in (2, 4, 5)]
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert 'title="CIDEr-D">1.50<' in page
    assert page.count("what another wrote") == 3


@pytest.mark.usefixtures("without_plots")
def test_the_report_opens_with_pictures_that_say_what_each_page_made_of_them(tmp_path: Path) -> None:
    for model in ("clip", "coca", "cm3leon"):
        write_run(tmp_path, model, samples=10, log=False)
    write_run(tmp_path, "clip", 1, samples=10, log=False, recipe={"lr": 0.1})  # a second row of a page: the table is its place
    gallery = report_on(tmp_path).gallery
    assert [picture.key for _, picture in gallery.pictures] == ["000000", "000001", "000003", "000004"]  # evenly spaced among six
    told = {part.ability: [name for name, _ in part.lines] for part in gallery.parts}
    speakers = ["cm3leon", "coca"]
    assert told == {"caption": speakers, "answers": speakers, "drawing": ["cm3leon"], "ranked": ["clip", *speakers]}
    answers = next(part for part in gallery.parts if part.ability == "answers")
    assert all(re.fullmatch(r"what colour is the circle\? \(\w+\)", question) for question in answers.questions)
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert page.index('class="gallery"') < page.index('class="results')
    assert "test images of scenes-tiny, not chosen by results" in page


@pytest.mark.usefixtures("without_plots")
def test_the_opening_is_chosen_by_no_result(tmp_path: Path) -> None:
    """Neither by the scores of captions nor among the rows of a page: the one that was trained on these data counts."""
    path = write_run(tmp_path, "coca", log=False) / "eval/scenes-tiny/showcase.json"
    before = [picture.key for _, picture in report_on(tmp_path).gallery.pictures]
    shown = json.loads(path.read_text())
    for item, score in zip(shown["items"], (0.1, 0.2, 0.3, 0.4, 0.5, 9.0), strict=True):
        item["score"] = score
    path.write_text(json.dumps(shown))
    assert [picture.key for _, picture in report_on(tmp_path).gallery.pictures] == before
    said = {part.ability: part.lines[0][1][0] for part in report_on(tmp_path).gallery.parts}
    write_run(tmp_path, "coca", log=False, trained_on="mine", recipe={"lr": 0.1})
    report = report_on(tmp_path)
    assert len(report.datasets[0].rows) == 2
    own = next(row.name for row in report.datasets[0].rows if row.trained_on == "scenes-tiny")
    assert {made[0].model for part in report.gallery.parts for _, made in part.lines if made[0]} == {own}
    assert {part.ability for part in report.gallery.parts} == set(said)


@pytest.mark.usefixtures("without_plots")
def test_pictures_of_several_data_sets_share_the_opening(tmp_path: Path) -> None:
    """Evenly, each with the outputs of the runs that were evaluated on it; a page has one line."""
    judged = (("clip", "scenes-tiny"), ("coca", "scenes-tiny"), ("clip", "mine"), ("siglip", "mine"), ("cm3leon", "photos"))
    for model, dataset in judged:
        write_run(tmp_path, model, samples=10, log=False, dataset=dataset)
    gallery = report_on(tmp_path).gallery
    sources = [source for source, _ in gallery.pictures]
    assert (sources, gallery.sources) == (sorted(sources, key=gallery.sources.index), ["scenes-tiny", "mine", "photos"])
    assert [sources.count(source) for source in gallery.sources] == [2, 1, 1]
    ranked = dict(next(part for part in gallery.parts if part.ability == "ranked").lines)
    seen = {page: {source for source, shown in zip(sources, made, strict=True) if shown} for page, made in ranked.items()}
    assert seen == {"clip": {"mine", "scenes-tiny"}, "coca": {"scenes-tiny"}, "siglip": {"mine"}, "cm3leon": {"photos"}}
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "test images of scenes-tiny, mine and photos, not" in page
    assert page.count("<small>mine</small>") == 1


def test_a_stage_and_a_page_have_rows_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path, "blip2", samples=20, log=False)
    write_run(tmp_path, "blip2", samples=20, log=False, stage="represent", asked=("retrieval",))
    write_run(tmp_path, "clip", samples=20, log=False, page="lit")
    write_run(tmp_path, "clip", samples=20, log=False)
    write_run(tmp_path, "flava", samples=20, log=False)
    report = report_on(tmp_path)
    rows = report.datasets[0].rows
    assert [row.name for row in rows] == ["clip", "lit", "flava", "blip2", "blip2 after represent"]  # paradigms, then names
    assert "unfinished" not in rows[-1].detail
    assert rows[-1].value(COLOUR).note == "not evaluated after stage represent: see the row blip2"
    assert rows[-1].value(Key("retrieval", "test", "i2t R@1 (500)")).value is not None
    assert len(report.runs) == 5
    home = tmp_path / "blip2-tiny-s0"
    assert [line for line in report.commands if "blip2" in line] == [
        f"make train-blip2 PRESET=tiny SEED=0 DATA=.data/scenes-tiny OUT={home}",
        f"make eval-blip2 OUT={home} TEST=.data/scenes-tiny",
    ]
    assert any(line.startswith("make train-lit ") for line in report.commands)


def test_an_older_run_shares_its_row_with_a_newer_seed(tmp_path: Path) -> None:
    write_run(tmp_path, "clip", 0, samples=20, log=False)
    write_run(tmp_path, "clip", 1, samples=20, log=False, page="clip")
    assert [len(row.results) for row in report_on(tmp_path).datasets[0].rows] == [2]


@pytest.mark.usefixtures("without_plots")
def test_a_cell_below_chance_says_why_in_place(tmp_path: Path) -> None:
    key = Key("retrieval", "test", "i2t R@5 (500)")  # chance is .010
    edit_cells(write_run(tmp_path, "blip2", notes={"retrieval": "Because <so>."}), key, value=0.002, low=0.0, high=0.004)
    edit_cells(write_run(tmp_path, "clip"), key, value=0.002, low=0.0, high=0.02)  # chance is in its interval
    (table,) = [table for table in report_on(tmp_path).datasets[0].tasks if table.title == "retrieval"]
    said = "blip2, retrieval i2t R@5 (500): .002 (.000\N{EN DASH}.004), chance .010, by embedding similarity. Because <so>."
    assert table.below == [said]
    assert compare(runs=tmp_path, out=tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert page.count(">↓</sup>") == 1
    assert "Because &lt;so&gt;." in page
    assert ".002↓" in (tmp_path / "out/report.md").read_text()


def test_below_chance_names_the_adapter_by_which_it_is_not(tmp_path: Path) -> None:
    edit_cells(write_run(tmp_path, "coca"), Key("foils", "test", "swap_relation"), value=0.1, low=0.0, high=0.2)
    (said,) = report_on(tmp_path).datasets[0].overview.below
    assert re.search(r", chance \.500, by embedding similarity\. By likelihood: \.\d+\. The reason is not known\.", said)


def test_what_is_built_on_what(tmp_path: Path) -> None:
    for model in ("minigpt4", "siglip", "blip2"):
        write_run(tmp_path, model, samples=10, log=False)
    write_run(tmp_path, "clip", samples=10, log=False, page="lit").rename(tmp_path / "clip-tiny-s0")  # a folder's name is not its page
    report = report_on(tmp_path)
    assert report.built_on["minigpt4"] == {"eyes": "blip2", "language_model": "lm"}
    assert report.built_on["blip2"] == {"vision": "lit", "language_model": "lm"}
    columns = graph.layers(report.built_on)
    assert [[node for node in column if isinstance(node, str)] for column in columns] == [
        ["lm", "classifier"],
        ["lit"],
        ["blip2"],
        ["minigpt4"],
    ]
    assert ("lm", "minigpt4", 2) in columns[2]  # the long arrow has a place of its own in every column
    assert graph.apart(report.built_on, [row.page for row in report.datasets[0].rows]) == ["siglip"]
    drawing = graph.svg(report.built_on | {"<b>": {"a&b": "lm"}})
    assert drawing.count("marker-end") == 6
    assert "&lt;b&gt;" in drawing
    assert "<b>" not in drawing
    assert graph.svg({}) == ""


def test_a_circle_of_prerequisites_does_not_hang() -> None:
    assert graph.layers({"a": {"x": "b"}, "b": {"y": "a"}})


def test_without_a_browser_the_picture_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("<p>hello")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvalError, match=r"no Chromium or Chrome found.*apt-get install chromium"):
        screenshot.picture(out=tmp_path / "a.png", report=tmp_path / "report.html")
    with pytest.raises(EvalError, match=r"none\.html is missing: `make compare` writes it"):
        screenshot.picture(out=tmp_path / "a.png", report=tmp_path / "none.html")


@pytest.mark.skipif(not any(map(shutil.which, screenshot.BROWSERS)), reason="needs Chromium")
def test_the_picture_is_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<body style='margin:0;background:#00f'><div style='width:9px;height:9px;background:#f00'>")
    screenshot.picture(out=tmp_path / "a.png", report=tmp_path / "report.html", width=600, height=400)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (600, 400)
        assert image.convert("RGB").getpixel((4, 4)) == (255, 0, 0)
        assert image.convert("RGB").getpixel((300, 200)) == (0, 0, 255)


def test_headline_keeps_first_split_and_recall_at_one(tmp_path: Path) -> None:
    write_run(tmp_path, "clip")
    results = [result for row in report_on(tmp_path).datasets[0].rows for result in row.results]
    shown = headline(keys(results))
    assert {key.split for key in shown} == {"test"}
    assert [key.metric for key in shown if key.task == "retrieval"] == ["i2t R@1 (500)"]


def test_a_log_that_was_resumed_and_torn_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path, "clip", log=False)
    lines: list[dict[str, Any]] = [
        {"step": 1, "samples": 8, "terms": {"a": 3.0}},
        {"step": 2, "samples": 16, "terms": {"a": 2.0}},
        {"event": "resume"},
    ]
    write_lines(tmp_path / "clip-tiny-s0/train.jsonl", [*lines, {"step": 2, "samples": 16, "terms": {"a": 1.5}}])
    with (tmp_path / "clip-tiny-s0/train.jsonl").open("a") as file:
        file.write('{"step": 3, "sam')
    assert [line["terms"]["a"] for line in read_runs(tmp_path)[0].log] == [3.0, 1.5]


def test_starting_needs_no_torch_and_no_plots() -> None:
    heavy = ["torch", "matplotlib", "scipy", "transformers"]
    code = f"import sys, eval.compare; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.share(0.7123), ".712"),
        (words.share(1.0), "1.000"),
        (words.share(-0.0341), "\N{MINUS SIGN}.034"),
        (words.share(-0.0001), ".000"),
        (words.share(None), words.MISSING),
        (words.si(640_000), "640\u00a0k"),
        (words.si(1.25e15, "FLOP"), "1.25\u00a0PFLOP"),
        (words.si(999_999), "1.00\u00a0M"),
        (words.si(12), "12"),
        (words.si(0), "0"),
        (words.si(None), words.MISSING),
        (words.duration(281), "4.7 min"),
        (words.duration(3599.9), "1.0 h"),
        (words.duration(0.2), "< 1 s"),
        (words.memory(2048), "2.0 GB"),
    ],
)
def test_numbers_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected


def test_labels_keep_their_order_and_distance() -> None:
    assert plots.spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.5, 0.4, 0.9])
    assert plots.spread([1.2, 1.1], 0.1) == pytest.approx([1.0, 0.9])
