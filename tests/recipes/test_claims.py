"""The claims runner on claims whose answer is known: nothing is made up, nothing is done twice, nothing is lost by a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from eval.report.results import Run
from recipes.claims import examine
from recipes.claims.claim import Arm, Cell, Change, Claim, ClaimError, Measured, Measurement, Metric
from recipes.claims.estimate import estimate
from recipes.claims.experiment import apart, plan
from recipes.claims.verdict import NOT_REPRODUCED, REPRODUCED, REVERSED, compare, overall
from recipes.train.distributed import Process
from recipes.train.folder import exclusive_lock
from recipes.train.recipe import AnyRecipe
from recipes.train.watch import Watch
from tests.eval.fake_runs import write_run
from tests.recipes.fakes import install
from tests.recipes.test_train import Killed, events

LR = 1e-2  # of the tower's recipe


def faster(recipe: AnyRecipe) -> AnyRecipe:
    return replace(recipe, optim=replace(recipe.optim, lr=2 * LR))


def planted(effect: float, noise: float = 0.01) -> Measured:
    """Each of 50 samples is worth 0.5, more by `effect` where the learning rate was raised, and some luck of seed and sample."""

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        assert (folder / "model.safetensors").exists()
        raised = recipe.optim.lr > LR
        luck = np.random.default_rng([recipe.seed, int(raised)]).normal(0, noise, 51)
        return {f"{i:02d}": 0.5 + effect * raised + luck[50] + luck[i] for i in range(50)}

    return Measured(f"planted {effect}", measure)


def last_losses(count: int) -> Measured:
    """One number of a run, not of its samples: the mean loss of the last lines of its log."""

    def measure(folder: Path, recipe: AnyRecipe) -> float:
        losses = [line["loss"] for line in Run(folder.name, folder).log if "loss" in line][-count:]
        if len(losses) < count:
            raise ClaimError(f"{folder}: {len(losses)} losses, expected at least {count}")
        return sum(losses) / count

    return Measured(f"mean of the last {count} losses", measure)


def claim(name: str, metric: Metric, change: Change = faster, **more: Any) -> Claim:
    arms = more.pop("arms", (Arm("raised", change), Arm("as it is")))
    return Claim(name=name, sentence=f"It is {name}.", paper="nowhere", arms=arms, metric=metric, **more)


Examine = Callable[..., int]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, scenes: Path, tmp_path: Path) -> Iterator[Examine]:
    """Declare claims on the page of the tower, or another, and test them in this process."""
    install(monkeypatch, str(scenes))
    threads = torch.get_num_threads()

    def examined(*declared: Claim, page: str = "tower", **options: Any) -> int:
        declaring = sys.modules.setdefault(f"recipes.{page}", SimpleNamespace())  # type: ignore[arg-type]
        monkeypatch.setattr(declaring, "CLAIMS", declared, raising=False)
        asked = {"preset": "tiny", "device": "cpu", "runs": tmp_path} | options

        def work(commands: dict[str, list[str]], *_: object) -> int:
            return max([examine.answer(key, plan(page, **asked), tmp_path) for key in commands], default=0)

        monkeypatch.setattr(examine, "work", work)
        return examine.examine(page, **asked)

    yield examined
    torch.set_num_threads(threads)


def result(folder: Path, name: str, page: str = "tower") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "claims" / page / f"{name}.json").read_text())
    return found


def test_known_answers(page: Examine, tmp_path: Path) -> None:
    better, worse, none = planted(0.3), planted(-0.3), planted(0.0)
    same = claim("same", none, arms=(Arm("one"), Arm("other")), same=True)
    assert page(claim("true", better), claim("false", worse), claim("luck", none), same, claim("lower", worse, better="lower")) == 0
    verdicts = {name: result(tmp_path, name)["verdict"] for name in ("true", "false", "luck", "same", "lower")}
    assert verdicts == {"true": REPRODUCED, "false": REVERSED, "luck": NOT_REPRODUCED, "same": NOT_REPRODUCED, "lower": REPRODUCED}
    true = result(tmp_path, "true")
    (comparison,) = true["comparisons"]
    assert comparison["effect"] == pytest.approx(0.3, abs=0.03)
    assert comparison["low"] < comparison["effect"] < comparison["high"]
    assert comparison["how"] == "95 % paired Student t over 3 seeds"
    first, second = true["arms"]
    assert comparison["differences"] == pytest.approx([a - b for a, b in zip(first["values"], second["values"], strict=True)])
    assert second["differs"] == {"optim.lr": [2 * LR, LR]}
    assert result(tmp_path, "same")["comparisons"][0]["effect"] == 0
    assert true["commands"] == ["make claims-tower SEEDS=0,1,2 ARGS='--only true'"]


def test_a_run_is_trained_once_whoever_needs_it(page: Examine, tmp_path: Path, capsys: Any) -> None:
    page(claim("a", planted(0.1)), claim("b", planted(0.2)), seeds=[0, 1])
    runs = sorted((tmp_path / "claims" / "runs").iterdir())
    assert len(runs) == 4
    assert result(tmp_path, "a")["cost"] | {"train_seconds": 0, "hardware": ""} == {
        "runs": 4,
        "shared": 0,
        "samples_seen": 4 * 96,
        "train_seconds": 0,
        "train_flops": result(tmp_path, "b")["cost"]["train_flops"],
        "hardware": "",
    }
    for run in runs:
        shutil.rmtree(run)  # what was measured is kept
    assert page(claim("a", planted(0.1)), claim("b", planted(0.2)), seeds=[0, 1]) == 0
    assert "All runs are trained and measured" in capsys.readouterr().out
    assert not list((tmp_path / "claims" / "runs").iterdir())


def test_a_field_that_recipes_have_since_makes_no_run_another(page: Examine, tmp_path: Path) -> None:
    page(claim("a", planted(0.1)), seeds=[0, 1])
    before = (tmp_path / "claims" / "tower" / "a.json").read_text()
    for path in (tmp_path / "claims").rglob("*.json"):
        found = json.loads(path.read_text())
        recipe = found.get("identity", {}).get("recipe") or found
        if path.name == "recipe.json" or "identity" in found:
            del recipe["weights"], recipe["model"]["width"]
            path.write_text(json.dumps(found))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "claims" / "runs").rglob("model.safetensors")}
    assert page(claim("a", planted(0.1)), claim("b", planted(0.2)), seeds=[0, 1]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "claims" / "runs").rglob("model.safetensors")} == stamps
    assert (tmp_path / "claims" / "tower" / "a.json").read_text() == before


def test_the_usual_run_is_used_when_it_is_the_very_recipe(page: Examine, tmp_path: Path) -> None:
    from recipes.train.loop import train

    recipe = sys.modules["recipes.tower"].PRESETS["tiny"]
    train(recipe, tmp_path / "tower-tiny-s0", "tiny")
    train(replace(recipe, seed=1, budget=48), tmp_path / "tower-tiny-s1", "tiny")
    page(claim("a", planted(0.1)), seeds=[0, 1])
    _, usual = result(tmp_path, "a")["arms"]
    assert usual["runs"][0] == str(tmp_path / "tower-tiny-s0")
    assert Path(usual["runs"][1]).parent == tmp_path / "claims" / "runs"
    assert result(tmp_path, "a")["cost"]["shared"] == 1


def test_killed_and_run_again_comes_to_the_same(page: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = claim("loss", last_losses(3), seeds=(0, 1))
    page(loss)
    whole = result(tmp_path, "loss")
    shutil.rmtree(tmp_path / "claims")
    steps = []

    def due(self: Watch) -> bool:
        if tmp_path in self.report.path.parents:  # not in the steps that the estimate is made from
            steps.append(self.progress.step)
        if len(steps) == 10:  # in the second run, after its step 4
            raise Killed
        return self.progress.step == 2

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        with pytest.raises(Killed):
            page(loss)
    assert len(list((tmp_path / "claims" / "tower" / "measured").iterdir())) == 1
    assert page(loss) == 0
    again = result(tmp_path, "loss")
    assert {**again, "cost": 0} == {**whole, "cost": 0}
    assert again["cost"]["samples_seen"] == whole["cost"]["samples_seen"]


def test_what_arms_build_on_is_trained_once(page: Examine, tmp_path: Path) -> None:
    louder = claim("louder", last_losses(3), lambda recipe: replace(recipe, model=replace(recipe.model, gain=2.0)))
    page(louder, page="bridge", seeds=[0, 1])
    found = result(tmp_path, "louder", "bridge")
    assert found["arms"][1]["differs"] == {"model.gain": [2.0, 1.0]}
    for seed in (0, 1):
        assert len(events(tmp_path / f"tower-tiny-s{seed}", "start")) == 1
    assert len(list((tmp_path / "claims" / "runs").iterdir())) == 4


def test_arms_of_other_models_and_other_questions_about_one_run(page: Examine, tmp_path: Path) -> None:
    arms = (Arm("bridge", page="bridge"), Arm("tower", page="tower"))
    across = claim("across", last_losses(3), arms=arms)
    asked = claim("asked", planted(0.0), arms=(Arm("so", metric=planted(0.2, noise=0.0)), Arm("otherwise", metric=planted(0.0, noise=0.0))))
    assert page(across, page="tower") == 0
    assert result(tmp_path, "across")["arms"][1]["differs"] == {"page": ["bridge", "tower"]}
    page(asked)
    found = result(tmp_path, "asked")
    assert found["arms"][1]["differs"] == {"metric": ["planted 0.2", "planted 0.0"]}
    assert found["cost"]["runs"] == 3


def test_claims_that_cannot_be_tested_are_refused(page: Examine, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ClaimError, match="arms 'raised' and 'as it is' differ in nothing; expected one difference"):
        page(claim("a", planted(0.1), lambda recipe: recipe))
    with pytest.raises(ClaimError, match=r"differ in optim.lr; expected no difference"):
        page(claim("a", planted(0.1), same=True))
    with pytest.raises(ClaimError, match=r"recipes/tower.py declares no claim 'b'; it has: a"):
        page(claim("a", planted(0.1)), only="b")
    with pytest.raises(ClaimError, match="no preset 'paper', only tiny"):
        page(claim("a", planted(0.1)), preset="paper")
    with pytest.raises(ClaimError, match="lower-case letters, digits and hyphens"):
        claim("A claim", planted(0.1))
    with pytest.raises(ClaimError, match="two or more arms with distinct names"):
        claim("a", planted(0.1), arms=(Arm("x"), Arm("x")))
    with pytest.raises(ClaimError, match="6 losses, expected at least 99"):
        page(claim("a", last_losses(99)), seeds=[0])
    capsys.readouterr()
    assert page(claim("a", last_losses(2)), claim("b", planted(0.3)), seeds=[0]) == 1
    assert "a: not tested: no interval: one seed, and the metric is not a mean over samples" in capsys.readouterr().out
    assert result(tmp_path, "b")["verdict"] == REPRODUCED


def test_what_the_recipes_declare_can_be_tested(tmp_path: Path) -> None:
    pages = [path.stem for path in Path(examine.__file__).parents[1].glob("*.py") if "\nCLAIMS = " in path.read_text()]
    assert {"clip", "siglip", "paradigms"} <= set(pages)
    for page in pages:
        questions = plan(page, preset="tiny", runs=tmp_path)
        for declared in {question.claim for question in questions}:
            assert apart(declared, questions)
            assert declared.sentence.endswith(".")
            assert len(declared.seeds) == 1 or len(declared.seeds) >= 3  # two give no interval worth the name; one is marked in its verdict


def test_numbers_come_from_the_harness(tmp_path: Path) -> None:
    def number(model: str, *cell: str, variant: str = "model") -> Measurement:
        folder = write_run(tmp_path, model, samples=80)
        return Cell(*cell, variant=variant).measure(folder, None, "scenes-tiny")  # type: ignore[arg-type]

    found = number("clip", "zeroshot", "shape")
    assert 0.5 < found.value < 1
    assert len(found.samples) == 80
    assert sum(total for total, _ in found.samples.values()) / 80 == pytest.approx(found.value)
    assert number("clip", "zeroshot", "shape", variant="chance").value == 0.125
    with pytest.raises(ClaimError, match=r"zeroshot smell, test has no value \(no such cell; zeroshot has: .*shape"):
        number("clip", "zeroshot", "smell")
    with pytest.raises(ClaimError, match="n/a: ranking 500 x 2412 pairs by likelihood is out of budget"):
        number("cm3leon", "retrieval", "i2t R@1 (500)")


def test_intervals_by_the_number_of_seeds() -> None:
    def measured(*values: float) -> list[Measurement]:
        return [Measurement(value) for value in values]

    three = compare(measured(0.5, 0.6, 0.7), measured(0.4, 0.4, 0.4), "higher")  # differences .1 .2 .3: .2 +- 4.303 x .1 / sqrt 3
    assert (three.low, three.high) == pytest.approx((0.2 - 0.24843, 0.2 + 0.24843), abs=1e-4)
    assert three.verdict == NOT_REPRODUCED
    assert compare(measured(0.5, 0.6, 0.7), measured(0.4, 0.5, 0.6), "higher").verdict == REPRODUCED  # always .1: no doubt at all
    assert compare(measured(0.5, 0.6, 0.7), measured(0.4, 0.5, 0.6), "lower").verdict == REVERSED
    assert "two seeds" in compare(measured(0.5, 0.6), measured(0.4, 0.5), "higher").how
    half = {str(i): (float(i % 2), 1.0) for i in range(100)}
    more = dict.fromkeys(half, (1.0, 1.0))
    one = compare([Measurement(1.0, more)], [Measurement(0.5, half)], "higher")
    assert one.how.startswith("one seed")
    assert 0.4 < one.low < 0.5 < one.high < 0.6
    assert one.verdict == REPRODUCED


def test_the_best_of_several_must_beat_them_all() -> None:
    assert overall([REPRODUCED, REPRODUCED]) == REPRODUCED
    assert overall([REPRODUCED, NOT_REPRODUCED]) == NOT_REPRODUCED
    assert overall([REPRODUCED, REVERSED]) == REVERSED


def test_time_is_estimated_from_finished_runs_or_from_steps(page: Examine, tmp_path: Path, capsys: Any) -> None:
    page(claim("a", planted(0.1)), seeds=[0])
    first = capsys.readouterr().out
    assert "2 runs to train (192 samples in total)" in first
    assert "in 5 steps" in first
    declared = sys.modules["recipes.bridge"]
    declared.CLAIMS = (claim("a", last_losses(10), lambda recipe: replace(recipe, model=replace(recipe.model, gain=2.0))),)  # type: ignore[attr-defined]
    untrained = {question.run.key: question.run for question in plan("bridge", preset="tiny", runs=tmp_path)}
    assert "time unknown" in estimate(list(untrained.values()), 6, 2, tmp_path)  # the tower first
    for cost in (tmp_path / "claims" / "runs").glob("*/cost.json"):
        cost.write_text(json.dumps(json.loads(cost.read_text()) | {"train_seconds": 96 * 2.0, "threads": 1}))
    tower = [
        replace(run, recipe=replace(run.recipe, seed=7))
        for run in {q.run.key: q.run for q in plan("tower", preset="tiny", runs=tmp_path)}.values()
    ]
    said = estimate(tower[:1] * 5, 5, 2, tmp_path)
    assert "5 runs to train (480 samples in total), about 8 minutes, 2 in parallel" in said
    assert "0 samples/s in 2 finished runs" in said


def test_processes_run_side_by_side_and_their_failures_are_told(tmp_path: Path) -> None:
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", f"import os, time, pathlib; {code}"]

    meet = (
        "here = pathlib.Path({0!r}); (here / {1!r}).touch(); end = time.time() + 20\n"
        "while not (here / {2!r}).exists() and time.time() < end: time.sleep(.01)\n"
        "assert (here / {2!r}).exists()"
    )
    commands = {me: python(meet.format(str(tmp_path), me, other)) for me, other in (("x", "y"), ("y", "x"))}
    commands["threads"] = python("assert os.environ['OMP_NUM_THREADS'] == '1'")
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    assert examine.work(commands, 2, tmp_path / "logs", console) == 0
    assert examine.work({"bad": python("raise SystemExit('no such thing')")}, 2, tmp_path / "logs", console) == 1
    said = console.export_text()
    assert "bad: failed with status 1" in said
    assert "no such thing" in said


def test_a_signal_is_passed_on_once_and_the_rest_is_not_begun(tmp_path: Path) -> None:
    save = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): (pathlib.Path(sys.argv[1]) / 'saved').write_text('once'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); (pathlib.Path(sys.argv[1]) / 'ready').touch(); time.sleep(30)"
    )
    commands = {name: [sys.executable, "-c", save, str(tmp_path)] for name in ("first", "second")}

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    assert examine.work(commands, 1, tmp_path / "logs", console) == 128 + signal.SIGINT
    assert (tmp_path / "saved").read_text() == "once"
    assert not (tmp_path / "logs" / "second.log").exists()


def test_two_trainings_of_one_folder_wait_for_each_other(tmp_path: Path, capsys: Any) -> None:
    order = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with exclusive_lock(tmp_path, Process(0, 1, torch.device("cpu"))):
            inside.set()
            leave.wait(20)
            order.append("first")

    def second() -> None:
        with exclusive_lock(tmp_path, Process(0, 1, torch.device("cpu"))):
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    said, until = "", time.monotonic() + 20
    while "waiting for it" not in said and time.monotonic() < until:
        said += capsys.readouterr().err
        time.sleep(0.01)
    assert not order
    leave.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second"]
    assert "is being trained by another process: waiting for it" in said
