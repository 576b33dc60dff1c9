"""Mirror a sample: its images, its boxes, and the words of its texts that name sides."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from data.sample import Foil, Object, Question, Sample

SIDES = {"left": "right", "right": "left"}
# Also in "leftmost", "left-hand" and "rightwards", but not in "bright", "rights" or "lefty".
_SIDE = re.compile(rf"\b({'|'.join(SIDES)})(?=(?:most|wards?|hand(?:ed)?)?\b)", re.IGNORECASE)


def mirrored(sample: Sample) -> Sample:
    """The sample as seen in a mirror; mirrored again, it is the same.

    All texts have "left" and "right" exchanged; in `extra`, which may contain anything, only values that are nothing but such a word. The
    words are English, and not every use of them names a side: "all right" becomes "all left". Writing in the picture is mirrored, too.
    """
    width = sample.image.shape[1]
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        captions=tuple(map(exchanged, sample.captions)),
        label=None if sample.label is None else exchanged(sample.label),
        questions=tuple(
            Question(exchanged(each.question), exchanged(each.answer), each.kind, tuple(map(exchanged, each.answers)))
            for each in sample.questions
        ),
        foils=tuple(Foil(exchanged(each.caption), exchanged(each.foil), each.kind) for each in sample.foils),
        objects=tuple(_mirrored(each, width) for each in sample.objects),
        others=tuple(np.ascontiguousarray(other[:, ::-1]) for other in sample.others),
        page=tuple(exchanged(each) if isinstance(each, str) else each for each in sample.page),
        extra=_sides_exchanged(sample.extra),
    )


def exchanged(text: str) -> str:
    """The text with "left" and "right" exchanged, in the case in which they are written."""
    return _SIDE.sub(_other, text)


def _other(found: re.Match[str]) -> str:
    word = found[0]
    other = SIDES[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _mirrored(thing: Object, width: int) -> Object:
    left, top, right, bottom = thing.box
    attributes = {name: exchanged(value) for name, value in thing.attributes.items()}
    return Object(exchanged(thing.name), (width - right, top, width - left, bottom), attributes)


def _sides_exchanged(value: Any) -> Any:
    """A json value in which the strings "left" and "right" are exchanged, at any depth."""
    if isinstance(value, dict):
        return {name: _sides_exchanged(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sides_exchanged(each) for each in value)
    return SIDES.get(value, value) if isinstance(value, str) else value
