"""Text -> scene: the scene that a caption describes; unspecified attributes are drawn at random. The inverse of `language.captions`."""

from __future__ import annotations

from itertools import combinations
from random import Random

from data.scenes.language import Claims, parse
from data.scenes.world import COLOURS, SHAPES, TEXTURES, TONES, Preset, Scene, Thing, position, relation, sample_thing, touch

ATTEMPTS = 20_000


def compose(text: str, preset: Preset, rng: Random) -> Scene:
    """A scene with exactly the objects that the text names, in the stated places; without objects an empty background.

    Raises ValueError when none is found: the text contradicts itself, or its objects do not fit into the picture.
    """
    claims = parse(text)
    for _ in range(ATTEMPTS):
        things = tuple(
            sample_thing(
                preset,
                rng,
                colour=said.get("colour") or rng.choice(COLOURS),
                shape=said.get("shape") or rng.choice(SHAPES),
                size=said.get("size"),
                fill=said.get("fill"),
            )
            for said in claims.objects
        )
        if _allowed(things) and _true(claims, things, preset.pixels):
            return Scene(
                pixels=preset.pixels,
                things=things,
                tone=claims.background if claims.background in TONES else rng.choice(TONES),
                texture=claims.background if claims.background in TEXTURES else rng.choice(TEXTURES),
                shifted=claims.background == "checkered",
                texture_seed=rng.getrandbits(31),
            )
    raise ValueError(f"{text!r}: no such scene of {preset.pixels} px found in {ATTEMPTS} attempts; does the text contradict itself?")


def _allowed(things: tuple[Thing, ...]) -> bool:
    return not any((a.colour, a.shape) == (b.colour, b.shape) or touch(a, b) for a, b in combinations(things, 2))


def _true(claims: Claims, things: tuple[Thing, ...], pixels: int) -> bool:
    if any(relation(things[i], things[j]) != name for i, name, j in claims.relations):
        return False
    return not (claims.place and things) or position(things[0].x, things[0].y, pixels) == claims.place
