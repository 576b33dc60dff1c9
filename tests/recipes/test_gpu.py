"""The quarter of an hour on a GPU: time, crashes, hangs and cuts, with fake items; and one page of every stage on the CPU."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from data.files import FileError
from eval import EvalError
from eval.report.words import MISSING
from models.siglip import SigLIP
from recipes.bench.__main__ import found as benches
from recipes.gpu import __main__, checks, pace, plan, short, wheels, whole
from recipes.gpu.schedule import Book, Item, Json, Save, Stage, Unable
from recipes.gpu.schedule import run as scheduled
from recipes.gpu.stages import STAGES
from recipes.tools.gpu import NOT_RUN, gpu_section
from recipes.tools.results import Published
from recipes.train.pages import names, page
from tests.recipes.items import after_fork

ORIGIN = {"commit": "c" * 40, "hardware": "a GPU", "date": "2026-01-01", "versions": {}}


def well(save: Save, value: int) -> Json:
    return {"value": value}


def raises(save: Save) -> Json:
    save({"before": 1})
    raise ArithmeticError("seven is not six")


def unable(save: Save) -> Json:
    raise Unable("needs gpt2 from the hub")


def crashes(save: Save) -> Json:
    save({"before": 1})
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs(save: Save) -> Json:
    save({"before": 1})
    time.sleep(60)
    return {}


def deaf(save: Save, folder: str) -> Json:
    """Ignores SIGTERM, and so does its child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (child := os.fork()) == 0:
        time.sleep(60)
    Path(folder, "child").write_text(str(child))
    time.sleep(60)
    return {}


def notes(save: Save, folder: str, name: str) -> Json:
    with Path(folder, "ran").open("a") as file:
        file.write(f"{name}\n")
    return {}


def book(folder: Path, **changes: Any) -> Book:
    origin, again = ORIGIN | changes.pop("origin", {}), changes.pop("again", ())
    return Book(folder / "gpu.json", origin, again, changes)


def run(folder: Path, *stages: Stage | Item, seconds: float = 60, **options: Any) -> dict[str, Json]:
    found = options.pop("book", None) or book(folder)
    listed = [each if isinstance(each, Stage) else Stage(each.name, lambda _, item=each: [item]) for each in stages]  # type: ignore[misc]
    said: list[str] = []
    options = {"method": "fork", "say": said.append, **options}
    scheduled(listed, found, seconds=seconds, logs=folder / "logs", **options)
    return json.loads((folder / "gpu.json").read_text())["items"] if (folder / "gpu.json").exists() else {}


def test_every_end_is_written_down_and_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.gpu.schedule.GRACE", 0.3)
    items = [
        Item("good", well, (3,)),
        Item("raises", raises),
        Item("unable", unable),
        Item("crashes", crashes),
        Item("hangs", hangs, limit=4, seconds=0.1),
        Item("last", well, (4,)),
    ]
    found = run(tmp_path, Stage("all", lambda _: items, parallel=2))
    assert {name: each["status"] for name, each in found.items()} == {
        "good": "ok",
        "raises": "failed",
        "unable": "unable",
        "crashes": "failed",
        "hangs": "timed out",
        "last": "ok",
    }
    assert (found["good"]["value"], found["last"]["value"]) == (3, 4)
    assert "seven is not six" in found["raises"]["error"]
    assert "the last words" in found["crashes"]["error"]
    assert "killed by signal 11" in found["crashes"]["error"]
    assert [found[name]["before"] for name in ("raises", "crashes", "hangs")] == [1, 1, 1]
    assert found["unable"]["why"] == "needs gpt2 from the hub"
    assert all(each["commit"] == ORIGIN["commit"] and each["hardware"] == "a GPU" and each["seconds"] >= 0 for each in found.values())


def test_what_does_not_stop_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.gpu.schedule.GRACE", 0.3)
    began = time.monotonic()
    found = run(tmp_path, Item("deaf", deaf, (str(tmp_path),), limit=4, seconds=0.1))
    assert found["deaf"]["status"] == "timed out"
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        _gone(int((tmp_path / "child").read_text()))


def _gone(process: int) -> None:
    """Raises ProcessLookupError once the process has ended; a zombie has."""
    for _ in range(50):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().split(") ")[-1][0] == "Z":
            raise ProcessLookupError
        time.sleep(0.1)


def test_an_item_starts_only_if_its_time_is_left(tmp_path: Path) -> None:
    long, short = Item("long", well, (1,), seconds=100, limit=500), Item("short", well, (2,), seconds=1)
    found = run(tmp_path, long, short, Item("never", well, (3,), seconds=float("inf"), limit=float("inf")), seconds=30)
    assert [found[name]["status"] for name in ("long", "short", "never")] == ["no time", "ok", "no time"]
    assert "about 100 s needed" in found["long"]["why"]


def test_a_limit_does_not_outlast_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.gpu.schedule.GRACE", 0.3)
    began = time.monotonic()
    found = run(tmp_path, Item("hangs", hangs, seconds=0.1, limit=50), seconds=1)
    assert found["hangs"]["status"] == "timed out"
    assert time.monotonic() - began < 20


def test_it_goes_on_with_what_is_missing_on_the_same_code_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.gpu.schedule.GRACE", 0.3)

    def items(_: object) -> list[Item]:
        return [
            *(Item(name, notes, (str(tmp_path), name)) for name in ("a", "b")),
            Item("bad", raises),
            Item("slow", hangs, limit=0.2, seconds=0.1),
        ]

    def ran(**changes: Any) -> list[str]:
        (tmp_path / "ran").write_text("")
        run(tmp_path, Stage("all", items), book=book(tmp_path, **changes), only=changes.pop("only", ()))
        return (tmp_path / "ran").read_text().split()

    assert ran() == ["a", "b"]
    found = json.loads((tmp_path / "gpu.json").read_text())["items"]
    found["b"]["status"] = "running"  # the run was cut off
    (tmp_path / "gpu.json").write_text(json.dumps({"schema": 1, "items": found}))
    assert ran() == ["b"]
    assert ran() == []
    assert ran(again=["a"]) == ["a"]
    assert ran(origin={"commit": "d" * 40}) == ["a", "b"]
    assert ran(origin={"commit": "d" * 40, "hardware": "another"}) == ["a", "b"]


def test_an_earlier_result_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    item = Item("a", well, (1,), seconds=20)
    run(tmp_path, item)
    found = run(tmp_path, item, book=book(tmp_path, origin={"commit": "d" * 40}), seconds=1)
    assert (found["a"]["status"], found["a"]["commit"]) == ("ok", "c" * 40)


def test_only_names_items_or_stages(tmp_path: Path) -> None:
    stages = [Stage("one", lambda _: [Item("a", well, (1,)), Item("b", well, (2,))]), Stage("two", lambda _: [Item("c", well, (3,))])]
    assert set(run(tmp_path, *stages, only=["b", "two"])) == {"b", "c"}


def test_items_may_depend_on_earlier_results(tmp_path: Path) -> None:
    second = Stage("two", lambda results: [Item("b", well, (results["a"]["value"] + 1,))])
    assert run(tmp_path, Item("a", well, (1,)), second)["b"]["value"] == 2


@pytest.mark.timeout(600)
def test_where_a_fork_does_not_do_processes_start_anew(tmp_path: Path) -> None:
    found = run(tmp_path, Item("a", after_fork, limit=280), Item("b", after_fork, limit=280), seconds=600)
    assert [found[name]["status"] for name in ("a", "b")] == ["ok", "ok"]


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"schema": 1, "blocks": []}')
    with pytest.raises(FileError, match=r"gpu\.json: not a result file of recipes\.gpu"):
        book(tmp_path)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    __main__.main()
    assert capsys.readouterr().out.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ every stage


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items change the pages of their process: here they are put back."""
    for name in names():
        monkeypatch.setattr(page(name), "PRESETS", dict(page(name).PRESETS))


@pytest.mark.timeout(900)
def test_a_page_is_checked(scenes: Path, tmp_path: Path, presets: None) -> None:
    saved: list[Json] = []
    found = checks.check(lambda result: saved.append(dict(result)), "siglip", "cpu", str(scenes), str(tmp_path), "eager")
    assert found["failures"] == {}
    assert found["features"] == found["losses"] == found["gradients"] == found["resume"] == 0  # the CPU is compared with itself
    assert 0 < found["bf16"] < checks.ALIKE
    assert found["compile"] < 1e-3
    assert found["synchronisations"] == []
    assert saved[0].keys() - {"failures"} == {"training"}
    assert len(saved) == 6


@pytest.mark.timeout(900)
def test_what_differs_from_the_cpu_fails_and_the_rest_goes_on(
    scenes: Path, tmp_path: Path, presets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SigLIP.encode
    monkeypatch.setattr(checks, "_resumed", lambda *_: {"resume": 0.0})
    monkeypatch.setattr(checks, "_compiled", lambda *_: {"compile": 0.0})
    calls: list[int] = []

    def other(self: Any, batch: Any) -> Any:
        features = real(self, batch)
        calls.append(int(features["image"][0, 0].item() > 5))  # makes a GPU's host wait
        return features | {"image": features["image"] * (1.001 if parity and len(calls) % 2 else 1)}

    parity: list[int] = []
    within = checks._parity

    def watched(*arguments: Any) -> Json:
        parity.append(1)
        try:
            return within(*arguments)
        finally:
            parity.clear()

    monkeypatch.setattr(checks, "_parity", watched)
    monkeypatch.setattr(SigLIP, "encode", other)
    found = checks.check(lambda _: None, "siglip", "cpu", str(scenes), str(tmp_path), "eager")
    assert set(found["failures"]) == {"parity"}
    assert "differ from the CPU's by more than 0.0001" in found["failures"]["parity"]
    assert found["bf16"] >= 0
    assert [place.split(":")[0] for place in found["synchronisations"]] == ["tests/recipes/test_gpu.py"]


@pytest.mark.timeout(900)
def test_a_page_is_paced(scenes: Path, tmp_path: Path, presets: None) -> None:
    found = pace.pace(lambda _: None, "siglip", "tiny", "cpu", str(scenes), 0.1, 4, str(tmp_path))["stages"]
    (only,) = found.values()
    assert only["batch"] == 4
    assert min(only[name] for name in ("samples_per_s", "tflops", "memory_mb")) > 0
    assert 0 <= only["data_wait_share"] < 1


def test_rates_leave_the_first_lines_out() -> None:
    def line(step: int, seconds: float, share: float, memory: float) -> Json:
        return {"step": step, "samples": 10 * step, "seconds": seconds, "data_wait_share": share, "memory_mb": memory}

    lines = [line(2, 50, 0.9, 9), line(4, 60, 0.9, 1), line(6, 70, 0.9, 1), line(8, 71, 0.5, 1), line(10, 74, 0.1, 2)]
    found = pace.steady(lines, flops=1e12)
    assert found["samples_per_s"] == pytest.approx(10)  # 40 samples in 4 s
    assert found["tflops"] == pytest.approx(10)
    assert found["data_wait_share"] == pytest.approx((1 * 0.5 + 3 * 0.1) / 4)
    assert found["memory_mb"] == 9
    with pytest.raises(ValueError, match="3 log lines"):
        pace.steady(lines[:3], flops=1e12)


def test_backbones_of_the_hub_get_random_weights_of_their_shape() -> None:
    small = page("frozen").PRESETS["small"]
    assert short.from_hub(small.model) == ["EleutherAI/pythia-410m"]
    stripped = short.offline(small)
    assert short.from_hub(stripped.model) == []
    assert '"num_hidden_layers": 24' in stripped.model.language.architecture
    for name in filter(short.learns, short.pages("small")):
        named = [source for source in short.from_hub(page(name).PRESETS["small"].model) if "/" in source]
        assert set(named) <= set(short.ARCHITECTURES), f"{name}: recipes/gpu/short.py has no architecture of {named}"


def test_trainings_come_in_their_order_and_only_with_known_rates(tmp_path: Path) -> None:
    budget = page("clip").PRESETS["small"].budget
    results = {f"pace {name}": {"stages": {"train": {"samples_per_s": budget / 100}}} for name in ("clip", "siglip")}
    items = whole.trainings_that_fit(results, "small", "scenes", (), tmp_path)
    assert [item.name for item in items][:4] == [f"train {name}" for name in whole.FIRST]
    by_name = {item.name: item.seconds for item in items}
    assert by_name["train clip"] == pytest.approx(100 + whole.READY + whole.EVALUATION)
    assert by_name["train coca"] == float("inf")
    assert {f"train {name}" for name in short.pages("small") if short.learns(name)} == set(by_name)


def test_the_plan_has_every_page_and_every_stage(tmp_path: Path) -> None:
    staged = {stage.name: [item.name for item in stage.items({})] for stage in plan.plan(plan.Sizes(), tmp_path, None)}
    assert list(staged) == list(STAGES)
    assert {f"check {name}" for name in short.pages("tiny")} <= set(staged["check"])
    assert {f"pace {name}" for name in short.pages("small") if short.learns(name)} == set(staged["pace"])
    assert {f"versus {name}" for name in benches()} == set(staged["versus"])


# ----------------------------------------------------------------------------------------------------------- wheels


def test_what_is_there_will_do_or_not() -> None:
    have = wheels.installed("torch==2.11.0+cu130\nNumPy==2.5.2\n-e git+x#egg=y\n# no\npillow @ file:///x\nodd===weird\ntyro==0.9\n")
    assert have == {"torch": "2.11.0+cu130", "numpy": "2.5.2", "pillow": "", "odd": "weird", "tyro": "0.9"}
    needed = ["torch>=2.11", "numpy>=2.0", "Pillow>=12", "tyro>=1.0.8", "open_clip_torch>=3.3", 'tomli>=2; python_version < "3.11"']
    assert wheels.missing(needed, have, "3.12") == ["tyro>=1.0.8", "open_clip_torch>=3.3"]


def test_what_pip_would_install_is_packed_unless_it_is_there() -> None:
    def entry(name: str, version: str) -> Json:
        return {"metadata": {"name": name, "version": version}}

    report = {"install": [entry("open_clip_torch", "3.3.0"), entry("torch", "2.11.0"), entry("ftfy", "6.3"), entry("tyro", "1.1")]}
    found = wheels.chosen(report, {"torch": "2.11.0+cu130", "tyro": "0.9"}, ["open_clip_torch>=3.3", "tyro>=1.0.8"])
    assert found == ["ftfy==6.3", "open-clip-torch==3.3.0", "tyro==1.1"]


def test_large_libraries_and_javas_archives_do_not_count(tmp_path: Path) -> None:
    for name in ("torch-2.11.0-cp312-x.whl", "pycocoevalcap-1.2-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr("a/code.py", "x = 1")
            wheel.writestr("a/big.jar", os.urandom(3 << 20))
    light = tmp_path / "pycocoevalcap-1.2-py3-none-any.whl"
    wheels.without_jars(light)
    assert zipfile.ZipFile(light).namelist() == ["a/code.py"]
    assert wheels.counted_mb(tmp_path) < 1


# ---------------------------------------------------------------------------------------------------------- results


def test_what_no_gpu_has_shown_is_marked() -> None:
    page = "\n".join(gpu_section({}))
    assert page.count(NOT_RUN) == len(STAGES)
    assert "Measured" not in page


def test_results_are_shown_with_what_failed_and_what_did_not_run() -> None:
    origin = {"commit": "c" * 40, "hardware": "NVIDIA H200", "date": "2026-01-01", "versions": {"torch": "2.11"}}
    stage = {"batch": 1024, "samples_per_s": 12_345.6, "tflops": 300.0, "memory_mb": 20_480.0, "data_wait_share": 0.013}
    items = {
        "machine": {"status": "ok", "size": 8192, "tflops": {"bf16": 750.0, "fp32": 50.0}},
        "check clip": {"status": "ok", "training": "ok", "features": 2e-6, "failures": {}, "synchronisations": ["models/a.py:1"]},
        "check vq": {"status": "failed", "training": "ok", "features": 1e-6, "failures": {"compile": "no compiler"}},
        "check lm": {"status": "failed", "error": "a long\nkilled by signal 11"},
        "pace clip": {"status": "ok", "stages": {"train": stage}},
        "pace vq": {"status": "no time", "why": "..."},
        "train frozen": {"status": "unable", "why": "needs EleutherAI/pythia-410m from the hub"},
    }
    page = "\n".join(gpu_section({name: {**item, **origin, "seconds": 1.0} for name, item in items.items()}))
    for line in (
        "| check | every model",
        "1 ok, 2 failed |",
        "1 ok, 1 not run on a GPU yet |",
        f"| clip | 2e-06 |{f' {MISSING} |' * 5} 1 | ok | ccccccc |",
        "failed: compile",
        "failed: killed by signal 11",
        "| clip | train | 1024 | 12,346 | 40% | 20.0 GB | 1% | ccccccc |",
        f"| vq | {NOT_RUN} |",
        "unable: needs EleutherAI/pythia-410m from the hub",
        "NVIDIA H200; torch 2.11.",
    ):
        assert line in page, line
    assert [row.count("|") for row in page.splitlines() if row.startswith("| versus")] == [4]


def test_a_rehearsal_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text('{"schema": 1, "rehearsal": true, "items": {}}')
    with pytest.raises(EvalError, match="a rehearsal"):
        _ = Published(tmp_path).gpu
