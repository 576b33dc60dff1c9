"""One sample: an image with its annotations, and its form inside a WebDataset shard.

On disk a sample is `KEY.jpg|png|webp` (the image), `KEY.txt` (the first caption: img2dataset's convention) and
`KEY.json` (everything else: the fields below by their names). Shards made by img2dataset have the same three members
and are read as they are: their json holds the caption under "caption", and its other columns are kept in `extra`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one image with its answer; `kind` groups questions in reports ("count", "relation", ...).

    With several annotators `answers` holds all their answers, and `answer` the most frequent one.
    """

    question: str
    answer: str
    kind: str = "open"
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Foil:
    """A true caption and a hard negative of it; `kind` names the change ("swap_attribute", "replace_colour", ...)."""

    caption: str
    foil: str
    kind: str


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a picture: its name, box `(left, top, right, bottom)` in pixels, and attributes (`{"colour": "red"}`)."""

    name: str
    box: tuple[float, float, float, float]
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """The input of every model and every task. `image` is uint8 RGB `[height, width, 3]`; all text is plain strings."""

    key: str
    image: np.ndarray
    captions: tuple[str, ...] = ()
    label: str | None = None
    questions: tuple[Question, ...] = ()
    foils: tuple[Foil, ...] = ()
    objects: tuple[Object, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def to_record(sample: Sample) -> dict[str, Any]:
    """The json member of a sample: every field that is set, except key and image."""
    fields = {name: getattr(sample, name) for name in ("captions", "label", "questions", "foils", "objects", "extra")}
    return {
        name: [_fields(item) if not isinstance(item, str) else item for item in value] if isinstance(value, tuple) else value
        for name, value in fields.items()
        if value
    }


def from_record(key: str, image: np.ndarray, text: str | None, record: dict[str, Any]) -> Sample:
    """Inverse of `to_record`; also accepts img2dataset's json, whose unknown columns are kept in `extra`.

    Blank captions are left out. Raises TypeError, KeyError or ValueError when a known field has the wrong type: the loader
    counts such a sample as dropped.
    """
    if not isinstance(record, dict):
        raise TypeError(f"record: expected an object, found {record!r:.80}")
    known = dict(record)
    captions, caption, label = known.pop("captions", None), known.pop("caption", None), known.pop("label", None)
    if captions is None:
        captions = [text if text is not None else caption or ""]
    return Sample(
        key=key,
        image=image,
        captions=tuple(_sound(caption) for caption in _list("captions", captions) if _text("caption", caption).strip()),
        label=str(label) if isinstance(label, int) else None if label is None else _text("label", label),
        questions=tuple(_question(item) for item in _list("questions", known.pop("questions", []))),
        foils=tuple(Foil(**_texts(item)) for item in _list("foils", known.pop("foils", []))),
        objects=tuple(_object(item) for item in _list("objects", known.pop("objects", []))),
        extra=known.pop("extra", {}) | known,
    )


def _fields(item: Question | Foil | Object) -> dict[str, Any]:
    return {name: value for name, value in asdict(item).items() if value != ()}


def _question(item: Any) -> Question:
    fields = dict(item)
    answers = tuple(_text("answer", answer) for answer in _list("answers", fields.pop("answers", [])))
    return Question(**_texts(fields), answers=answers)


def _object(item: Any) -> Object:
    left, top, right, bottom = map(float, item["box"])
    return Object(_text("name", item["name"]), (left, top, right, bottom), dict(item.get("attributes", {})))


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected a list, found {value!r:.80}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, found {value!r:.80}")
    return value


def _texts(fields: Any) -> dict[str, str]:
    return {name: _text(name, value) for name, value in dict(fields).items()}


def _sound(caption: str) -> str:
    """Without lone surrogates, which json can hold and no tokenizer accepts."""
    return caption if caption.isascii() else caption.encode("utf-8", "replace").decode()
