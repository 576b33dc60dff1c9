"""One sample: an image plus whatever is known about it, and its form inside a WebDataset shard.

On disk a sample is `KEY.jpg|png|webp` (the image), `KEY.txt` (the first caption: img2dataset's convention) and
`KEY.json` (everything else: the fields below by their names). Shards made by img2dataset have the same three members
and are read as they are: their json holds the caption under "caption" and columns that we keep in `extra`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one image with its answer; `kind` groups questions in reports ("count", "relation", ...)."""

    question: str
    answer: str
    kind: str = "open"


@dataclass(frozen=True, slots=True)
class Foil:
    """A true caption and a hard negative of it; `kind` says what was changed ("swap_attribute", "replace_colour", ...)."""

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
    """What every model and every task sees. `image` is uint8 RGB `[height, width, 3]`; all text is plain strings."""

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
        name: [asdict(item) if not isinstance(item, str) else item for item in value] if isinstance(value, tuple) else value
        for name, value in fields.items()
        if value
    }


def from_record(key: str, image: np.ndarray, text: str | None, record: dict[str, Any]) -> Sample:
    """Inverse of `to_record`; also accepts img2dataset's json, whose unknown columns are kept in `extra`.

    Raises TypeError or KeyError when a known field has the wrong shape: the loader counts such a sample as dropped.
    """
    known = dict(record)
    captions = known.pop("captions", None)
    caption = known.pop("caption", None)
    if captions is None:
        first = text if text is not None else caption
        captions = [first] if first else []
    if isinstance(captions, str) or not all(isinstance(item, str) for item in captions):
        raise TypeError(f"captions: expected a list of strings, found {captions!r:.80}")
    return Sample(
        key=key,
        image=image,
        captions=tuple(captions),
        label=known.pop("label", None),
        questions=tuple(Question(**item) for item in known.pop("questions", ())),
        foils=tuple(Foil(**item) for item in known.pop("foils", ())),
        objects=tuple(Object(item["name"], tuple(item["box"]), item.get("attributes", {})) for item in known.pop("objects", ())),
        extra=known.pop("extra", {}) | known,
    )
