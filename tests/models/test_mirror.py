"""A mirrored sample is true of its mirrored picture."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from data.sample import Foil, Object, Question, Sample, to_record
from data.scenes.build import make_sample
from data.scenes.language import agreement, answer
from data.scenes.world import PRESETS
from models.shared.mirror import exchanged, mirrored


@cache
def scenes() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(300)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red star to the left of a moon", "a red star to the right of a moon"),
        ("the right one is left of the left one", "the left one is right of the right one"),
        ("left", "right"),
        ("Left, RIGHT. (left)", "Right, LEFT. (right)"),
        ("the leftmost, the left-hand and the left's", "the rightmost, the right-hand and the right's"),
        ("it points rightwards, the righthand one leftward", "it points leftwards, the lefthand one rightward"),
        ("a bright light, brightly lit; copyright, rightly; lefty", "a bright light, brightly lit; copyright, rightly; lefty"),
        ("above and below", "above and below"),
        ("", ""),
    ],
)
def test_sides_are_exchanged(text: str, expected: str) -> None:
    assert exchanged(text) == expected
    assert exchanged(expected) == text


def test_pictures_and_boxes_are_mirrored() -> None:
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    sample = Sample("key", image, objects=(Object("left shoe", (0.5, 0.0, 2.0, 2.0), {"place": "left", "colour": "red"}),))
    found = mirrored(sample)
    for column in range(5):
        assert np.array_equal(found.image[:, column], image[:, 4 - column])
    assert found.objects == (Object("right shoe", (3.0, 0.0, 4.5, 2.0), {"place": "right", "colour": "red"}),)
    assert (found.image[:, 3:] == image[:, 1::-1]).all()  # inside of the box is what was inside of it
    assert found.image.flags.c_contiguous
    assert found.image.dtype == np.uint8


def test_every_text_is_exchanged() -> None:
    sample = Sample(
        "key",
        np.zeros((2, 2, 3), np.uint8),
        captions=("on the left", "in the middle"),
        label="turn left",
        questions=(Question("is it on the left?", "on the left", "open", ("left", "Left side")),),
        foils=(Foil("a left of b", "a right of b", "replace_relation"),),
        extra={"relations": [[0, "left", 1]], "url": "https://example.org/left.jpg", "place": "right", "more": {"side": "left"}, "n": 3},
    )
    found = mirrored(sample)
    assert found.captions == ("on the right", "in the middle")
    assert found.label == "turn right"
    assert found.questions == (Question("is it on the right?", "on the right", "open", ("right", "Right side")),)
    assert found.foils == (Foil("a right of b", "a left of b", "replace_relation"),)
    assert found.extra == {
        "relations": [[0, "right", 1]],
        "url": "https://example.org/left.jpg",
        "place": "left",
        "more": {"side": "right"},
        "n": 3,
    }


def test_twice_is_not_at_all() -> None:
    for sample in scenes()[:50]:
        found = mirrored(mirrored(sample))
        assert np.array_equal(found.image, sample.image)
        assert (found.key, to_record(found)) == (sample.key, to_record(sample))


def test_what_was_true_of_a_scene_is_true_of_the_mirrored_one() -> None:
    """By the oracle; without the exchange a seventh of the captions would be false."""
    sides = wrong = 0
    for sample in scenes():
        found = mirrored(sample)
        assert [agreement(caption, found) for caption in found.captions] == [1.0] * len(found.captions)
        wrong += sum(agreement(caption, found) < 1 for caption in sample.captions)
        for question in found.questions:
            assert answer(question.question, found.objects, found.extra["relations"]) == question.answer
            sides += question.answer in ("left", "right")
    assert sides > 30
    assert wrong > 0.05 * 5 * len(scenes())


def test_a_page_is_mirrored_as_a_whole() -> None:
    one, two = (np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + shift for shift in (0, 100))
    page = Sample("0", one, others=(two,), page=(0, "the star on the left", 1, "Right of it"))
    found = mirrored(page)
    assert np.array_equal(found.others[0], two[:, ::-1])
    assert found.page == (0, "the star on the right", 1, "Left of it")
