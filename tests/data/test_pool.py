"""The polluted pool: what is said to be wrong with a sample is, nothing else is, and the same seed gives the same pool."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data.loader import in_order
from data.sample import Sample
from data.scenes.build import make_sample, write_splits
from data.scenes.language import agreement, parse
from data.scenes.pool import SHARES, noise_of, polluted_sample
from data.scenes.world import HELD_OUT, PRESETS
from data.shards import find

COUNT = 300


@cache
def pool(seed: int = 0) -> tuple[Sample, ...]:
    return tuple(polluted_sample(PRESETS["tiny"], "train", index, seed) for index in range(COUNT))


def of_kind(kind: str) -> list[tuple[Sample, Sample]]:
    """The samples of the pool, each beside that of scenes."""
    found = [(each, make_sample(PRESETS["tiny"], "train", index)) for index, each in enumerate(pool()) if each.extra["noise"] == kind]
    assert len(found) > 10
    return found


def test_every_kind_has_its_share() -> None:
    counts = Counter(noise_of(index, 0) for index in range(20_000))
    assert sum(SHARES.values()) == 100
    for kind, share in SHARES.items():
        assert counts[kind] / 20_000 == pytest.approx(share / 100, abs=0.01)


def test_the_truth_is_in_every_sample() -> None:
    assert [each.extra["noise"] for each in pool()] == [noise_of(index, 0) for index in range(COUNT)]
    assert [each.key for each in pool()] == [f"{index:08d}" for index in range(COUNT)]


def test_clean_samples_are_those_of_scenes() -> None:
    for ours, scene in of_kind("clean"):
        assert ours.captions == scene.captions
        assert (ours.image == scene.image).all()
        assert ours.extra == scene.extra | {"noise": "clean"}


@pytest.mark.parametrize("kind", ["swapped", "attribute"])
def test_wrong_captions_are_all_false_and_the_picture_is_that_of_the_scene(kind: str) -> None:
    for ours, scene in of_kind(kind):
        assert len(ours.captions) == 5
        assert all(agreement(caption, scene) < 1 for caption in ours.captions)
        assert (ours.image == scene.image).all()
        assert (ours.objects, ours.questions, ours.foils) == (scene.objects, scene.questions, scene.foils)


def test_one_wrong_attribute_is_one() -> None:
    """The canonical caption names every attribute: one word of it is not true, and no held-out pair is shown to training."""
    for ours, scene in of_kind("attribute"):
        said = [tuple(each[name] for name in ("size", "fill", "colour", "shape")) for each in parse(ours.captions[0]).objects]
        true = [(*(each.attributes[n] for n in ("size", "fill", "colour")), each.name) for each in scene.objects]
        assert len(said) == len(true)
        wrong = list((Counter(said) - Counter(true)).elements())
        missed = list((Counter(true) - Counter(said)).elements())
        assert len(wrong) == len(missed) == 1
        assert sum(a != b for a, b in zip(wrong[0], missed[0], strict=True)) == 1
        assert not {(colour, shape) for _, _, colour, shape in said} & HELD_OUT


def test_no_caption_of_the_pool_has_a_held_out_pair() -> None:
    named = {(each.get("colour"), each.get("shape")) for sample in pool() for text in sample.captions for each in parse(text).objects}
    assert not named & HELD_OUT


def test_boilerplate_says_nothing_of_the_picture() -> None:
    for ours, scene in of_kind("boilerplate"):
        (caption,) = ours.captions
        assert not parse(caption).objects
        assert (ours.image == scene.image).all()


def test_blurred_pictures_lose_their_edges_and_keep_their_captions() -> None:
    for ours, scene in of_kind("blurred"):
        assert ours.captions == scene.captions
        steps = [np.abs(np.diff(image.astype(int), axis=0)).max() for image in (ours.image, scene.image)]
        assert steps[0] < 0.5 * steps[1]
        assert ours.image.mean() == pytest.approx(scene.image.mean(), abs=3)


def test_duplicates_are_of_clean_samples_before_them() -> None:
    exact = 0
    for ours, _ in of_kind("duplicate"):
        first = pool()[int(ours.extra["of"])]
        assert first.key < ours.key
        assert first.extra["noise"] == "clean"
        assert ours.captions == first.captions
        exact += bool((ours.image == first.image).all())
        moves = {(mine.box[0] - its.box[0], mine.box[1] - its.box[1]) for mine, its in zip(ours.objects, first.objects, strict=True)}
        ((dx, dy),) = moves
        assert max(abs(dx), abs(dy)) <= 1
        moved = np.roll(first.image, (int(dy), int(dx)), axis=(0, 1)).astype(int)
        brighter = (ours.image - moved)[2:-2, 2:-2][(moved[2:-2, 2:-2] > 10) & (moved[2:-2, 2:-2] < 245)]
        assert brighter.min() == brighter.max()
    assert 0.2 < exact / len(of_kind("duplicate")) < 0.8


@pytest.mark.parametrize("split", ["val", "test", "heldout", "style", "pairs"])
def test_other_splits_are_those_of_scenes(split: str) -> None:
    for index in range(10):
        ours, scene = polluted_sample(PRESETS["tiny"], split, index), make_sample(PRESETS["tiny"], split, index)
        assert (ours.image == scene.image).all()
        assert (ours.captions, ours.extra) == (scene.captions, scene.extra)


def test_the_seed_decides() -> None:
    for index in (7, 3, 5):
        again = polluted_sample(PRESETS["tiny"], "train", index)
        assert (again.image == pool()[index].image).all()
        assert again.captions == pool()[index].captions
    assert [each.extra["noise"] for each in pool(1)] != [each.extra["noise"] for each in pool()]


def test_larger_pictures_are_as_blurred() -> None:
    """At 128 px by twice the standard deviation: edges are half as steep again."""
    index = next(index for index in range(100) if noise_of(index, 0) == "blurred")
    steps = {}
    for name in ("tiny", "small"):
        image = polluted_sample(PRESETS[name], "train", index).image.astype(int)
        sharp = make_sample(PRESETS[name], "train", index).image.astype(int)
        steps[name] = np.abs(np.diff(image, axis=0)).max() / np.abs(np.diff(sharp, axis=0)).max()
    assert steps["small"] < 0.8 * steps["tiny"] or steps["small"] < 0.3


def test_a_pool_is_written_with_its_name_and_truth(tmp_path: Path) -> None:
    write_splits(tmp_path, "pool-tiny", "tiny", polluted_sample, workers=1, samples={"train": 30, "test": 10})
    split = find(tmp_path, "train")
    assert (split.name, split.samples) == ("pool-tiny", 30)
    written = [sample for batch in in_order(split, batch_size=30) for sample in batch]
    assert [each.extra["noise"] for each in written] == [noise_of(index, 0) for index in range(30)]
    assert [each.captions for each in written] == [each.captions for each in pool()[:30]]
