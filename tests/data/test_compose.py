from __future__ import annotations

from random import Random

import numpy as np
import pytest

from data.scenes.build import make_sample, sample_of
from data.scenes.compose import compose
from data.scenes.draw import draw
from data.scenes.language import agreement
from data.scenes.world import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("split", ["train", "heldout", "style"])
def test_every_caption_is_true_of_the_scene_composed_from_it(preset: str, split: str) -> None:
    for index in range(12):
        for caption in make_sample(PRESETS[preset], split, index).captions:
            scene = compose(caption, PRESETS[preset], Random(caption))
            assert agreement(caption, sample_of(scene, 0)) == 1, caption


def test_what_is_left_open_varies_and_the_same_generator_gives_the_same_scene() -> None:
    scenes = [compose("a red star", PRESETS["tiny"], Random(seed)) for seed in range(20)]
    assert {(thing.colour, thing.shape) for scene in scenes for thing in scene.things} == {("red", "star")}
    assert {thing.size for scene in scenes for thing in scene.things} == {"small", "large"}
    assert scenes[3] == compose("a red star", PRESETS["tiny"], Random(3))


def test_a_text_without_objects_is_an_empty_background() -> None:
    assert compose("nothing of this grammar", PRESETS["tiny"], Random(0)).things == ()
    assert np.ptp(draw(compose("on a plain background", PRESETS["tiny"], Random(0)))) <= 16  # one colour, slightly tinted


def test_a_text_that_contradicts_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such scene of 64 px"):
        compose("a red star above a blue circle above a red star", PRESETS["tiny"], Random(0))
