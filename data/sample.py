"""One sample: an image with its annotations, and its form inside a WebDataset shard.

On disk a sample is `KEY.jpg|png|webp` (the image), `KEY.txt` (the first caption: img2dataset's convention) and
`KEY.json` (everything else: the fields below by their names). A sample with several images, such as a page of images and texts, says
their number in its json, `"images": 3`, and has `KEY.1.jpg` and `KEY.2.jpg` beside `KEY.jpg`. Shards made by img2dataset have the same
three members and are read as they are: their json holds the caption under "caption", and its other columns are kept in `extra`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from data.captions import lines_of, list_of, usable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_NAMES = ("caption", "text", "texts", "alt_text")  # of json fields, in any case, where there are neither `captions` nor a .txt

FORMS = {  # of fields of a sample's json, for messages
    "questions": '[{"question": "...", "answer": "..."}, ...]',
    "foils": '[{"caption": "...", "foil": "...", "kind": "..."}, ...]',
    "objects": '[{"name": "...", "box": [left, top, right, bottom]}, ...] with finite numbers',
    "extra": "an object",
    "page": '[0, "a text", 1, ...], texts and the numbers of the sample\'s images',
}

T = TypeVar("T")
Problems = dict[str, list[str]]  # what could not be read of a sample, by name, with the reason for each


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
    """The input of every model and every task. `image` is uint8 RGB `[height, width, 3]`; all text is plain strings.

    A sample may have more images (`others`); all fields but `page` are about the first one. `page` is what a reader of the sample sees,
    in order: texts, and images by their index in `images`.
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...] = ()
    label: str | None = None
    questions: tuple[Question, ...] = ()
    foils: tuple[Foil, ...] = ()
    objects: tuple[Object, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    others: tuple[np.ndarray, ...] = ()
    page: tuple[str | int, ...] = ()

    @property
    def images(self) -> tuple[np.ndarray, ...]:
        """All images, the first one included."""
        return (self.image, *self.others)

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions and the texts of the page."""
        return (*self.captions, *(part for part in self.page if isinstance(part, str)))

    @property
    def decoded_bytes(self) -> int:
        """The size of all images in memory."""
        return sum(image.nbytes for image in self.images)


def to_record(sample: Sample) -> dict[str, Any]:
    """The json member of a sample: every field that is set, except key and images."""
    fields = {name: getattr(sample, name) for name in ("captions", "label", "questions", "foils", "objects", "extra", "page")}
    fields |= {"images": len(sample.images)} if sample.others else {}
    return {
        name: [_fields(item) if not isinstance(item, str | int) else item for item in value] if isinstance(value, tuple) else value
        for name, value in fields.items()
        if value
    }


def from_record(
    key: str,
    image: np.ndarray,
    text: str | None,
    record: dict[str, Any],
    bad: Problems | None = None,
    others: Sequence[np.ndarray] = (),
) -> Sample:
    """Inverse of `to_record`; also accepts other json objects, whose unknown fields are kept in `extra`.

    Captions are those of the field `captions`, before them the lines of `text` (the .txt member) if they are others; without the field
    those lines; without both the first of the fields `CAPTION_NAMES`. A text equal to the field `caption` is one caption, whatever its
    lines: img2dataset writes it twice. Captions that are none (`data.captions.usable`) are left out.

    What has the wrong type or is left out is named in `bad`, with the reason for each. Without `bad` it raises TypeError.
    """
    known = dict(record)
    if others:
        known.pop("images", None)

    def complain(name: str, why: str) -> None:
        if bad is None:
            raise TypeError(why)
        bad.setdefault(name, []).append(why)

    def take(name: str, read: Callable[[Any], T], default: T) -> T:
        value: Any = known.pop(name, None)
        try:
            return default if value is None else read(value)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            own = ": expected" in str(error) or name not in FORMS
            complain(name, str(error) if own else f"{name}: expected {FORMS[name]}, found {value!r:.80}")
            return default

    def take_captions(name: str, read: Callable[[Any], list[Any]]) -> list[str]:
        return choose(name, take(name, read, []))

    def choose(name: str, values: list[Any]) -> list[str]:
        captions, others = usable(values)
        for kind in others.elements():
            complain(kind, f"{name}: expected strings, found {values!r:.80}")
        return [sound(caption) for caption in captions]

    caption = known.get("caption")
    captions = take_captions("captions", _many)
    if text and text not in captions:
        one = isinstance(caption, str) and text.strip() == caption.strip() != ""
        lines = choose("text", [text] if one else lines_of(text))
        if not set(lines) <= set(captions):
            captions = [*lines, *captions]
    if caption and caption in (text, *captions):
        known.pop("caption", None)
    elif not captions:
        by_name = {name.lower(): name for name in known}
        candidates = (take_captions(by_name[name], _one_or_many) for name in CAPTION_NAMES if name in by_name)
        captions = next(filter(None, candidates), [])
    return Sample(
        key=key,
        image=image,
        captions=tuple(captions),
        label=take("label", _label, None),
        questions=take("questions", lambda value: tuple(map(_question, _list("questions", value))), ()),
        foils=take("foils", lambda value: tuple(Foil(**_texts(item, Foil)) for item in _list("foils", value)), ()),
        objects=take("objects", lambda value: tuple(map(_object, _list("objects", value))), ()),
        page=take("page", lambda value: _page(value, 1 + len(others)), ()) if isinstance(known.get("page"), list) else (),
        extra=take("extra", lambda value: value | {}, {}) | known,
        others=tuple(others),
    )


def sound(text: str) -> str:
    """Without lone surrogates, which are valid in json but rejected by tokenizers."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _fields(item: Question | Foil | Object) -> dict[str, Any]:
    return {name: value for name, value in asdict(item).items() if value != ()}


def _question(item: Any) -> Question:
    answers = tuple(_text("answer", answer) for answer in _list("answers", item.get("answers", [])))
    return Question(**_texts({name: value for name, value in item.items() if name != "answers"}, Question), answers=answers)


def _object(item: Any) -> Object:
    left, top, right, bottom = map(float, item["box"])
    if not math.isfinite(left + top + right + bottom):
        raise ValueError(f"box: expected finite numbers, found {item['box']!r:.80}")
    return Object(_text("name", item["name"]), (left, top, right, bottom), dict(item.get("attributes", {})))


def _page(value: list[Any], images: int) -> tuple[str | int, ...]:
    for part in value:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"page: expected {FORMS['page']}, found {part!r:.80}")
        if isinstance(part, int) and not 0 <= part < images:
            raise ValueError(f"page: expected the numbers 0 to {images - 1} for {images} images, found {part}")
    return tuple(sound(part) if isinstance(part, str) else part for part in value)


def _label(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text("label", value)


def _many(value: Any) -> list[Any]:
    """A list, or one string with a caption a line."""
    return lines_of(value) if isinstance(value, str) else _list("captions", value)


def _one_or_many(value: Any) -> list[Any]:
    """A string is one caption, even with several lines, unless it is a printed list."""
    listed = list_of(value) if isinstance(value, str) else _list("caption", value)
    return [value] if listed is None else listed


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected a list, found {value!r:.80}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, found {value!r:.80}")
    return value


def _texts(item: Any, kind: type[Question | Foil]) -> dict[str, str]:
    """The fields that a question or foil has; others are not read."""
    return {name: _text(name, item[name]) for name in kind.__slots__ if name in item}
