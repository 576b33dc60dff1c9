"""Pictures of any size -> a square uint8 batch -> normalised pixels; samples -> a batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as vision

from data.sample import Sample
from models.shared.collate import PairCollate
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.text import BPETokenizer


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (37, 91), (64, 64), (65, 63), (300, 200)])
@pytest.mark.parametrize("random_crop", [1.0, 0.3])
def test_any_size_becomes_a_square(size: tuple[int, int], random_crop: float) -> None:
    transform = ImageTransform(64, random_crop)
    for rng in (None, np.random.default_rng(0)):
        batch = transform([picture(*size), picture(8, 9)], rng)
        assert batch.shape == (2, 3, 64, 64)
        assert batch.dtype == torch.uint8


def test_distinct_pictures_are_told_apart_by_identity() -> None:
    a, b, twin = picture(4, 4), picture(5, 5), picture(4, 4)
    pictures, rows = distinct([b, a, b, twin, a])
    assert [id(each) for each in pictures] == [id(b), id(a), id(twin)]
    assert rows == [0, 1, 0, 2, 1]
    assert distinct([]) == ([], [])


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = picture(64, 64)
    for rng in (None, np.random.default_rng(0)):
        assert torch.equal(ImageTransform(64)([image], rng)[0], torch.from_numpy(image).permute(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(32, 96), (96, 32)])
def test_evaluation_takes_the_centre(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 32) // 2, (width - 32) // 2
    image[top : top + 32, left : left + 32] = picture(32, 32)
    assert torch.equal(ImageTransform(32)([image])[0], torch.from_numpy(picture(32, 32)).permute(2, 0, 1))


def test_resizing_is_torchvisions() -> None:
    """Anti-aliased bicubic on the shorter side: what open_clip and transformers do, up to a grey level or two."""
    smooth = vision.gaussian_blur(torch.from_numpy(picture(120, 180)).permute(2, 0, 1), [9, 9])
    ours = ImageTransform(40)([smooth.permute(1, 2, 0).numpy()])[0]
    theirs = vision.center_crop(vision.resize(smooth, [40], vision.InterpolationMode.BICUBIC, antialias=True), [40, 40])
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_random_crops_follow_the_generator() -> None:
    transform = ImageTransform(32, 0.5)
    images = [picture(50, 80, seed) for seed in range(4)]
    first, again, other = (transform(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(transform(images), transform(images))


def test_random_crops_stay_inside_and_reach_every_place() -> None:
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    batch = ImageTransform(25)([np.ascontiguousarray(columns)] * 200, np.random.default_rng(0))
    lefts = batch[:, 0, 0, 0].numpy()
    assert lefts.min() < 10
    assert 80 < lefts.max() <= 102
    widths = batch[:, 0, 0, -1].int() - batch[:, 0, 0, 0].int()
    assert set(widths.tolist()) <= {95, 96, 97}  # the whole shorter side, 100 columns, was kept


@pytest.mark.parametrize("random_crop", [1.0, 0.5])
@pytest.mark.parametrize("size", [(16, 16), (20, 31)])
def test_half_of_the_pictures_are_mirrored_in_training_alone(size: tuple[int, int], random_crop: float) -> None:
    image = picture(*size)
    flips, none = ImageTransform(16, random_crop, flip=True), ImageTransform(16, random_crop)
    assert torch.equal(flips([image]), none([image]))
    mirrored = 0
    for seed in range(200):
        plain, found = (transform([image], np.random.default_rng(seed))[0] for transform in (none, flips))
        assert torch.equal(found, plain) or torch.equal(found, plain.flip(-1))
        mirrored += not torch.equal(found, plain)
        again = [flips([np.repeat(image[..., :1], 3, axis=2)], np.random.default_rng(seed))[0] for _ in range(2)]
        assert torch.equal(*again)  # boxes and pictures that share a seed are mirrored together
    assert 75 < mirrored < 125


def test_normalise() -> None:
    pixels = torch.stack([torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (0, 128, 255)])
    for mean, std in ((OPENAI_MEAN, OPENAI_STD), (HALF, HALF)):
        expected = vision.normalize(pixels.float() / 255, list(mean), list(std))
        torch.testing.assert_close(normalise(pixels, mean, std), expected, atol=1e-6, rtol=0)


def test_collate_chooses_captions_by_the_generator() -> None:
    tokenizer = BPETokenizer.train(["a b c d e f g"], 300)
    collate: PairCollate = pickle.loads(pickle.dumps(PairCollate(ImageTransform(16), tokenizer, context=8)))  # noqa: S301
    samples = [Sample(str(index), picture(20, 30), captions=("a", "b", "c")) for index in range(20)]
    fixed = collate(samples)
    assert {name: (rows.shape, rows.dtype) for name, rows in fixed.items()} == {
        "pixels": ((20, 3, 16, 16), torch.uint8),
        "ids": ((20, 3), torch.int64),
    }
    assert torch.equal(fixed["ids"], collate.texts(["a"] * 20))
    first, again = collate(samples, np.random.default_rng(0)), collate(samples, np.random.default_rng(0))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(first["ids"].unique(dim=0)) == 3
    assert not torch.equal(first["pixels"], fixed["pixels"])
