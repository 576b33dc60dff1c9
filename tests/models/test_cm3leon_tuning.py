"""CM3leon's tuning: its tasks, its pictures, and pairs learned by heart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.sample import Object, Question, Sample
from models.cm3leon.collate import INSTRUCTION, Mix, aligned, alone, without
from models.cm3leon.drawing import Sampling
from tests.models.cm3leon_kit import COLOURS, TOKENIZER, build, coloured


def test_tuning_draws_such_pictures_as_pretraining_does() -> None:
    model = build()
    model.config = replace(model.config, mix=Mix(alone=1.0, aligned=True))
    model.enter_stage("tuning")
    image = np.full((16, 16, 3), 90, np.uint8)
    image[1:5, 1:5], image[9:15, 8:14] = 200, 20
    things = (Object("square", (1, 1, 5, 5)), Object("square", (8, 9, 14, 15), {"size": "large"}))
    sample = Sample("0", image, ("two squares",), objects=things, questions=(Question("how many?", "two"),))
    rng = np.random.default_rng(0)
    for _ in range(8):
        _, (drawn, _) = model.collate._task(sample, "draw", rng)  # type: ignore[union-attr]
        left, top, right, bottom = drawn.objects[0].box
        assert len(drawn.objects) == 1
        assert drawn.captions in (("a square",), ("a large square",))
        assert ((left + right) / 2 % 4, (top + bottom) / 2 % 4) == (0, 0)
    _, (described, _) = model.collate._task(sample, "describe", rng)  # type: ignore[union-attr]
    assert described is sample


def test_tuning_sees_every_task() -> None:
    model = build()
    model.enter_stage("tuning")
    thing = Object("square", (4.0, 4.0, 12.0, 12.0), {"colour": "red", "size": "large"})
    sample = replace(coloured(1)[0], objects=(thing,), questions=(Question("what colour is it?", "red"),))
    batch = model.collate([sample] * 60, np.random.default_rng(0))
    heads = {TOKENIZER.decode([i for i in row if 0 <= i < model.vocabulary.text]) for row in batch["ids"].tolist()}
    said = " | ".join(sorted(heads))
    for expected in ("what colour is it? red", INSTRUCTION, "remove the large red square", "add a large red square", sample.captions[0]):
        assert expected in said
    losses = model(batch)
    assert losses.total.isfinite()
    losses.total.backward()
    bare = model.collate([replace(sample, objects=(), questions=())] * 8, np.random.default_rng(0))  # only captions are left
    assert model(bare).total.isfinite()
    with pytest.raises(ValueError, match="pretraining and tuning"):
        model.enter_stage("sft")


def test_objects_can_be_painted_over_and_left_alone() -> None:
    y, x = np.mgrid[:32, :32]
    ground = np.stack([100 + 2 * x, 60 + y, 200 - x - y], axis=-1).astype(np.uint8)
    image = ground.copy()
    image[4:10, 4:10], image[20:28, 18:26] = 255, 0
    things = (
        Object("square", (4, 4, 10, 10), {"colour": "white"}),
        Object("square", (18, 20, 26, 28), {"colour": "black", "size": "large"}),
    )
    sample = Sample("0", image, ("two squares",), objects=things)
    rng = np.random.default_rng(0)
    rest = without(sample, [0], rng)
    assert np.abs(rest.image[:15].astype(int) - ground[:15]).max() <= 2
    assert np.array_equal(rest.image[15:], image[15:])
    assert rest.objects == things[1:]
    left = alone(sample, 1, rng)
    assert left is not None
    assert left.captions == ("a large black square",)
    assert np.abs(left.image[:15].astype(int) - ground[:15]).max() <= 2
    overlapping = replace(sample, objects=(things[0], Object("dot", (8, 8, 14, 14))))
    assert alone(overlapping, 0, rng) is None


@pytest.mark.parametrize(("shape", "box"), [((20, 50), (5.5, 2.0, 30.0, 18.0)), ((16, 16), (0, 0, 16, 15)), ((16, 16), (0, 0, 15, 16))])
def test_an_even_picture_stays_even_where_an_object_is_painted_over(shape: tuple[int, int], box: tuple[float, ...]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    left, top, right, bottom = (int(edge) for edge in box)
    image[top:bottom, left:right] = 200
    sample = Sample("a", image, objects=(Object("star", box),))  # type: ignore[arg-type]
    rest = without(sample, [0], np.random.default_rng(0))
    assert rest.image.dtype == np.uint8
    assert abs(rest.image.astype(int) - 90).max() <= 1
    covering = replace(sample, objects=(Object("star", (0, 0, shape[1], shape[0])),))
    assert without(covering, [0], np.random.default_rng(0)) is covering  # nothing is left to continue


def test_shifted_pictures_have_their_object_on_the_grid_and_whole() -> None:
    for left, top in ((3, 5), (1, 2), (19, 19), (10, 6)):
        image = np.full((32, 32, 3), 90, np.uint8)
        image[top : top + 12, left : left + 12] = 200
        shifted = aligned(Sample("0", image, objects=(Object("square", (left, top, left + 12, top + 12)),)), side=4)
        x0, y0, x1, y1 = (int(edge) for edge in shifted.objects[0].box)
        assert ((x0 + x1) / 2 % 8, (y0 + y1) / 2 % 8) == (0, 0)
        assert max(abs(x0 - left), abs(y0 - top)) <= 6
        assert (shifted.image == 200).all(axis=-1).sum() == 144
        assert (shifted.image[y0:y1, x0:x1] == 200).all()
    at_the_edge = Sample("0", image, objects=(Object("square", (0, 0, 12, 32)),))
    assert aligned(at_the_edge, side=4).objects == at_the_edge.objects


@pytest.mark.slow
def test_sixteen_pairs_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = build()
    samples = coloured(16)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(model.collate(samples, rng)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.caption([sample.image for sample in samples]) == [sample.captions[0] for sample in samples]
    drawn = model.draw([f"a large {colour} square on a plain background" for colour in COLOURS], how=Sampling(1.0, 0.0))
    for picture, colour in zip(drawn, COLOURS, strict=True):
        fitting = [s.image for s in samples if colour in s.captions[0]]
        assert any(np.array_equal(picture, model.image_tokenizer.reconstruct([image])[0]) for image in fitting)
