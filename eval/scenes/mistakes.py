"""Find errors in a caption of a scene: split the text into pieces that are true of the image, false, or not a claim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from data.sample import Object, Sample
from data.scenes.language import ATTRIBUTES, NUMBERS, RELATION_PHRASE, parse

WEIGHTS = {"shape": 4, "colour": 4, "size": 1, "fill": 1}  # colour and shape make out an object, as no two of a picture share both
Span = tuple[int, int, bool]  # start, end, whether this part is true


def marked(caption: str, sample: Sample) -> list[tuple[str, bool | None]]:
    """The caption of a scenes sample cut into pieces that are true (True), false (False) or claim nothing (None).

    A mentioned object is compared with the true one that it has most in common with; without any, all of it is false.
    Omissions are not marked.
    """
    text, claims = caption.lower(), parse(caption)
    if len(text) != len(caption):  # some capital letters have longer small ones: places would not agree
        return [(caption, None)]
    places = _places(text, claims.objects)
    meant = _meant(claims.objects, sample.objects)
    spans = [
        (*place, thing is not None and _value(sample.objects[thing], name) == said[name])
        for said, words, thing in zip(claims.objects, places, meant, strict=True)
        for name, place in words.items()
    ]
    relations = [tuple(relation) for relation in sample.extra["relations"]]
    for first, name, second in claims.relations:
        start, end = _end(places[first]), _start(places[second])
        spans += _find(text, RELATION_PHRASE[name], (meant[first], name, meant[second]) in relations, start, end)
    if claims.count is not None:
        spans += _find(text, NUMBERS[claims.count] + " object", claims.count == len(sample.objects))
    if claims.background is not None:
        said = f"{claims.background} background"
        spans += _find(text, said, claims.background in (sample.extra["tone"], sample.extra["texture"]))
    if claims.place is not None:
        there = meant[0] is not None and sample.objects[meant[0]].attributes.get("place") == claims.place if meant else False
        spans += _find(text, f"the {claims.place}", there)
    return _pieces(caption, spans)


def _places(text: str, objects: Sequence[dict[str, str]]) -> list[dict[str, tuple[int, int]]]:
    """The position of each word of every mentioned object: {attribute: (start, end)}."""
    found, at = [], 0
    for said in objects:
        words = {name: said[name] for name in ATTRIBUTES if name in said}
        match = re.compile(rf"\b{' '.join(words.values())}\b").search(text, at)
        assert match, f"{text!r} was read as {objects!r}"
        at, where = match.start(), {}
        for name, word in words.items():
            where[name] = (at, at + len(word))
            at += len(word) + 1
        found.append(where)
    return found


def _meant(said: Sequence[dict[str, str]], objects: Sequence[Object]) -> list[int | None]:
    """For each object spoken of the one it has most in common with, each taken once, the best matches first."""
    common = {
        (i, j): sum(weight for name, weight in WEIGHTS.items() if said[i].get(name) == _value(objects[j], name))
        for i, j in product(range(len(said)), range(len(objects)))
    }
    meant: list[int | None] = [None] * len(said)
    for (i, j), shared in sorted(common.items(), key=lambda item: -item[1]):
        if shared and meant[i] is None and j not in meant:
            meant[i] = j
    return meant


def _find(text: str, phrase: str, true: bool, start: int = 0, end: int | None = None) -> list[Span]:
    at = text.find(phrase, start, len(text) if end is None else end)
    return [(at, at + len(phrase), true)] if at >= 0 else []


def _pieces(caption: str, spans: Sequence[Span]) -> list[tuple[str, bool | None]]:
    pieces: list[tuple[str, bool | None]] = []
    at = 0
    for start, end, true in sorted(spans):
        if start >= at:
            pieces += [(caption[at:start], None), (caption[start:end], true)]
            at = end
    return [piece for piece in [*pieces, (caption[at:], None)] if piece[0]]


def _start(words: dict[str, tuple[int, int]]) -> int:
    return min(start for start, _ in words.values())


def _end(words: dict[str, tuple[int, int]]) -> int:
    return max(end for _, end in words.values())


def _value(thing: Object, attribute: str) -> str | None:
    return thing.name if attribute == "shape" else thing.attributes.get(attribute)
