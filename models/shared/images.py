"""Transform raw images (uint8 arrays of any size) into a uint8 batch for an image tower; the model normalises it on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.sample import Sample

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # statistics of CLIP's training set
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageTransform:
    """Resize the shorter side to `size` and take a square crop: a random one if a generator is given, otherwise the centre.

    A random square crop of the resized image is CLIP's only augmentation (section 2.3). `random_crop` is the minimum side of
    the crop relative to the shorter side of the image; with 1 the crop covers the whole shorter side. With `flip`, half of the
    images are mirrored if a generator is given; do not use it for texts that say "left" and "right". With `squeeze`, both sides are resized
    to `size` instead, and nothing is cut off.
    """

    size: int
    random_crop: float = 1.0
    flip: bool = False
    squeeze: bool = False

    def __call__(self, images: Sequence[np.ndarray], rng: np.random.Generator | None = None) -> Tensor:
        """Transform uint8 images `[height, width, 3]` of any size to a uint8 batch `[B, 3, size, size]`."""
        pixels = np.stack([self._mirrored(self._one(image, rng), rng) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _one(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        height, width = image.shape[:2]
        if height == width == self.size and (rng is None or self.random_crop == 1.0):
            return image
        if self.squeeze:
            return np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC))
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if rng is not None:
            side = max(1, round(side * rng.uniform(self.random_crop, 1.0)))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        box = (left, top, left + side, top + side)
        return np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))

    def _mirrored(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        return image[:, ::-1] if self.flip and rng is not None and rng.random() < 0.5 else image


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise uint8 pixels `[B, 3, H, W]` to float32 by mean and standard deviation, which are given for pixel values in 0..1."""
    middle, scale = (255.0 * _on_device(values, pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels.float() - middle) / scale


def _on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Like torch.tensor, but filled on the device: copying there would make a GPU's host wait."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def distinct(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The distinct images, and for each input image its index among them, `[N]`.

    An image often occurs with many texts but needs to be encoded only once. Images are compared by identity, not by their pixels.
    """
    pictures = {id(image): image for image in images}
    order = {name: place for place, name in enumerate(pictures)}
    return list(pictures.values()), [order[id(image)] for image in images]


def inside_boxes(samples: Sequence[Sample]) -> list[np.ndarray]:
    """A uint8 mask `[height, width, 3]` for each sample: 255 inside the boxes of its objects, 0 elsewhere. An image-like array, so that
    it can be transformed like the image."""
    masks = [np.zeros(sample.image.shape, np.uint8) for sample in samples]
    for mask, sample in zip(masks, samples, strict=True):
        for thing in sample.objects:
            left, top, right, bottom = thing.box
            mask[max(0, int(top)) : math.ceil(bottom), max(0, int(left)) : math.ceil(right)] = 255
    return masks
