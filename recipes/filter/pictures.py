"""Filters by pictures alone: duplicates and blur."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from data.fields import require
from data.sample import Sample
from recipes.filter.filters import Verdict

SIDE = 12  # pixels of a thumbnail
FLAT = 1.0  # levels of contrast (RMS) below which a thumbnail counts as blank
DIMENSIONS = 16  # of the search tree
LARGEST = 256  # pixels: larger pictures are shrunk before their sharpness is measured, or a camera's noise would count


class Duplicates:
    """Exact and near duplicates; the first one is kept. A picture is described by its thumbnail, 12 x 12 in colour, less its mean and
    scaled to length 1, so that size, coding, brightness and contrast do not count; `distance` is that between two of them, from 0 to 2.

    The score is the number of samples that one stands for, 1 for most. Memory: 2 kB per sample.
    """

    def __init__(self, distance: float = 0.25) -> None:
        require(0 <= distance <= 2, "distance", distance, "0 (exact duplicates of thumbnails) to 2")
        self.distance = distance
        self.thumbnails: list[np.ndarray] = []

    def see(self, samples: Sequence[Sample]) -> None:
        self.thumbnails.extend(_thumbnail(sample.image) for sample in samples)

    def verdict(self) -> Verdict:
        first = duplicates_of(np.stack(self.thumbnails), self.distance)
        copies = np.bincount(first, minlength=len(first))
        rule = f"the first of those within a distance of {self.distance:g}"
        return Verdict(first == np.arange(len(first)), copies, rule, {"distance": self.distance})


class Blur:
    """The 99th percentile of the absolute Laplacian of the grey levels, relative to their contrast (from the 1st to the 99th percentile):
    about 1 for one-pixel edges, 0 for a blank picture."""

    def __init__(self, sharpness: float = 0.3) -> None:
        require(0 <= sharpness <= 4, "sharpness", sharpness, "0 to 4")
        self.least = sharpness
        self.found = array("d")

    def see(self, samples: Sequence[Sample]) -> None:
        self.found.extend(sharpness(sample.image) for sample in samples)

    def verdict(self) -> Verdict:
        found = np.array(self.found)
        return Verdict(found >= self.least, found, f"sharpness from {self.least:g}", {"sharpness": self.least})


def duplicates_of(vectors: np.ndarray, distance: float) -> np.ndarray:
    """For each of the vectors `[N, D]` the number of the first one that it duplicates, int64 `[N]`; its own if it is none. In their order,
    a vector is a duplicate if one that is none is at most `distance` away.

    A search in few dimensions, those of the largest variance, finds all candidates: there, no two are farther apart.
    """
    distinct, of_distinct = np.unique(vectors, axis=0, return_index=True, return_inverse=True)[1:]
    order = np.argsort(distinct)  # by their first occurrence
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    number, places = rank[of_distinct.reshape(-1)], distinct[order]
    points = vectors[places].astype(np.float64)
    pairs = cKDTree(_projected(points)).query_pairs(distance + 1e-6, output_type="ndarray")
    apart = np.concatenate(
        [np.linalg.norm(points[chunk[:, 0]] - points[chunk[:, 1]], axis=1) for chunk in np.array_split(pairs, len(pairs) // 10_000 + 1)]
    )
    near = pairs[apart <= distance + 1e-6]
    near = near[np.lexsort((near[:, 0], near[:, 1]))]  # pairs are (earlier, later)
    first = np.arange(len(points))
    for earlier, later in near:
        if first[later] == later and first[earlier] == earlier:
            first[later] = earlier
    return places[first[number]]


def sharpness(image: np.ndarray) -> float:
    """Of a picture, uint8 `[H, W, 3]`; see `Blur`."""
    grey = Image.fromarray(image).convert("L")
    grey.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    levels = np.pad(np.asarray(grey, np.float32), 1, mode="edge")
    middle = levels[1:-1, 1:-1]
    laplacian = np.abs(4 * middle - levels[:-2, 1:-1] - levels[2:, 1:-1] - levels[1:-1, :-2] - levels[1:-1, 2:])
    low, high = np.percentile(middle, (1, 99))
    return float(np.percentile(laplacian, 99) / (high - low)) if high > low else 0.0


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """float32 `[432]` of length 1, or 0 for a blank picture."""
    small = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32).reshape(-1)
    small = small - small.mean()
    length = np.linalg.norm(small)
    return small / length if length > FLAT * SIDE * 3**0.5 else np.zeros_like(small)


def _projected(points: np.ndarray) -> np.ndarray:
    centred = points - points.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, -DIMENSIONS:]
    return centred @ axes
