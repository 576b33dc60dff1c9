"""The pages: every text follows its rule, the rule shows in the earlier pairs only, and what is held out is held out."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data.loader import in_order
from data.sample import Sample
from data.scenes.build import make_sample, write_splits
from data.scenes.pages import (
    COUNTS,
    LENGTHS,
    NAMED,
    NAMED_HELD_OUT,
    SPLITS,
    UNRELATED_TEXTS,
    WORDS,
    WORDS_HELD_OUT,
    Change,
    Naming,
    View,
    Whether,
    Words,
    counts,
    infer,
    page,
    page_sample,
    pairs_of,
    views_of,
)
from data.scenes.world import HELD_OUT, PRESETS, TONES
from data.shards import find

TINY = PRESETS["tiny"]
COUNT = 150


@cache
def pages(split: str) -> tuple[Sample, ...]:
    return tuple(page(TINY, split, index) for index in range(COUNT))


def view(colour: str, shape: str, *, size: str = "large", fill: str = "solid", tone: str = "dark", place: str = "top left") -> View:
    from data.sample import Object

    return View((Object(shape, (0, 0, 1, 1), {"colour": colour, "size": size, "fill": fill, "place": place}),), tone)


RED_STAR, BLUE_STAR, RED_MOON = view("red", "star"), view("blue", "star"), view("red", "moon")


def test_what_the_rules_say() -> None:
    assert Naming(("colour",)).text([RED_STAR]) == "red"
    assert Naming(("shape", "colour")).text([RED_MOON, BLUE_STAR]) == "star blue"
    assert Naming(("count",)).text([View(RED_STAR.objects * 3, "dark")]) == "three"
    assert Naming(("tone",)).text([view("red", "star", tone="light")]) == "light"
    assert Words("colour", (("red", "dax"), ("blue", "wug"))).text([BLUE_STAR]) == "wug"
    assert Words("side", (("left", "dax"),)).text([view("red", "star", place="bottom")]) is None
    assert [Whether("shape", "moon").text([each]) for each in (RED_STAR, RED_MOON)] == ["no", "yes"]
    assert Change().text([RED_STAR]) == "large solid red star"
    assert Change().text([RED_STAR, BLUE_STAR]) == "blue"
    assert Change().text([RED_STAR, RED_STAR]) is None


def test_what_can_be_inferred_from_the_earlier_pairs() -> None:
    assert infer([RED_STAR, BLUE_STAR, RED_MOON], ["red", "blue"]) == "red"
    assert infer([RED_STAR, BLUE_STAR, RED_MOON], ["star", "star"]) == "moon"
    assert infer([RED_STAR, BLUE_STAR, RED_MOON], ["red star", "click to enlarge"]) == "red moon"
    assert infer([RED_STAR, BLUE_STAR, view("blue", "moon")], ["dax", "wug"]) == "wug"
    assert infer([RED_MOON, RED_STAR, BLUE_STAR], ["no", "yes"]) == "yes"
    assert infer([RED_STAR, BLUE_STAR, view("blue", "moon")], ["large solid red star", "blue"]) == "moon"
    with pytest.raises(ValueError, match="a text for each picture but the last"):
        infer([RED_STAR], ["red"])
    assert infer([View((), "dark"), View((), "light")], ["dark"]) == "light"  # nothing was recognised


@pytest.mark.parametrize("split", ["train", *SPLITS])
def test_every_text_follows_its_rule_or_is_said_not_to(split: str) -> None:
    for sample in pages(split):
        views, pairs = views_of(sample), pairs_of(sample)
        assert [place for place, _ in pairs] == list(range(len(sample.images))) == list(range(len(views)))
        assert views[0].objects == sample.objects
        texts = [text for _, text in pairs]
        unrelated = sample.extra["unrelated"]
        assert all((text in UNRELATED_TEXTS) == (place in unrelated) for place, text in enumerate(texts))
        if split == "train":
            continue
        assert not unrelated
        assert len(texts) == max(LENGTHS)
        kind, _, rest = sample.extra["rule"].partition(" ")
        if kind == "naming":
            assert all(Naming(tuple(rest.split())).text([each]) == text for each, text in zip(views, texts, strict=True))
        if kind == "change":
            assert all(Change().text(views[: place + 1]) == text for place, text in enumerate(texts))


@pytest.mark.parametrize("split", SPLITS)
def test_only_earlier_pairs_reveal_the_rule(split: str) -> None:
    """The oracle cannot answer at first and can later: from place 1 on where attributes are named, from place 2 on for words."""
    right = np.zeros((COUNT, max(LENGTHS)))
    for row, sample in enumerate(pages(split)):
        views, texts = views_of(sample), [text for _, text in pairs_of(sample)]
        right[row] = [infer(views[: place + 1], texts[:place]) == texts[place] for place in range(len(texts))]
    assert right[:, 0].mean() < 0.15
    assert right[:, 4].mean() > 0.8  # two words may tell two colours apart, or two sides
    naming = [sample.extra["rule"].startswith("naming") for sample in pages(split)]
    if any(naming):
        assert right[naming, 1:].mean() > 0.97


def test_rules_and_words_are_held_out() -> None:
    rules = {split: {sample.extra["rule"] for sample in pages(split)} for split in ("train", *SPLITS)}
    held_out = {Naming(attributes).name for attributes in NAMED_HELD_OUT}
    assert rules["rule_heldout"] == held_out
    assert not held_out & (rules["train"] | rules["pages"])
    assert {Naming(attributes).name for attributes in NAMED} <= rules["train"]
    words = {split: {word for s in pages(split) for text in s.texts for word in text.split()} for split in ("train", *SPLITS)}
    assert set(WORDS_HELD_OUT) <= words["word_heldout"]
    assert not set(WORDS_HELD_OUT) & (words["train"] | words["pages"] | words["rule_heldout"])
    assert set(WORDS) <= words["train"]
    assert not set(WORDS) & words["word_heldout"]


def test_training_pages_differ_as_pages_do() -> None:
    training = [page(TINY, "train", index) for index in range(600)]
    assert set(Counter(len(sample.images) for sample in training)) == set(LENGTHS)
    assert np.mean([sample.extra["before"] for sample in training]) == pytest.approx(0.25, abs=0.06)
    assert all(isinstance(sample.page[0], str) == sample.extra["before"] for sample in training)
    unrelated = sum(len(sample.extra["unrelated"]) for sample in training) / sum(len(sample.images) for sample in training)
    assert unrelated == pytest.approx(0.1, abs=0.03)


def test_pictures_have_no_pair_that_training_lacks_and_captions_are_about_the_first() -> None:
    for split in ("train", *SPLITS):
        for sample in pages(split)[:40]:
            shown = {(thing.attributes["colour"], thing.name) for each in views_of(sample) for thing in each.objects}
            assert not shown & HELD_OUT
            assert {each.tone for each in views_of(sample)} <= set(TONES)
            assert len(sample.captions) == 5
            assert all(image.shape == sample.image.shape for image in sample.images)


def test_the_other_samples_are_those_of_scenes() -> None:
    for index in range(9):
        made = page_sample(TINY, "train", index)
        assert made.key == f"{index:08d}"
        assert bool(made.page) == (index % 3 == 2)
        if not made.page:
            scene = make_sample(TINY, "train", index - index // 3)
            assert (made.captions, made.questions, made.extra) == (scene.captions, scene.questions, scene.extra)
            assert np.array_equal(made.image, scene.image)
    assert page_sample(TINY, "test", 3).captions == make_sample(TINY, "test", 3).captions
    assert counts("tiny")["train"] == 30_000
    assert counts("tiny")["pages"] == COUNTS["tiny"]
    assert {name: count for name, count in counts("tiny").items() if name not in ("train", *SPLITS)} == {
        name: count for name, count in TINY.samples.items() if name != "train"
    }


def test_the_same_seed_gives_the_same_pages_and_another_others() -> None:
    one, again, other = (page(TINY, "pages", 5, seed) for seed in (0, 0, 1))
    assert one.page == again.page
    assert all(map(np.array_equal, one.images, again.images))
    assert one.page != other.page or not np.array_equal(one.image, other.image)


def test_pages_are_written_as_one_record_each(tmp_path: Path) -> None:
    write_splits(tmp_path, "pages-tiny", "tiny", page_sample, workers=1, samples={"train": 6, "pages": 2})
    for split, made in (("train", [page_sample(TINY, "train", index) for index in range(6)]), ("pages", list(pages("pages")[:2]))):
        found = [sample for batch in in_order(find(tmp_path, split), batch_size=4) for sample in batch]
        assert [each.page for each in found] == [each.page for each in made]
        assert [len(each.images) for each in found] == [len(each.images) for each in made]
        assert [each.extra for each in found] == [each.extra for each in made]
        assert views_of(found[2 if split == "train" else 0]) == views_of(made[2 if split == "train" else 0])
