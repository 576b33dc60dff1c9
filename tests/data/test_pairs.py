"""The split "pairs": the same words, two pictures, one exchange."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement, parse
from data.scenes.pairs import KINDS
from data.scenes.world import HELD_OUT, PRESETS

Couple = tuple[Sample, Sample]


@pytest.fixture(scope="module")
def couples() -> list[Couple]:
    samples = [make_sample(PRESETS["tiny"], "pairs", index) for index in range(400)]
    return list(zip(samples[::2], samples[1::2], strict=True))


def test_partners_name_each_other_and_every_kind_is_there(couples: list[Couple]) -> None:
    assert all(a.extra["pair"] == b.key and b.extra["pair"] == a.key for a, b in couples)
    counts = Counter(a.extra["kind"] for a, _ in couples)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 0.15 * len(couples)
    assert all(a.extra["kind"] == b.extra["kind"] for a, b in couples)


def test_captions_have_the_same_words_and_are_true_of_their_own_picture_only(couples: list[Couple]) -> None:
    for a, b in couples:
        (own,), (others,) = a.captions, b.captions
        assert own != others
        assert Counter(own.replace(",", "").split()) == Counter(others.replace(",", "").split())
        assert agreement(own, a) == agreement(others, b) == 1
        assert agreement(own, b) < 1
        assert agreement(others, a) < 1


def test_pictures_differ_in_the_exchange_alone(couples: list[Couple]) -> None:
    for a, b in couples:
        assert all(a.extra[name] == b.extra[name] for name in ("tone", "texture"))
        outside = np.ones(a.image.shape[:2], bool)
        for left, top, right, bottom in (thing.box for sample in (a, b) for thing in sample.objects[:2]):
            outside[int(top) : int(bottom), int(left) : int(right)] = False
        assert (a.image == b.image)[outside].all()
        assert (a.image != b.image).any()
        assert a.objects[2:] == b.objects[2:]
        for attribute in ("colour", "size", "fill"):
            found = [[thing.attributes[attribute] for thing in sample.objects[:2]] for sample in (a, b)]
            assert found[1] == (found[0][::-1] if a.extra["kind"].endswith(attribute) else found[0])


def test_pairs_ask_for_no_new_combination(couples: list[Couple]) -> None:
    seen = {(said["colour"], said["shape"]) for couple in couples for sample in couple for said in parse(sample.captions[0]).objects}
    assert not seen & HELD_OUT
    assert len(seen) > 40


def test_neither_order_of_mention_nor_place_in_the_pair_tells_who_is_who(couples: list[Couple]) -> None:
    """Of colour swaps: how often the object named first is the one further left, and has the first colour of the alphabet."""
    swaps = [a for a, _ in couples if a.extra["kind"] == "swap_attribute_colour"]
    left = [sample.objects[0].box[0] < sample.objects[1].box[0] for sample in swaps]
    early = [sample.objects[0].attributes["colour"] < sample.objects[1].attributes["colour"] for sample in swaps]
    assert 0.3 < np.mean(left) < 0.7
    assert 0.3 < np.mean(early) < 0.7
    relations = Counter(parse(a.captions[0]).relations[0][1] for a, _ in couples if a.extra["kind"] == "swap_relation")
    assert set(relations) == {"left", "right", "above", "below"}
