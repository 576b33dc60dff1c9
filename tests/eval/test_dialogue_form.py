"""Dialogue form by hand: replies in the form asked for, cut off, repeating, untrue; the text-only baseline; and the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sample import Question, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.adapters.replies import GeneratedReplies
from eval.base.capabilities import Said
from eval.harness.source import in_memory
from eval.scenes.oracle import Oracle
from eval.tasks.dialogue_form import FORMS, DialogueForm, Prior, plan, possible, request_for
from models.shared.instructions import conclusion
from tests.eval import fakes

SCENES = {split: [make_sample(PRESETS["tiny"], split, index) for index in range(60)] for split in ("train", "test")}


class Talks:
    """The true reply to each request, changed by `answer`."""

    def __init__(
        self, samples: Sequence[Sample], answer: Callable[[str, str], tuple[str, bool]] = lambda request, reply: (reply, True)
    ) -> None:
        self.true, self.change = Oracle(samples), answer

    def reply(self, images: Sequence[np.ndarray], requests: Sequence[str]) -> list[Said]:
        known = [image if id(image) in self.true._known else None for image in images]
        replies = [
            self.true.reply([image], [text])[0].text if image is not None else "" for image, text in zip(known, requests, strict=True)
        ]
        return [Said(*self.change(text, reply)) for text, reply in zip(requests, replies, strict=True)]


def asked(answer: Callable[[str, str], tuple[str, bool]]) -> dict[str, float]:
    """Every measure of a model that replies so."""
    (task,) = plan(in_memory("scenes", SCENES))
    images, rows = [sample.image for sample in task.samples], range(len(task.samples))
    records = [record for some in task.ask(GeneratedReplies(Talks(task.samples, answer), 16), images, rows) for record in some]
    return {
        each.name: sum(record.get(each.name, 0.0) for record in records)
        / sum(record.get(each.weight, 0.0) if each.weight else 1.0 for record in records)
        for each in task.measures
    }


def test_true_replies_are_well_formed_and_true() -> None:
    found = asked(lambda request, reply: (reply, True))
    assert found == dict.fromkeys(("well formed", "true", *FORMS), 1) | {"cut off": 0, "repeating": 0}


@pytest.mark.parametrize(
    ("answer", "formed", "expected"),
    [
        (lambda request, reply: (reply, False), (), {"well formed": 0, "cut off": 1, "true": 1}),
        (lambda request, reply: (f"{reply} a red star, a red star", True), (), {"well formed": 0, "repeating": 1}),
        (lambda request, reply: ("nothing", True), ("word",), {"repeating": 0, "cut off": 0, "true": 0}),
        (lambda request, reply: ("7", True), ("number", "word"), {"true": 0}),
        (lambda request, reply: ("there is one very large object somewhere in it, so it is red.", True), ("description", "reasoning"), {}),
    ],
)
def test_what_is_wrong_with_a_reply_shows_where_it_belongs(answer: Any, formed: tuple[str, ...], expected: dict[str, float]) -> None:
    found = asked(answer)
    assert {metric: found[metric] for metric in expected} == expected
    assert {form: found[form] for form in FORMS} == {form: float(form in formed) for form in FORMS}


def test_of_a_reasoning_the_conclusion_counts(tmp_path: Path) -> None:
    (task,) = plan(in_memory("scenes", SCENES))
    row = next(row for row, request in enumerate(task.requests) if request.form == "reasoning")
    reply = task.requests[row].reply
    assert conclusion("the object above the moon is a red star, so it is red.") == "it is red"
    assert conclusion("no idea") == "no idea"
    for said, true in (
        (reply, 1),
        (f"whatever, so {conclusion(reply)}", 1),
        (reply.replace(", so", ", so it is not said that"), 0),
        ("", 0),
    ):
        assert task._record(row, Said(said, True))["true"] == true


def test_forms_take_turns_and_each_picture_has_one_request() -> None:
    (task,) = plan(in_memory("scenes", SCENES))
    found = Counter(request.form for request in task.requests)
    assert len(task.requests) == len(SCENES["test"])
    assert set(found) == set(FORMS)
    assert min(found.values()) >= 5  # not every picture allows a reasoning; then a description is asked for instead
    for number, sample in enumerate(task.samples):
        assert request_for(sample, number) in possible(sample)


def test_photos_are_asked_for_what_is_known_of_them() -> None:
    photos = [
        Sample(str(n), fakes.picture(n), captions=("a dog on a sofa",), questions=(Question("how many dogs?", "two"),)[: n % 2])
        for n in range(8)
    ]
    (task,) = plan(in_memory("photos", {"test": photos}))
    assert {request.form for request in task.requests[::2]} == {"description"}
    assert {request.form for request in task.requests} == {"description", "word"}
    records = [task._record(row, Said(request.reply, True)) for row, request in enumerate(task.requests)]
    assert all(record["well formed"] == 1 for record in records)
    assert all(("true" in record) == (record["form"] == "word") for record in records)  # nobody knows whether a description is
    assert task.chance() == []  # without training pictures
    assert plan(in_memory("nothing", {"test": [Sample("a", fakes.picture(0))]})) == []


def test_chance_is_the_most_frequent_reply_in_training() -> None:
    prior = Prior.of_samples(SCENES["train"])
    task = DialogueForm("test", SCENES["test"], prior)
    for request in task.requests:
        known = [each for sample in SCENES["train"] for each in possible(sample) if each.text == request.text]
        known = known or [each for sample in SCENES["train"] for each in possible(sample) if each.form == request.form]
        usual = Counter(each.reply for each in known)
        assert usual[prior.guess(request) or ""] == max(usual.values())
    records = [record for records in task.chance() for record in records]
    assert np.mean([record["well formed"] for record in records]) == 1
    assert np.mean([record["true"] for record in records]) < 0.7


def test_the_harness_shows_other_pictures_and_asks_the_oracle(tmp_path: Path) -> None:
    """Replies are judged by the truth about the sample, whatever is shown."""
    fresh = Talks(SCENES["test"], lambda request, reply: ("", False))
    result = fakes.run(Talks(SCENES["test"]), SCENES, tmp_path, tasks=["dialogue_form"], fresh=fresh)
    variants = ("model", "oracle", "shuffled images", "untrained")
    found = {variant: fakes.value(result, "dialogue_form", "true", variant) for variant in variants}
    assert (found["model"], found["oracle"], found["untrained"]) == (1, 1, 0)
    assert found["shuffled images"] < 0.8
    assert fakes.value(result, "dialogue_form", "well formed", "chance") == 1


def test_a_model_that_returns_too_few_replies_is_refused() -> None:
    class Short(Talks):
        def reply(self, images: Any, requests: Any) -> list[Said]:
            return super().reply(images, requests)[1:]

    (task,) = plan(in_memory("scenes", SCENES))
    with pytest.raises(ValueError, match="reply returned 59 replies to 60 requests"):
        task.ask(GeneratedReplies(Short(task.samples)), [sample.image for sample in task.samples], range(60))
