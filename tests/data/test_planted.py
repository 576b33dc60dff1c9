"""The planted correlation: as strong as asked in training, absent in test, and nothing else changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.loader import in_order
from data.sample import Sample
from data.scenes.build import build, main, make_sample
from data.scenes.draw import PALETTE
from data.scenes.language import agreement
from data.scenes.planted import COLOURS_OF, TONE_OF, group_of
from data.scenes.world import COLOURS, PRESETS, TONES
from data.shards import find


def samples(split: str, planted: float | None, count: int = 400) -> list[Sample]:
    return [make_sample(PRESETS["tiny"], split, index, planted=planted) for index in range(count)]


def test_every_colour_has_a_tone_and_every_tone_three_colours() -> None:
    assert set(TONE_OF) == set(COLOURS)
    assert {tone: len(colours) for tone, colours in COLOURS_OF.items()} == dict.fromkeys(TONES, 3)


def test_the_colours_of_each_tone_are_equally_bright() -> None:
    """ITU-R BT.601 luma of the palette: within 5 % of the mean, where single colours range from half of it to twice."""
    luma = {colour: np.dot(PALETTE[colour], (0.299, 0.587, 0.114)) for colour in COLOURS}
    means = [np.mean([luma[colour] for colour in colours]) for colours in COLOURS_OF.values()]
    assert means == pytest.approx([np.mean(list(luma.values()))] * 3, rel=0.05)


@pytest.mark.parametrize(
    ("split", "planted", "expected"), [("train", 0.9, 0.9), ("val", 0.5, 0.5), ("train", 1.0, 1.0), ("test", 0.9, 1 / 3)]
)
def test_the_background_agrees_as_often_as_asked_in_training_and_by_chance_in_test(split: str, planted: float, expected: float) -> None:
    groups = [sample.extra["group"] for sample in samples(split, planted)]
    assert set(groups) <= {"aligned", "conflicting"}
    assert np.mean([group == "aligned" for group in groups]) == pytest.approx(expected, abs=0.07 * (expected < 1))


def test_only_tone_and_what_is_said_of_it_differ() -> None:
    changed = 0
    for plain, planted in zip(samples("train", None, 100), samples("train", 0.9, 100), strict=True):
        assert plain.objects == planted.objects
        assert plain.foils == planted.foils
        assert plain.questions == planted.questions
        assert all(agreement(caption, planted) == 1 for caption in planted.captions)
        assert planted.extra == plain.extra | {"tone": planted.extra["tone"], "group": group_of(planted)}
        same = plain.extra["tone"] == planted.extra["tone"]
        assert (plain.image == planted.image).all() == same
        changed += not same
    assert 40 < changed < 80


def test_conflicting_tones_are_equally_likely() -> None:
    tones = Counter(sample.extra["tone"] for sample in samples("train", 0.0) if TONE_OF[sample.objects[0].attributes["colour"]] == "grey")
    assert set(tones) == {"light", "dark"}
    assert min(tones.values()) > 0.35 * tones.total()


@pytest.mark.parametrize("split", ["test", "heldout", "style", "pairs"])
def test_other_splits_stay_as_they_are(split: str) -> None:
    for plain, planted in zip(samples(split, None, 20), samples(split, 0.9, 20), strict=True):
        assert (plain.image == planted.image).all()
        assert plain.captions == planted.captions
        assert planted.extra == plain.extra | {"group": group_of(plain)}


def test_a_planted_set_is_written_under_a_name_of_its_own(tmp_path: Path) -> None:
    build(tmp_path, "tiny", workers=1, samples={"train": 20}, planted=0.9)
    split = find(tmp_path, "train")
    assert split.name == "scenes-tiny-planted0.9"
    assert all("group" in sample.extra for sample in next(in_order(split, batch_size=20)))


def test_a_share_beyond_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["build", "--out", str(tmp_path), "--planted", "90"])
    with pytest.raises(SystemExit, match=r"--planted is 90.0, expected a share between 0 and 1"):
        main()
