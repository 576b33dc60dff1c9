"""MiniGPT-4 through the real entry, on prerequisites of its own; and its measure of well-formed replies against replies known by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import models
from data.sample import Sample
from data.scenes.build import build as build_scenes
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.harness.source import in_memory
from models.minigpt4 import MiniGPT4
from models.shared.chat import SAMPLED, Reply
from models.shared.generate import GREEDY, Decoding
from models.shared.instructions import requests
from recipes import blip2, clip, lm, minigpt4
from recipes.claims.claim import ClaimError
from recipes.claims.measures import reply_format
from recipes.claims.measures.reply_format import in_the_form_asked_for
from recipes.train.loop import train
from recipes.train.recipe import Log
from tests.recipes.kit import shortened
from tests.recipes.test_train import steps

SAMPLES = [make_sample(PRESETS["tiny"], "test", index) for index in range(40)]
RECIPE = SimpleNamespace(data="somewhere", device="cpu")


def share(
    monkeypatch: pytest.MonkeyPatch, say: Callable[[Sample, str], Reply], *forms: Any, samples: Sequence[Sample] = SAMPLES, **options: Any
) -> float:
    """What is measured of a model that says this."""
    by_image = {id(sample.image): sample for sample in samples}

    def reply(images: Sequence[np.ndarray], asked: Sequence[str], *, how: Decoding) -> list[Reply]:
        assert how == options.get("how", GREEDY)
        return [say(by_image[id(image)], text) for image, text in zip(images, asked, strict=True)]

    monkeypatch.setattr(models, "load", lambda *_: SimpleNamespace(reply=reply))
    monkeypatch.setattr(reply_format, "from_shards", lambda _: in_memory("scenes", {"test": list(samples)}))
    return in_the_form_asked_for(*forms, **options).measure(Path("run"), RECIPE, "scenes").value  # type: ignore[arg-type]


def truth(sample: Sample, text: str) -> str:
    return next(request.reply for request in requests(sample) if request.text == text)


def test_replies_count_that_end_repeat_nothing_and_have_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, lambda sample, text: Reply(truth(sample, text), True)) == 1
    assert share(monkeypatch, lambda sample, text: Reply(truth(sample, text), False)) == 0
    assert share(monkeypatch, lambda sample, text: Reply(f"{truth(sample, text)} {truth(sample, text)}", True)) == 0
    assert share(monkeypatch, lambda *_: Reply("yes", True)) == pytest.approx(0.25)  # of four forms only "in one word"
    assert share(monkeypatch, lambda *_: Reply("7", True), "number", "list") == pytest.approx(0.5)
    assert share(monkeypatch, lambda *_: Reply("there is one star on top of it all", True), "description") == 1  # form is not truth
    assert share(monkeypatch, lambda sample, text: Reply(truth(sample, text), False), quality="in the form asked for", how=SAMPLED) == 1
    assert share(monkeypatch, lambda *_: Reply("yes", True), quality="in the form asked for") == pytest.approx(0.25)


def test_nothing_to_ask_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = [Sample(str(i), np.zeros((4, 4, 3), np.uint8), captions=("a",)) for i in range(3)]
    with pytest.raises(ClaimError, match="no test image supports a request for number"):
        share(monkeypatch, lambda *_: Reply("", True), "number", samples=blank)


@pytest.mark.slow
def test_it_builds_on_blip2_and_its_language_model_and_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = tmp_path / "scenes-test"
    build_scenes(scenes, "tiny", workers=1, samples={"train": 100, "val": 10, "test": 12})
    for page in (clip, lm):
        monkeypatch.setitem(page.PRESETS, "tiny", shortened(page.PRESETS["tiny"], budget=8, batch=4))

    def short(recipe: Any) -> Any:
        return replace(recipe, stages=tuple(shortened(stage, budget=12, batch=4) for stage in recipe.stages))

    monkeypatch.setitem(blip2.PRESETS, "tiny", short(blip2.PRESETS["tiny"]))
    recipe = replace(short(minigpt4.PRESETS["tiny"]), data=str(scenes), device="cpu", log=Log(every=1, validate=4))
    folder = tmp_path / "minigpt4-tiny-s0"
    assert train(recipe, folder, "tiny") == 0
    logged = steps(folder)
    assert [line["stage"] for line in logged] == ["captions"] * 3 + ["instructions"] * 3
    assert logged[0]["loss"] < 1.1 * logged[0]["chance"]["text"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [  # one language model for both
        "blip2-tiny-scenes-test-s0",
        "clip-tiny-scenes-test-s0",
        "lm-tiny-scenes-test-s0",
        folder.name,
        "scenes-test",
    ]
    eyes, speech = (models.load(tmp_path / f"{name}-tiny-scenes-test-s0").state_dict() for name in ("blip2", "lm"))
    for name in ("blip2", "clip", "lm"):
        shutil.rmtree(tmp_path / f"{name}-tiny-scenes-test-s0")
    model = models.load(folder)
    assert isinstance(model, MiniGPT4)
    for name, value in model.state_dict().items():  # bitwise as they were taken over, after training
        if not name.startswith("to_language."):
            assert torch.equal(value, speech[name] if name.startswith("language.") else eyes[name]), name
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["trainable_parameters"] == 160 * 192 + 192
    assert set(cost["prerequisites"]) == {"vision", "language_model"}
    found = in_the_form_asked_for().measure(folder, recipe, scenes.name)
    assert 0 <= found.value <= 1
    assert len(found.samples) == 12
