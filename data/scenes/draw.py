"""Scene -> pixels, with integer arithmetic only, so that every machine draws the same bytes.

Objects are anti-aliased coverage masks ("sprites"), supersampled 4 x 4 once per (shape, radius, angle, fill) and cached:
drawing a picture is then a few small blends.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from random import Random

import numpy as np

from data.scenes.world import Scene, Thing

PALETTE = {
    "red": (222, 36, 36),
    "green": (40, 160, 50),
    "blue": (40, 70, 225),
    "yellow": (245, 222, 45),
    "orange": (250, 140, 25),
    "purple": (140, 50, 180),
    "pink": (250, 130, 190),
    "cyan": (45, 205, 215),
    "brown": (125, 75, 35),
}
TONE_LEVEL = {"dark": 45, "grey": 125, "light": 215}
SUPERSAMPLE = 4
UNIT = 1024  # shape outlines are integers in 1/1024 of the radius


def draw(scene: Scene) -> np.ndarray:
    """uint8 RGB `[pixels, pixels, 3]`."""
    rng = Random(scene.texture_seed)
    image = _background(scene, rng)
    for thing in scene.things:
        paint, shade = _colours(thing.colour, scene.shifted, rng)
        silhouette, bright, contour = _sprite(thing.shape, thing.radius, thing.angle, thing.fill)
        top, left = thing.y - thing.radius - 1, thing.x - thing.radius - 1
        window = image[top : top + silhouette.shape[0], left : left + silhouette.shape[1]]
        _blend(window, silhouette, shade)
        _blend(window, bright, paint)
        if scene.shifted:
            _blend(window, contour, (15, 15, 15))
    return image.astype(np.uint8)


def box(thing: Thing) -> tuple[int, int, int, int]:
    """Tight (left, top, right, bottom) of the drawn object, in pixels."""
    silhouette = _sprite(thing.shape, thing.radius, thing.angle, thing.fill)[0]
    rows, columns = np.flatnonzero(silhouette.any(axis=1)), np.flatnonzero(silhouette.any(axis=0))
    left, top = thing.x - thing.radius - 1, thing.y - thing.radius - 1
    return (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)


def _blend(window: np.ndarray, alpha: np.ndarray, colour: tuple[int, int, int]) -> None:
    a = alpha[:, :, None]
    window[:] = (window * (255 - a) + np.array(colour, np.int32) * a + 127) // 255


def _colours(name: str, shifted: bool, rng: Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The object's paint and the darker shade of its stripes, slightly different in every picture."""
    jitter = 30 if shifted else 14
    red, green, blue = (min(255, max(0, level + rng.randrange(-jitter, jitter + 1))) for level in PALETTE[name])
    return (red, green, blue), (red * 2 // 5, green * 2 // 5, blue * 2 // 5)


def _background(scene: Scene, rng: Random) -> np.ndarray:
    side = scene.pixels
    level = TONE_LEVEL[scene.tone] + rng.randrange(-15, 16)
    tint = 28 if scene.shifted else 8
    colour = np.array([level + rng.randrange(-tint, tint + 1) for _ in range(3)], np.int32)
    image = np.empty((side, side, 3), np.int32)
    image[:] = colour
    if scene.shifted:  # a checkerboard, never seen in training
        cell = rng.randrange(6, 11) * side // 64
        line = np.arange(side) // cell
        image += (((line[:, None] + line) % 2) * 36 - 18)[:, :, None]
    elif scene.texture == "gradient":
        slope = rng.choice((-1, 1)) * (np.arange(side, dtype=np.int32) * 50 // side - 25)
        image += (slope[:, None] if rng.random() < 0.5 else slope[None, :])[:, :, None]
    elif scene.texture == "speckled":
        noise = _noise()
        y, x = rng.randrange(noise.shape[0] - side), rng.randrange(noise.shape[1] - side)
        image += noise[y : y + side, x : x + side, None]
    return np.clip(image, 0, 255, out=image)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    return np.random.RandomState(7).randint(-22, 23, size=(512, 512)).astype(np.int32)


@cache
def _sprite(shape: str, radius: int, angle: int, fill: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage 0..255, int32 `[2 * radius + 3] * 2`, of: everything drawn, its bright part, its contour."""
    side = (2 * radius + 3) * SUPERSAMPLE
    inside = _inside(shape, radius, angle, side)
    contour = inside & ~_erode(inside, SUPERSAMPLE)
    if fill == "hollow":
        line = max(2, radius // 5 + 1) * SUPERSAMPLE  # line width in subsamples
        inside = inside & ~_erode(inside, line)
    bright = inside
    if fill == "striped":
        diagonal = np.add.outer(np.arange(side), np.arange(side))
        bright = inside & (diagonal // (3 * SUPERSAMPLE) % 2 == 0)
    return _coverage(inside), _coverage(bright), _coverage(contour)


def _coverage(mask: np.ndarray) -> np.ndarray:
    side = mask.shape[0] // SUPERSAMPLE
    counts = mask.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE).sum(axis=(1, 3), dtype=np.int32)
    return counts * 255 // SUPERSAMPLE**2


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    for step in range(steps):  # alternating cross and square neighbourhoods make an octagon, nearly a disc
        padded = np.pad(mask, 1)
        small = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if step % 2:
            small &= padded[:-2, :-2] & padded[:-2, 2:] & padded[2:, :-2] & padded[2:, 2:]
        mask = small
    return mask


def _inside(shape: str, radius: int, angle: int, side: int) -> np.ndarray:
    """Boolean `[side, side]`: which subsample centres lie in the rotated shape. Units: 1/1024 of the radius."""
    centres = (2 * np.arange(side, dtype=np.int64) + 1 - side) * UNIT // (2 * SUPERSAMPLE * radius)
    x, y = centres[None, :], centres[:, None]
    if shape == "circle":
        return x * x + y * y <= UNIT * UNIT
    if shape == "moon":
        (dx, dy), reach = _rotate([(460, 0)], angle)[0], 860
        return (x * x + y * y <= UNIT * UNIT) & ((x - dx) ** 2 + (y - dy) ** 2 > reach * reach)
    inside = np.zeros((side, side), bool)
    corners = _rotate(_OUTLINES[shape], angle)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):  # even-odd rule
        if y0 == y1:
            continue
        crosses = (y0 <= y) != (y1 <= y)
        side_of_edge = (x - x0) * (y1 - y0) - (x1 - x0) * (y - y0)
        inside ^= crosses & ((side_of_edge < 0) == (y1 > y0))
    return inside


def _rotate(points: list[tuple[int, int]], degrees: int) -> list[tuple[int, int]]:
    c, s = round(math.cos(math.radians(degrees)) * 4096), round(math.sin(math.radians(degrees)) * 4096)
    return [((x * c - y * s) // 4096, (x * s + y * c) // 4096) for x, y in points]


def _circular(radii: list[int], start: int) -> list[tuple[int, int]]:
    step = 360 / len(radii)
    angles = [math.radians(start + step * i) for i in range(len(radii))]
    return [(round(r * math.cos(a)), round(r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[int, int]]:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            round(60 * 16 * math.sin(t) ** 3),
            round(-60 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5)),
        )
        for t in turns
    ]


_OUTLINES: dict[str, list[tuple[int, int]]] = {
    "square": _circular([1180] * 4, 45),
    "triangle": [(0, -980), (960, 760), (-960, 760)],
    "star": _circular([1024, 430] * 5, -90),
    "heart": _heart(),
    "cross": [
        (-330, -1000), (330, -1000), (330, -330), (1000, -330), (1000, 330), (330, 330),
        (330, 1000), (-330, 1000), (-330, 330), (-1000, 330), (-1000, -330), (-330, -330),
    ],
    "arrow": [(-1000, -300), (50, -300), (50, -850), (1000, 0), (50, 850), (50, 300), (-1000, 300)],
}  # fmt: skip
