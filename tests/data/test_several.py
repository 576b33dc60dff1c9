"""Requests about several pictures: replies by hand, all of them true, none from one picture alone, balanced, and written and read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data.dialogues import turns_of
from data.loader import in_order
from data.sample import Object, Sample
from data.scenes.build import make_sample, write_splits
from data.scenes.language import ATTRIBUTES
from data.scenes.pages import View, views_of
from data.scenes.several import (
    COUNTS,
    IN_A_WORD,
    ODD,
    SPLIT,
    WHAT,
    WHICH,
    counts,
    difference,
    respond,
    several,
    several_sample,
)
from data.scenes.world import HELD_OUT, PRESETS
from data.shards import find

TINY = PRESETS["tiny"]
COUNT = 400


@cache
def samples(split: str) -> tuple[Sample, ...]:
    return tuple(several(TINY, split, index) for index in range(COUNT))


def thing(colour: str, shape: str, x: int, y: int, *, size: str = "large", fill: str = "solid") -> Object:
    return Object(shape, (x - 5, y - 5, x + 5, y + 5), {"colour": colour, "size": size, "fill": fill, "place": "middle"})


def view(*things: Object) -> View:
    return View(things, "dark")


ONE = view(thing("red", "star", 10, 20), thing("blue", "moon", 50, 22, size="small"), thing("green", "cross", 30, 50))


def test_what_is_different_by_hand() -> None:
    """In whatever order the objects are named."""
    third = ONE.objects[2]
    cases = {
        "colour": (
            view(thing("red", "moon", 50, 22, size="small"), third, thing("blue", "star", 10, 20)),
            "the colours: first a red star and a blue moon, then a blue star and a red moon.",
        ),
        "size": (
            view(third, thing("red", "star", 10, 20, size="small"), thing("blue", "moon", 50, 22)),
            "the sizes: first a large red star and a small blue moon, then a small red star and a large blue moon.",
        ),
        "place": (
            view(thing("blue", "moon", 10, 20, size="small"), thing("red", "star", 50, 22), third),
            "the places: first the red star is to the left of the blue moon, then to the right of it.",
        ),
    }
    for kind, (other, said) in cases.items():
        assert difference(ONE, other) == (kind, said)
        assert respond(IN_A_WORD, [ONE, other]) == kind
        assert respond(WHAT, [ONE, other]) == said


def test_what_has_no_clear_difference_has_no_reply() -> None:
    assert difference(ONE, ONE) is None
    assert difference(ONE, view(*ONE.objects[:2])) is None
    assert difference(view(), view()) is None
    recoloured = view(thing("pink", "star", 10, 20), *ONE.objects[1:])  # one object alone
    assert difference(ONE, recoloured) is None
    both = view(thing("pink", "star", 10, 20), thing("cyan", "moon", 50, 22, size="small"), ONE.objects[2])  # changed, not exchanged
    assert difference(ONE, both) is None
    assert respond(WHAT, [ONE]) is None
    assert respond("what is it?", [ONE, ONE]) is None


def test_which_picture_by_hand() -> None:
    other = view(thing("blue", "star", 10, 20), thing("red", "moon", 50, 22, size="small"), ONE.objects[2])
    asked = {
        "a red star": "picture 1",
        "a large red star": "picture 1",
        "a solid red moon": "picture 2",
        "a red star to the left of a blue moon": "picture 1",
        "a green cross": None,
        "a pink arrow": None,
    }
    assert {phrase: respond(WHICH.format(phrase), [ONE, other]) for phrase in asked} == asked


def test_the_odd_one_by_hand() -> None:
    red, blue, small = (
        view(thing("red", "star", 9, 9)),
        view(thing("blue", "star", 30, 9)),
        view(thing("red", "star", 20, 20, size="small")),
    )
    assert respond(ODD, [red, blue, red]) == "picture 2: the colour is blue, not red."
    assert respond(ODD, [red, red, small]) == "picture 3: the size is small, not large."
    assert respond(ODD, [red, red, red]) is None
    assert respond(ODD, [red, blue, small]) is None  # two are odd
    assert respond(ODD, [red, blue]) is None
    assert respond(ODD, [red, view(), red]) is None


@pytest.mark.parametrize("split", ["train", SPLIT])
def test_every_reply_is_true_and_takes_all_pictures(split: str) -> None:
    for sample in samples(split):
        views, turns, kinds = views_of(sample), turns_of(sample), sample.extra["kinds"]
        assert len(views) == len(sample.images) == (3 if kinds == ["odd"] else 2)
        assert sorted(kinds) in (["odd"], ["difference", "in a word", "which"])
        for request, reply in turns:
            assert respond(request, views) == reply != ""
            assert respond(request, [views[0]] * len(views)) is None
            assert respond(request, [views[-1]] * len(views)) is None
            if request == IN_A_WORD:
                assert respond(request, views[::-1]) == reply
            elif request != ODD:  # the order counts
                assert respond(request, views[::-1]) not in (reply, None)
        if len(views) == 2:
            _one_exchange(views, dict(turns)[IN_A_WORD])


def _one_exchange(views: list[View], kind: str) -> None:
    """The exchange, looked up without `difference`: all that is not exchanged is the same in both pictures."""
    one, other = ({(each.name, *each.attributes.values()) for each in view.objects} for view in views)
    plain = [[{name: _value(each, name) for name in ATTRIBUTES} for each in view.objects] for view in views]
    if kind == "place":
        assert {tuple(each.values()) for each in plain[0]} == {tuple(each.values()) for each in plain[1]}
        return
    assert one != other
    rest = [sorted(tuple(value for name, value in each.items() if name != kind) for each in objects) for objects in plain]
    assert rest[0] == rest[1]
    values = [sorted(each[kind] for each in objects) for objects in plain]
    assert values[0] == values[1]


def _value(each: Object, name: str) -> str:
    return each.name if name == "shape" else each.attributes[name]


def test_replies_are_balanced() -> None:
    """So that nobody guesses them without the pictures."""
    replies: dict[str, Counter[str]] = {}
    for sample in (*samples("train"), *samples(SPLIT)):
        for (_, reply), kind in zip(turns_of(sample), sample.extra["kinds"], strict=True):
            replies.setdefault(kind, Counter())[reply.split(":")[0]] += 1
    shares = {kind: {said: count / found.total() for said, count in found.items()} for kind, found in replies.items()}
    assert shares["in a word"] == pytest.approx(dict.fromkeys(("colour", "size", "fill", "place"), 0.25), abs=0.06)
    assert shares["which"] == pytest.approx({"picture 1": 0.5, "picture 2": 0.5}, abs=0.06)
    assert shares["odd"] == pytest.approx({"picture 1": 1 / 3, "picture 2": 1 / 3, "picture 3": 1 / 3}, abs=0.09)
    assert sum("odd" in sample.extra["kinds"] for sample in samples("train")) / COUNT == pytest.approx(0.3, abs=0.07)


def test_pictures_have_no_pair_that_training_lacks_and_the_other_fields_are_about_the_first() -> None:
    for sample in samples(SPLIT)[:60]:
        assert not {(each.attributes["colour"], each.name) for view in views_of(sample) for each in view.objects} & HELD_OUT
        assert views_of(sample)[0].objects == sample.objects
        assert len(sample.captions) == 5
        assert sample.page[: len(sample.images)] == tuple(range(len(sample.images)))


def test_the_other_samples_are_those_of_scenes() -> None:
    for index in range(9):
        made = several_sample(TINY, "train", index)
        assert made.key == f"{index:08d}"
        assert bool(turns_of(made)) == (index % 3 == 2)
        if not made.page:
            scene = make_sample(TINY, "train", index - index // 3)
            assert (made.captions, made.questions, made.extra) == (scene.captions, scene.questions, scene.extra)
            assert np.array_equal(made.image, scene.image)
            assert turns_of(made) == []
    assert several_sample(TINY, "test", 3).captions == make_sample(TINY, "test", 3).captions
    assert counts("tiny") == TINY.samples | {"train": 30_000, SPLIT: COUNTS["tiny"]}


def test_they_are_written_and_read(tmp_path: Path) -> None:
    write_splits(tmp_path, "several-tiny", "tiny", several_sample, workers=1, samples={"train": 6, SPLIT: 3})
    for split, made in (("train", [several_sample(TINY, "train", index) for index in range(6)]), (SPLIT, list(samples(SPLIT)[:3]))):
        found = [sample for batch in in_order(find(tmp_path, split), batch_size=4) for sample in batch]
        assert [turns_of(each) for each in found] == [turns_of(each) for each in made]
        assert [len(each.images) for each in found] == [len(each.images) for each in made]
        assert [each.extra for each in found] == [each.extra for each in made]


def test_the_same_seed_gives_the_same_and_another_others() -> None:
    one, again, other = (several(TINY, SPLIT, 5, seed) for seed in (0, 0, 1))
    assert one.page == again.page
    assert all(map(np.array_equal, one.images, again.images))
    assert one.page != other.page or not np.array_equal(one.image, other.image)


def test_foreign_samples_have_no_conversation() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert turns_of(Sample("a", image)) == []
    assert turns_of(Sample("a", image, extra={"kinds": "some"})) == []
    assert turns_of(replace(samples(SPLIT)[0], page=(0, 1, "a request without a reply"))) == []
