"""The split "pairs": two pictures and two captions with the same words in other roles, after Winoground (Thrush et al. 2022).

The pictures of a pair differ in one exchange between two of their objects and in nothing else: places, sizes, angles and even
the noise of the background are the same, so only the exchange decides which caption belongs to which picture. Captions name
the objects in an order independent of their places. No picture has a pair of colour and shape that training lacks: the split
tests binding, not new combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from data.scenes.language import ATTRIBUTES, listed, related
from data.scenes.world import HELD_OUT, Preset, Scene, Thing, fits, relation, sample_scene

KINDS = ("swap_attribute_colour", "swap_attribute_size", "swap_attribute_fill", "swap_relation")  # named like the foils of the same swap


def sample_pair(preset: Preset, kind: str, rng: Random) -> list[tuple[Scene, str]]:
    """Two scenes, each with its caption. A picture's caption is false of the other one."""
    while True:
        scene = sample_scene(preset, "pairs", rng)  # its objects come in random order: any two are as good as the first two
        if len(scene.things) < 2:
            continue
        other = replace(scene, things=_exchanged(scene.things, kind))
        if _differ(scene, other, kind) and _allowed(other):
            break
    pair = [(scene, _caption(scene.things, kind)), (other, _caption(other.things, kind, turned=True))]
    return rng.sample(pair, 2)


def _exchanged(things: tuple[Thing, ...], kind: str) -> tuple[Thing, ...]:
    """The first two objects with their place, colour, size or fill exchanged."""
    a, b, *rest = things
    names = {"swap_relation": ("x", "y"), "swap_attribute_size": ("size", "radius")}.get(kind, (kind.rpartition("_")[2],))

    def with_those_of(thing: Thing, giver: Thing) -> Thing:
        return replace(thing, **{name: getattr(giver, name) for name in names})

    return (with_those_of(a, b), with_those_of(b, a), *rest)


def _differ(scene: Scene, other: Scene, kind: str) -> bool:
    """Whether each caption is false of the other picture."""
    if kind == "swap_relation":
        return relation(scene.things[0], scene.things[1]) is not None

    def kinds(things: Sequence[Thing]) -> set[tuple[str, ...]]:
        return {tuple(getattr(thing, name) for name in _detail(kind)) for thing in things}

    return kinds(scene.things) != kinds(other.things)


def _allowed(scene: Scene) -> bool:
    return fits(scene.things, scene.pixels) and not any((thing.colour, thing.shape) in HELD_OUT for thing in scene.things)


def _caption(things: Sequence[Thing], kind: str, *, turned: bool = False) -> str:
    """`turned`: the objects have exchanged places, so the second is now where the first was."""
    if kind != "swap_relation":
        return listed(things, _detail(kind))
    a, b = (things[1], things[0]) if turned else (things[0], things[1])
    return related(a, relation(a, b) or "", b, things, _detail(kind))


def _detail(kind: str) -> tuple[str, ...]:
    return tuple(name for name in ATTRIBUTES if name in (kind.rpartition("_")[2], "colour", "shape"))
