"""Sample outputs: what each model generates, answers and ranks for the same test images."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.numbers import number
from eval.report.results import Result
from eval.report.rows import Row

RASTER = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True, kw_only=True)
class Answer:
    question: str
    truth: str
    said: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Ranked:
    text: str
    score: float | None
    correct: bool | None  # whether the text belongs to this image


@dataclass(frozen=True, kw_only=True)
class Because:
    image: str  # a data: URI
    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """Attention over the patches of an image, in percent of the largest, row by row; and the part of the image that they cover."""

    side: int
    percent: list[int]
    area: list[float]  # left, top, right, bottom, as shares of width and height


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The outputs of one model for one image. Fields are empty for what the model cannot do."""

    model: str
    caption: list[tuple[str, bool | None]]  # pieces of the caption, and whether they are true of the image (None: makes no claim)
    score: float | None  # CIDEr-D of the caption, where the truth of the image is unknown
    answers: list[Answer]
    ranked: list[Ranked]  # best first
    because: list[Because]  # training pairs that contribute most to the score of the first text
    drawing: str  # a data: URI
    unmasked: list[str]  # three data: URIs: masked image, reconstruction with the caption, reconstruction without it
    look: Look | None
    how: dict[str, str]  # "answers", "ranked", ... -> the adapter that was used

    @property
    def gist(self) -> tuple[Any, ...]:
        return "".join(text for text, _ in self.caption), tuple(each.said for each in self.answers), tuple(r.text for r in self.ranked[:1])


@dataclass(frozen=True, kw_only=True)
class Picture:
    key: str
    split: str
    image: str  # a data: URI
    truth: list[str]  # captions; the first is the prompt of the drawings
    shown: list[Shown]

    @property
    def score(self) -> float | None:
        """Mean CIDEr-D of the captions that have one."""
        scores = [shown.score for shown in self.shown if shown.score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def agree(self) -> bool:
        """Whether all models give the same output."""
        return len({shown.gist for shown in self.shown}) == 1


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """The showcase images with the outputs of every row's first seed, in the order of their captions' scores, the best first. Items whose
    image is not an embedded raster are left out."""
    found: dict[str, Picture] = {}
    for row in rows:
        result = row.results[0]
        try:
            made = [(item, _shown(row.name, item, result)) for item in result.showcase.get("items", []) if _has_picture(item)]
            named = [(str(item["key"]), [str(text) for text in item.get("truth", [])]) for item, _ in made]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            result.run.faults.append(f"{result.folder / 'showcase.json'}: {what}. Evaluate again: {result.command}")
            continue
        split = str(result.showcase.get("split", ""))
        for (item, shown), (key, truth) in zip(made, named, strict=True):
            picture = found.setdefault(key, Picture(key=key, split=split, image=str(item["image"]), truth=truth, shown=[]))
            picture.shown.append(shown)
    return sorted(found.values(), key=lambda picture: -math.inf if picture.score is None else picture.score, reverse=True)


def _has_picture(item: dict[str, Any]) -> bool:
    return bool(RASTER.fullmatch(str(item.get("image", ""))))


GALLERY = 4  # images at the top of the report
DOES = {"caption": "Captions", "answers": "Answers", "drawing": "Draws", "ranked": "Ranks first"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """The gallery's part for one ability: the outputs of all models that have it."""

    ability: str
    head: str
    lines: list[tuple[str, list[Shown | None]]]  # (model, its outputs for each image)

    @property
    def questions(self) -> list[str]:
        """For each image the first question, followed by its correct answer."""
        columns = zip(*(made for _, made in self.lines), strict=True)
        asked = [next((shown.answers[0] for shown in column if shown and shown.answers), None) for column in columns]
        return [f"{each.question} ({each.truth})" if each else "" for each in asked]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A few images side by side, with the outputs of every model."""

    sources: list[str]  # data sets
    pictures: list[tuple[str, Picture]]  # with their data sets
    parts: list[Part]


def gallery(sources: Sequence[tuple[str, Sequence[Row], Sequence[Picture]]]) -> Gallery:
    """Build the gallery from evenly spaced showcase images, chosen independently of the outputs, of up to GALLERY data sets, given as
    (name, rows, pictures). Each page gets one line. Of several rows, its outputs for a data set are those of the one that was trained on
    it, with the preset `tiny` if possible."""
    having = [source for source in sources if source[2]][:GALLERY]
    chosen: list[tuple[str, dict[str, str], Picture]] = []  # data set, page -> name of its row, image
    for place, (name, rows, found) in enumerate(having):
        count = (GALLERY + len(having) - 1 - place) // len(having)
        names: dict[str, str] = {}
        for row in sorted(rows, key=lambda row: (row.trained_on != name, row.preset != "tiny")):
            names.setdefault(row.label, row.name)
        ordered = sorted(found, key=lambda picture: picture.key)  # not by the scores of captions
        evenly = [ordered[i * len(ordered) // count] for i in range(count)] if len(ordered) > count else ordered
        chosen += [(name, names, picture) for picture in evenly]
    labels = dict.fromkeys(row.label for _, rows, _ in having for row in rows)
    parts = []
    for ability, head in DOES.items():
        lines: list[tuple[str, list[Shown | None]]] = []
        for label in labels:
            made = [next((each for each in picture.shown if each.model == names.get(label)), None) for _, names, picture in chosen]
            if any(each and getattr(each, ability) for each in made):
                lines.append((label, made))
        if lines:
            parts.append(Part(ability=ability, head=head, lines=lines))
    return Gallery(sources=[name for name, _, _ in having], pictures=[(name, picture) for name, _, picture in chosen], parts=parts)


def abilities(shown: Sequence[Picture]) -> list[str]:
    """Columns of the image browser: the abilities that at least one model has."""
    everything = [each for picture in shown for each in picture.shown]
    return [
        name
        for name in ("caption", "answers", "ranked", "because", "drawing", "unmasked", "look")
        if any(getattr(each, name) for each in everything)
    ]


def _shown(model: str, item: dict[str, Any], result: Result) -> Shown:
    drawing = str(item.get("drawing") or "")
    unmasked = [str(each) for each in item.get("unmasked") or []]
    return Shown(
        model=model,
        caption=[(str(text), ok) for text, ok in item.get("caption") or []],
        score=number(item.get("score")),
        answers=[
            Answer(question=str(each["question"]), truth=str(each["truth"]), said=str(each["said"]), right=bool(each["right"]))
            for each in item.get("answers") or []
        ],
        ranked=[
            Ranked(text=str(each["text"]), score=number(each.get("score")), correct=each.get("correct"))
            for each in item.get("ranked") or []
        ],
        because=[
            Because(image=str(each["image"]), text=str(each["text"]), share=float(each["share"]))
            for each in item.get("because") or []
            if RASTER.fullmatch(str(each["image"]))
        ],
        drawing=drawing if RASTER.fullmatch(drawing) else "",
        unmasked=unmasked if len(unmasked) == 3 and all(map(RASTER.fullmatch, unmasked)) else [],
        look=_look(item.get("look")),
        how={str(name): str(adapter) for name, adapter in (result.showcase.get("adapters") or {}).items()},
    )


LARGEST_SIDE = 64  # patches


def _look(raw: Any) -> Look | None:
    """None if it is no square of shares, or covers nothing. Raises ValueError for what is no number, TypeError for another structure."""
    if raw is None:
        return None
    rows = [[number(share) for share in row] for row in raw["shares"]]
    area = [edge for edge in map(number, raw["area"]) if edge is not None]
    shares = [share for row in rows for share in row if share is not None and share >= 0]
    side, most = len(rows), max(shares, default=0)
    inside = len(area) == 4 and 0 <= area[0] < area[2] <= 1 and 0 <= area[1] < area[3] <= 1
    if not (inside and 0 < side <= LARGEST_SIDE and len(shares) == side**2 and all(len(row) == side for row in rows) and most > 0):
        return None
    return Look(side=side, percent=[round(100 * (share / most)) for share in shares], area=area)
