"""Further views of a pair, for SLIP, CLIP-rocket and DeCLIP: pictures as in SimCLR and MoCo v2 (arXiv 2002.05709, 2003.04297), and texts.

A view must not make a caption false: where a picture's captions say "left", it is not mirrored; where they name a colour, its hue stays;
where they say "dark", its brightness. The words are English: of other languages nothing is known, and only `careful` views of English
captions are safe. Cropping may still cut away something that a caption names, as it may in CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as edit  # type: ignore[import-untyped]
from PIL import Image, ImageFilter
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.func import functional_call

from data.fields import require
from data.sample import Sample

# Beginnings of words. Some other words begin so, too ("rightly", "limestone"): their pictures are changed less than they could be.
SIDES = ("left", "right", "clockwise", "counterclockwise", "anticlockwise", "east", "west")
COLOURS = (
    *("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan", "brown", "black", "white", "gray", "grey", "color", "colour"),
    *("violet", "magenta", "turquoise", "teal", "gold", "silver", "beige", "maroon", "navy", "crimson", "scarlet", "lime", "olive"),
    *("indigo", "lavender", "khaki", "bronze", "copper", "blond", "brunette", "ginger", "auburn", "sepia", "monochrom", "rainbow"),
)
TONES = ("dark", "light", "bright", "pale", "dim", "gloom", "sunny", "sunlit", "shad", "faint", "black", "white", "gray", "grey", "night")
STOP_WORDS = {  # no negation, number or preposition of place: without these a caption may turn false
    *(
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "has",
        "have",
        "there",
        "here",
        "it",
        "its",
        "this",
        "that",
    ),
    *("these", "those", "of", "to", "and", "as", "so", "very", "some", "with"),
}
MOST = (0.5, 1.0)  # share of a picture that a crop keeps where captions name every object, and the view meets a caption
LARGEST = 4096  # pixels a side
PIXELS = 224  # side of the pictures for which the papers' blur was chosen


@dataclass(frozen=True)
class View:
    """Random views of a picture. The defaults are SLIP's (SimCLR's without its strong colours); MoCo v2's keeps more of the picture."""

    size: int = 224  # side in pixels
    area: tuple[float, float] = (0.08, 1.0)  # share of the picture that a crop keeps; its aspect ratio lies between 3/4 and 4/3
    jitter: float = 0.8  # probability, as are those below
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # of brightness, contrast, saturation, hue
    grey: float = 0.2
    blur: float = 0.5  # by .1 to 2 pixels of 224; smaller views have less
    flip: float = 0.5
    careful: bool = True  # nothing that makes a caption of the picture false

    def __post_init__(self) -> None:
        require(1 <= self.size <= LARGEST, "view.size", self.size, f"1 to {LARGEST:,} pixels")
        require(0 < self.area[0] <= self.area[1] <= 1, "view.area", self.area, "two shares above 0 and at most 1, the smaller one first")
        for name in ("jitter", "grey", "blur", "flip"):
            require(0 <= getattr(self, name) <= 1, f"view.{name}", getattr(self, name), "a probability from 0 to 1")
        in_range = all(0 <= each <= 1 for each in self.strength) and self.strength[3] <= 0.5
        require(in_range, "view.strength", self.strength, "four numbers from 0 to 1, the last one at most 0.5")

    def batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> Tensor:
        """A view of each sample's picture, uint8 `[B, 3, size, size]`."""
        pixels = np.stack([self(sample.image, sample.captions, rng) for sample in samples])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def __call__(self, image: np.ndarray, captions: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """uint8 `[height, width, 3]` of any size -> `[size, size, 3]`."""
        sides, colours, tones = named(tuple(captions)) if self.careful else (False, False, False)
        box = random_box(image.shape[1], image.shape[0], self.area, rng)
        picture = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        if rng.random() < self.jitter:
            brightness, contrast, saturation, hue = (rng.uniform(-each, each) for each in self.strength)
            changes: list[Callable[[Image.Image], Image.Image]] = [partial(edit.adjust_saturation, saturation_factor=1 + saturation)]
            if not tones:
                changes.append(partial(edit.adjust_brightness, brightness_factor=1 + brightness))
                changes.append(partial(edit.adjust_contrast, contrast_factor=1 + contrast))
            if not colours:
                changes.append(partial(edit.adjust_hue, hue_factor=hue))
            for place in rng.permutation(len(changes)):
                picture = changes[place](picture)
        if rng.random() < self.grey and not colours:
            picture = edit.to_grayscale(picture, num_output_channels=3)
        if rng.random() < self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0) * self.size / PIXELS))
        pixels = np.asarray(picture)
        return pixels[:, ::-1] if rng.random() < self.flip and not sides else pixels


def random_box(width: int, height: int, area: tuple[float, float], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box `(left, top, right, bottom)` in the picture that covers a random share of it, with a random aspect ratio: torchvision's
    RandomResizedCrop."""
    for _ in range(10):
        share, ratio = rng.uniform(*area) * width * height, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (share * ratio) ** 0.5, (share / ratio) ** 0.5
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


@lru_cache(maxsize=1 << 17)  # the same captions come every epoch
def named(captions: tuple[str, ...]) -> tuple[bool, bool, bool]:
    """Whether the captions of a picture name sides, colours, and how dark it is."""
    text = "\n".join(captions)
    sides, colours, tones = (bool(re.search(rf"\b(?:{'|'.join(words)})", text, re.IGNORECASE)) for words in (SIDES, COLOURS, TONES))
    return sides, colours, tones


# ------------------------------------------------------------------------------------------------------------- texts


def draw_captions(samples: Sequence[Sample], rng: np.random.Generator | None) -> list[int]:
    """The caption of each sample that CLIP reads: the same draws as its collate's, so that both see the same pairs."""
    return [0 if rng is None else int(rng.integers(len(sample.captions))) for sample in samples]


def other_captions(sample: Sample, used: int, count: int, rng: np.random.Generator) -> list[str]:
    """`count` captions of the sample, other than the one that is `used` and than each other while there are enough."""
    others = [caption for place, caption in enumerate(sample.captions) if place != used] or [sample.captions[used]]
    order = rng.permutation(len(others))
    return [others[order[place % len(others)]] for place in range(count)]


def without_stop_words(text: str) -> str:
    """The text without words that add nothing to what it says; as it is if nothing else is in it."""
    kept = [word for word in text.split() if word.lower() not in STOP_WORDS]
    return " ".join(kept) or text


# ------------------------------------------------------------------------------------------------------------ towers


def seen(tower: VisionTransformer, pixels: Tensor, patch_size: int) -> Tensor:
    """A tower's features `[B, width]` of normalised pixels `[B, 3, V, V]`, which may be smaller than those that it was built for: then the
    position embedding is resampled, or for a tower without one the pixels."""
    side = pixels.shape[-1] // patch_size
    if side**2 == tower.patch_embed.num_patches or getattr(tower, "dynamic_img_size", False):  # timm then resamples it itself
        return tower(pixels)
    if getattr(tower, "pos_embed", None) is None:
        return tower(F.interpolate(pixels, size=tower.patch_embed.img_size, mode="bicubic", align_corners=False))
    prefix = 0 if tower.no_embed_class else tower.num_prefix_tokens
    positions = resample_abs_pos_embed(tower.pos_embed, [side, side], num_prefix_tokens=prefix)
    return functional_call(tower, {"pos_embed": positions}, (pixels,))
