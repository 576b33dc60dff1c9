"""Objects of a picture: what they are called, where they are, and how much their boxes overlap."""

from __future__ import annotations

from collections.abc import Sequence

from data.sample import Object, Sample

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def named(thing: Object) -> str:
    """Colour, if it is known, and name."""
    return f"{thing.attributes.get('colour', '')} {thing.name}".strip()


def unique(things: Sequence[Object]) -> list[Object]:
    """The objects with a name that no other one has."""
    names = [named(each) for each in things]
    return [each for each, name in zip(things, names, strict=True) if name and names.count(name) == 1]


def referring(sample: Sample) -> list[tuple[str, Object]]:
    """Phrases that name one object of a picture, each with that object: those of `extra["referring"]`, [phrase, number of the object], if
    the sample has them, as data with phrases written by people do; otherwise "the red star" for every object with a name of its own."""
    written = sample.extra.get("referring")
    if not isinstance(written, list):
        return [(f"the {named(thing)}", thing) for thing in unique(sample.objects)]
    pairs = [each for each in written if isinstance(each, list) and len(each) == 2]
    known = range(len(sample.objects))
    return [(phrase, sample.objects[number]) for phrase, number in pairs if isinstance(phrase, str) and number in known]


def direction(one: Object, other: Object, clear: float = 1.0) -> str | None:
    """Where the centre of one box is as seen from another's: left, right, above or below. None if it is less than `clear` times as far away
    in that direction as across it."""
    (left, top, right, bottom), box = one.box, other.box
    dx, dy = left + right - box[0] - box[2], top + bottom - box[1] - box[3]
    if abs(dx) >= clear * abs(dy) and dx:
        return "left" if dx < 0 else "right"
    if abs(dy) >= clear * abs(dx) and dy:
        return "above" if dy < 0 else "below"
    return None


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes; 0 if both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = _area(one) + _area(other) - both
    return both / either if either > 0 else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
