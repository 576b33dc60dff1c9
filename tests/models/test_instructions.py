"""Requests that need reasoning: their replies against the pictures' truth, and on objects whose places are known by hand."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.objects import direction, named
from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement, parse
from data.scenes.world import PRESETS
from models.shared.instructions import has_form, reasoning, repeats

BLANK = np.zeros((64, 64, 3), np.uint8)
PLACE = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


def thing(name: str, x: int, y: int, colour: str = "red", **attributes: str) -> Object:
    return Object(name, (x - 4, y - 4, x + 4, y + 4), {"colour": colour, **attributes})


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(300)]


def test_reasoning_is_true_of_the_pictures(samples: list[Sample]) -> None:
    """The first step is a relation of the truth about objects that are there, the second follows from their attributes."""
    found = Counter[str]()
    for sample in samples:
        by_name = {named(each): each for each in sample.objects}
        for request in reasoning(sample):
            match = re.fullmatch(r"the object (.+?) the (\w+ \w+) is an? (.+?)(?: and the (.+) is (\w+))?, so (.+)\.", request.reply)
            assert match is not None, request.reply
            phrase, other, seen, again, size, conclusion = match.groups()
            one, two = by_name[" ".join(seen.split()[-2:])], by_name[other]
            relation = [sample.objects.index(one), PLACE[phrase], sample.objects.index(two)]
            assert relation in [list(each) for each in sample.extra["relations"]], request
            assert sum(each[1:] == relation[1:] for each in map(list, sample.extra["relations"])) == 1, "another object is there, too"
            assert f"the object {phrase} the {other}" in request.text
            assert has_form(request.reply, "reasoning")
            assert not repeats(request.reply)
            if again is None:
                assert conclusion == f"it is {one.attributes['colour']}"
                found["colour"] += 1
            else:
                assert (again, size) == (other, two.attributes["size"])
                assert seen.split()[0] == one.attributes["size"]
                sizes = (one.attributes["size"], two.attributes["size"])
                larger = {("large", "small"): "it is larger", ("small", "large"): f"the {other} is larger"}
                assert conclusion == larger.get(sizes, "neither is larger")
                found[conclusion if "the " not in conclusion else "other"] += 1
    assert set(found) == {"colour", "it is larger", "other", "neither is larger"}
    assert min(found.values()) > 50


def test_an_object_is_named_only_if_its_name_and_its_place_are_its_own() -> None:
    star, moon = thing("star", 10, 10), thing("moon", 40, 12, "blue")
    found = {request.text for request in reasoning(Sample("a", BLANK, objects=(star, moon)))}
    assert found == {
        "what colour is the object to the left of the blue moon? explain.",
        "what colour is the object to the right of the red star? explain.",
    }
    assert reasoning(Sample("a", BLANK, objects=(star, moon, thing("star", 10, 50)))) == []  # two red stars
    above = thing("circle", 42, 40, "green")
    three = reasoning(Sample("a", BLANK, objects=(star, moon, above)))
    assert "what colour is the object above the green circle? explain." in {request.text for request in three}
    two_left = (thing("star", 10, 30), thing("moon", 20, 30, "blue"), thing("circle", 50, 30, "green"))
    asked = {request.text for request in reasoning(Sample("a", BLANK, objects=two_left))}
    assert not any("left of the green circle" in text for text in asked)
    assert any("left of the blue moon" in text for text in asked)


def test_what_is_not_known_is_not_asked() -> None:
    box = (0.0, 0.0, 4.0, 4.0)
    dog, cat = Object("dog", box), Object("cat", (20.0, 0.0, 24.0, 4.0), {"size": "large"})
    assert reasoning(Sample("a", BLANK, objects=(dog, cat))) == []
    sized = (replace(dog, attributes={"size": "huge"}), cat)
    assert all("neither" in request.reply for request in reasoning(Sample("a", BLANK, objects=sized)))
    assert reasoning(Sample("a", BLANK)) == []
    assert reasoning(Sample("a", BLANK, objects=(dog,))) == []
    assert reasoning(Sample("a", BLANK, objects=(replace(dog, name=""), replace(cat, name="")))) == []


@pytest.mark.parametrize(
    ("x", "y", "clear", "expected"),
    [(10, 0, 1.0, "right"), (-10, 4, 2.0, "left"), (-10, 6, 2.0, None), (3, -9, 2.0, "above"), (3, 9, 2.0, "below"), (0, 0, 1.0, None)],
)
def test_directions_are_of_the_boxes_centres(x: int, y: int, clear: float, expected: str | None) -> None:
    small, large = thing("star", 30 + x, 30 + y), Object("moon", (10.0, 10.0, 50.0, 50.0))
    assert direction(small, large, clear) == expected


def test_reasoning_says_nothing_that_a_caption_could_not(samples: list[Sample]) -> None:
    """Its grammar is that of captions, by which replies can be checked."""
    for sample in samples[:50]:
        for request in reasoning(sample):
            first = request.reply.split(", so")[0].split(" and the ")[0].split(" is ")[1]
            assert len(parse(first).objects) == 1
            assert agreement(f"{first}", sample) >= 0.5
