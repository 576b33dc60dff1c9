"""Raw pictures (uint8 arrays of any size) -> the uint8 batch a model's tower takes; the model normalises it on its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.sample import Sample

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training set
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageTransform:
    """Shorter side to `size`, then a square crop: at random when a generator is given and `random_crop` is set, else the centre.

    A random square crop of the resized image is CLIP's only augmentation (section 2.3). `random_crop` is the smallest share
    of the side that is kept; 1 keeps the whole shorter side.
    """

    size: int
    random_crop: float = 1.0

    def __call__(self, images: Sequence[np.ndarray], rng: np.random.Generator | None = None) -> Tensor:
        """uint8 `[height, width, 3]` each -> uint8 `[B, 3, size, size]`."""
        pixels = np.stack([self._one(image, rng) for image in images])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _one(self, image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        height, width = image.shape[:2]
        if height == width == self.size and (rng is None or self.random_crop == 1.0):
            return image
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if rng is not None:
            side = max(1, round(side * rng.uniform(self.random_crop, 1.0)))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        box = (left, top, left + side, top + side)
        return np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 `[B, 3, H, W]` in 0..255 -> float32, zero mean and unit variance over the data set the constants come from."""
    scale = 255.0 * torch.tensor(std, device=pixels.device).view(3, 1, 1)
    return (pixels.float() - 255.0 * torch.tensor(mean, device=pixels.device).view(3, 1, 1)) / scale


def distinct(images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
    """The pictures that occur, each once, and which of them each image is: what comes with many texts is looked at once.

    Pictures are told apart by their arrays' identity.
    """
    pictures = {id(image): image for image in images}
    places = {name: place for place, name in enumerate(pictures)}
    return list(pictures.values()), [places[id(image)] for image in images]


def inside_boxes(samples: Sequence[Sample]) -> list[np.ndarray]:
    """uint8 `[height, width, 3]` for each sample: 255 inside of the boxes of its objects, 0 elsewhere; transformed as its picture is."""
    masks = [np.zeros(sample.image.shape, np.uint8) for sample in samples]
    for mask, sample in zip(masks, samples, strict=True):
        for thing in sample.objects:
            left, top, right, bottom = thing.box
            mask[max(0, int(top)) : math.ceil(bottom), max(0, int(left)) : math.ceil(right)] = 255
    return masks
