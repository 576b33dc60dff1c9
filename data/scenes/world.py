"""Scenes: vocabulary, objects, spatial relations, and the sampling for each preset and split.

Everything random comes from one `random.Random` per picture, seeded by (seed, split, index), so a picture does not depend
on how many workers drew its neighbours. Python's generator is used rather than NumPy's because its stream is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from random import Random

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan", "brown")
SIZES = ("small", "large")
FILLS = ("solid", "striped", "hollow")
TONES = ("dark", "grey", "light")
TEXTURES = ("plain", "gradient", "speckled")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

# One sixth of the 72 pairs, so that every shape and every colour is still seen with most of its partners.
HELD_OUT = frozenset(
    (COLOURS[c], SHAPES[s])
    for s in range(len(SHAPES))
    for c in range(len(COLOURS))
    if c == (2 * s + 1) % 9 or (s % 2 == 0 and c == (s + 5) % 9)
)


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn object. Centre and radius are in pixels, the angle in degrees clockwise."""

    shape: str
    colour: str
    size: str
    fill: str
    x: int
    y: int
    radius: int
    angle: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn; `pixels` is its side, `shifted` selects the other drawing style."""

    pixels: int
    things: tuple[Thing, ...]
    tone: str
    texture: str
    shifted: bool
    texture_seed: int


@dataclass(frozen=True, slots=True)
class Preset:
    """The size of pictures and the number of objects. `counts[i]` is the weight of pictures with i + 1 objects."""

    pixels: int
    counts: tuple[int, ...]
    radii: dict[str, tuple[int, ...]]
    samples: dict[str, int]


PRESETS = {
    "tiny": Preset(
        pixels=64,
        counts=(3, 3, 2),
        radii={"small": (8, 9), "large": (13, 14, 15)},
        samples={"train": 20_000, "val": 2_000, "test": 2_000, "heldout": 2_000, "style": 2_000, "pairs": 800},
    ),
    "small": Preset(
        pixels=128,
        counts=(2, 3, 3, 2, 2),
        radii={"small": (11, 12, 13), "large": (20, 22, 24)},
        samples={"train": 200_000, "val": 5_000, "test": 5_000, "heldout": 5_000, "style": 5_000, "pairs": 2_000},
    ),
}


def sample_scene(preset: Preset, split: str, rng: Random) -> Scene:
    """Draw a scene. Only in split "heldout" do held-out colour-shape pairs occur, and there at least once a picture."""
    count = rng.choices(range(1, len(preset.counts) + 1), weights=preset.counts)[0]
    things: list[Thing] = []
    attempts = 0
    while len(things) < count:
        colour, shape = _colour_and_shape(split == "heldout" and not things, rng)
        thing = sample_thing(preset, rng, colour=colour, shape=shape)
        taken = any((thing.colour, thing.shape) == (other.colour, other.shape) or touch(thing, other) for other in things)
        if not taken:
            things.append(thing)
        attempts += 1
        if attempts % 50 == 0:  # a badly placed first object can leave no room: start over
            things.clear()
    rng.shuffle(things)
    return Scene(
        pixels=preset.pixels,
        things=tuple(things),
        tone=rng.choice(TONES),
        texture=rng.choice(TEXTURES),
        shifted=split == "style",
        texture_seed=rng.getrandbits(31),
    )


def fits(things: tuple[Thing, ...], pixels: int) -> bool:
    """Whether these objects can be in one picture: inside it, apart, no two of one colour and shape."""
    inside = all(thing.radius < at < pixels - thing.radius - 1 for thing in things for at in (thing.x, thing.y))
    apart = not any(touch(a, b) for a, b in combinations(things, 2))
    return inside and apart and len({(thing.colour, thing.shape) for thing in things}) == len(things)


def relation(a: Thing, b: Thing) -> str | None:
    """The direction of `a` from `b`: one of RELATIONS, or None when it is too diagonal."""
    return direction(a.x - b.x, a.y - b.y)


def direction(dx: float, dy: float) -> str | None:
    if 2 * abs(dx) >= 3 * abs(dy):
        return "left" if dx < 0 else "right"
    if 2 * abs(dy) >= 3 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def position(x: float, y: float, pixels: int) -> str:
    """The part of a picture that a point lies in: "top left", "bottom", "middle", ..."""
    vertical = "top" if 5 * y < 2 * pixels else "bottom" if 5 * y > 3 * pixels else ""
    horizontal = "left" if 5 * x < 2 * pixels else "right" if 5 * x > 3 * pixels else ""
    return " ".join(word for word in (vertical, horizontal) if word) or "middle"


def sample_thing(preset: Preset, rng: Random, *, colour: str, shape: str, size: str | None = None, fill: str | None = None) -> Thing:
    """An object somewhere in the picture; attributes that are not given are drawn at random."""
    size = size or rng.choice(SIZES)
    radius = rng.choice(preset.radii[size])
    margin = radius + 1
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        fill=fill or rng.choice(FILLS),
        x=rng.randrange(margin, preset.pixels - margin),
        y=rng.randrange(margin, preset.pixels - margin),
        radius=radius,
        angle=rng.randrange(-15, 16, 5),
    )


def touch(a: Thing, b: Thing) -> bool:
    gap = a.radius + b.radius + 1
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < gap * gap


def _colour_and_shape(held_out: bool, rng: Random) -> tuple[str, str]:
    while True:
        pair = rng.choice(COLOURS), rng.choice(SHAPES)
        if (pair in HELD_OUT) == held_out:
            return pair
