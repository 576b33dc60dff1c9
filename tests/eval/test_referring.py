"""Boxes by hand: exact, shifted, constant, none; the best constant box by brute force; and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.objects import Box, overlap
from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.harness.source import in_memory
from eval.scenes.oracle import Oracle
from eval.tasks.referring import Referring, best_constant, plan
from tests.eval import fakes


def sample(number: int, *things: Object) -> Sample:
    image = np.zeros((40, 80, 3), np.uint8)
    image[0, 0] = number % 256, number // 256, 7
    return Sample(str(number), image, objects=things)


STAR, MOON = Object("star", (0, 0, 10, 10), {"colour": "red"}), Object("moon", (40, 20, 60, 30))
SAMPLES = [sample(0, STAR, MOON), sample(1, STAR, STAR, MOON), sample(2, Object("dog", (8, 4, 16, 12))), sample(3, STAR, STAR), sample(4)]
TRUE: dict[tuple[int, str], Box] = {
    (0, "the red star"): (0, 0, 10, 10),
    (0, "the moon"): (40, 20, 60, 30),
    (1, "the moon"): (40, 20, 60, 30),
    (2, "the dog"): (8, 4, 16, 12),
}


class Finds:
    """The true box changed by `answer`, of pictures that it knows; None otherwise."""

    def __init__(self, answer: Callable[[Box], Box | None] = lambda box: box) -> None:
        self.answer, self.asked = answer, list[tuple[int, str]]()

    def locate(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[Box | None]:
        found: list[Box | None] = []
        for image, phrase in zip(images, phrases, strict=True):
            key = fakes.number_of(image), phrase
            self.asked.append(key)
            found.append(self.answer(TRUE[key]) if key in TRUE else None)
        return found


def evaluated(model: Any, out: Path, samples: list[Sample] = SAMPLES) -> dict[str, Any]:
    return fakes.run(model, {"test": samples}, out, tasks=["referring"], fresh=Finds(lambda box: None))


def value(result: dict[str, Any], metric: str, variant: str = "model") -> float:
    return fakes.value(result, "referring", metric, variant)


def test_only_objects_with_a_name_of_their_own_are_asked_for(tmp_path: Path) -> None:
    model = Finds()
    result = evaluated(model, tmp_path)
    assert set(TRUE) <= set(model.asked)
    assert {phrase for _, phrase in model.asked} == {"the red star", "the moon", "the dog"}
    assert (value(result, "accuracy"), value(result, "overlap"), value(result, "no box")) == (1, 1, 0)


@pytest.mark.parametrize(
    ("answer", "accuracy", "shared", "none"),
    [
        (lambda box: None, 0, 0, 1),
        (lambda box: (box[0], box[1], box[2], (box[1] + box[3]) / 2), 0, 0.5, 0),  # exactly a half is not more than a half
        (lambda box: (box[0], box[1], box[2], box[1] + 0.6 * (box[3] - box[1])), 1, 0.6, 0),
        (lambda box: (70, 30, 75, 35), 0, 0, 0),
        (lambda box: box if box[0] == 0 else None, 0.25, 0.25, 0.75),
    ],
)
def test_more_than_half_has_to_overlap(answer: Any, accuracy: float, shared: float, none: float, tmp_path: Path) -> None:
    result = evaluated(Finds(answer), tmp_path)
    found = value(result, "accuracy"), value(result, "overlap"), value(result, "no box")
    assert found == pytest.approx((accuracy, shared, none), abs=1e-9)
    assert value(result, "accuracy", "blank images") == 0


def test_chance_is_the_best_constant_box(tmp_path: Path) -> None:
    """In shares of the sides, whatever the pictures' size; here moons are half of all objects."""
    result = evaluated(Finds(), tmp_path)
    assert value(result, "accuracy", "chance") == pytest.approx(0.5)
    assert best_constant(SAMPLES) == (0.5, 0.5, 0.75, 0.75)
    large = Sample("l", np.zeros((400, 800, 3), np.uint8), objects=(Object("moon", (400, 200, 600, 300)),))
    task = Referring("test", [large], best_constant(SAMPLES))
    assert task.chance()[0][0]["overlap"] == 1


def test_the_constant_box_is_that_of_training_pictures_and_the_best_of_theirs() -> None:
    scenes = {split: [make_sample(PRESETS["tiny"], split, index) for index in range(60)] for split in ("train", "test")}
    (task,) = plan(in_memory("scenes", scenes))
    things = [thing.box for each in scenes["train"] for thing in each.objects]
    constant = tuple(64 * side for side in task.constant)
    right = [sum(overlap(one, other) > 0.5 for other in things) for one in things]  # names are unique in scenes
    assert constant == things[right.index(max(right))]
    accuracy = np.mean([record["accuracy"] for records in task.chance() for record in records])
    assert 0 < accuracy < 0.2


def test_the_oracle_finds_all_and_pictures_without_objects_are_not_asked_about(tmp_path: Path) -> None:
    scenes = [make_sample(PRESETS["tiny"], "test", index) for index in range(20)]
    (task,) = plan(in_memory("scenes", {"test": scenes}))
    oracle = Oracle(scenes)
    for each, things in zip(task.samples, task.things, strict=True):
        for thing in things:
            assert oracle.locate([each.image], [f"the {thing.attributes['colour']} {thing.name}"]) == [thing.box]
    assert oracle.locate([scenes[0].image], ["the unicorn"]) == [None]
    assert plan(in_memory("fakes", {"test": [sample(4), sample(3, STAR, STAR)]})) == []


def test_a_model_that_returns_too_few_boxes_is_refused(tmp_path: Path) -> None:
    class Short(Finds):
        def locate(self, images: Any, phrases: Any) -> list[Box | None]:
            return super().locate(images, phrases)[1:]

    with pytest.raises(ValueError, match="locate returned 3 boxes for 4 phrases"):
        evaluated(Short(), tmp_path)


def test_empty_boxes_overlap_nothing() -> None:
    for one, other in product([(0, 0, 0, 0), (5, 5, 5, 9)], repeat=2):
        assert overlap(one, other) == 0
