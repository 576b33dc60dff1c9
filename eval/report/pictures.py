"""The picture browser: what every model made of the same pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    correct: bool | None  # whether it is a text of this very picture


@dataclass(frozen=True, kw_only=True)
class Because:
    image: str  # a data: URI
    text: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one model made of a picture. Empty is what it cannot do."""

    model: str
    caption: list[tuple[str, bool | None]]  # pieces of text, and whether they are true of the picture (None: nothing is claimed)
    answers: list[Answer]
    ranked: list[Ranked]  # best first
    because: list[Because]  # pairs to which the first one owes its place
    drawing: str  # a data: URI
    unmasked: list[str]  # data: URIs: parts hidden, filled in with the text's help, without it
    how: dict[str, str]  # "answers", "ranked", ... -> the adapter behind it

    @property
    def gist(self) -> tuple[Any, ...]:
        return "".join(text for text, _ in self.caption), tuple(each.said for each in self.answers), tuple(r.text for r in self.ranked[:1])


@dataclass(frozen=True, kw_only=True)
class Picture:
    key: str
    split: str
    image: str  # a data: URI
    truth: list[str]  # the first is what drawings were asked to show
    shown: list[Shown]

    @property
    def agree(self) -> bool:
        """Whether all models say the same."""
        return len({shown.gist for shown in self.shown}) == 1


def pictures(rows: Sequence[Row]) -> list[Picture]:
    """The showcase pictures, each with what every row's first seed made of it. Images that are no embedded raster are left out."""
    found: dict[str, Picture] = {}
    for row in rows:
        result = row.results[0]
        for item in result.showcase.get("items", []):
            if not RASTER.fullmatch(str(item.get("image", ""))):
                continue
            key, truth = str(item["key"]), [str(text) for text in item.get("truth", [])]
            split = str(result.showcase.get("split", ""))
            picture = found.setdefault(key, Picture(key=key, split=split, image=str(item["image"]), truth=truth, shown=[]))
            picture.shown.append(_shown(row.name, item, result))
    return list(found.values())


GALLERY = 4  # pictures that the report opens with
DOES = {"caption": "Says", "answers": "Answers", "drawing": "Draws", "ranked": "Ranks first"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What all models that can do one thing made of the gallery's pictures."""

    ability: str
    head: str
    lines: list[tuple[str, list[Shown | None]]]  # model, and what it made of each picture

    @property
    def questions(self) -> list[str]:
        """What the first answers are about, for each picture, with the right ones."""
        columns = zip(*(made for _, made in self.lines), strict=True)
        asked = [next((shown.answers[0] for shown in column if shown and shown.answers), None) for column in columns]
        return [f"{each.question} ({each.truth})" if each else "" for each in asked]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A few pictures side by side, with what every model says of them, answers, ranks and draws."""

    pictures: list[Picture]
    parts: list[Part]


def gallery(rows: Sequence[Row], found: Sequence[Picture]) -> Gallery:
    """Evenly spaced among the showcase's pictures, whatever models made of them; a line for each page, the first of its rows."""
    chosen = [found[i * len(found) // GALLERY] for i in range(GALLERY)] if len(found) > GALLERY else list(found)
    names = {row.label: row.name for row in reversed(rows)}  # the first row of each
    parts = []
    for ability, head in DOES.items():
        lines: list[tuple[str, list[Shown | None]]] = []
        for label in dict.fromkeys(row.label for row in rows):
            made = [next((each for each in picture.shown if each.model == names[label]), None) for picture in chosen]
            if any(each and getattr(each, ability) for each in made):
                lines.append((label, made))
        if lines:
            parts.append(Part(ability=ability, head=head, lines=lines))
    return Gallery(pictures=chosen, parts=parts)


def abilities(shown: Sequence[Picture]) -> list[str]:
    """Which columns the browser needs: those in which some model has something to show."""
    everything = [each for picture in shown for each in picture.shown]
    return [
        name
        for name in ("caption", "answers", "ranked", "because", "drawing", "unmasked")
        if any(getattr(each, name) for each in everything)
    ]


def _shown(model: str, item: dict[str, Any], result: Result) -> Shown:
    drawing = str(item.get("drawing") or "")
    unmasked = [str(each) for each in item.get("unmasked") or []]
    return Shown(
        model=model,
        caption=[(str(text), ok) for text, ok in item.get("caption") or []],
        answers=[
            Answer(question=str(each["question"]), truth=str(each["truth"]), said=str(each["said"]), right=bool(each["right"]))
            for each in item.get("answers") or []
        ],
        ranked=[Ranked(text=str(each["text"]), score=each.get("score"), correct=each.get("correct")) for each in item.get("ranked") or []],
        because=[
            Because(image=str(each["image"]), text=str(each["text"]), share=float(each["share"]))
            for each in item.get("because") or []
            if RASTER.fullmatch(str(each["image"]))
        ],
        drawing=drawing if RASTER.fullmatch(drawing) else "",
        unmasked=unmasked if len(unmasked) == 3 and all(map(RASTER.fullmatch, unmasked)) else [],
        how={str(name): str(adapter) for name, adapter in (result.showcase.get("adapters") or {}).items()},
    )
