"""MiniGPT-v2's tasks: requests about an image, told apart by an identifier in front, with replies from its annotations (section 3).

[caption] a description · [vqa] a short answer · [refer] the box of an object that is named · [identify] the name of the object in a box ·
[detection] the boxes of objects of a kind · [grounding] a description whose phrases have boxes. Conversations have no identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from data.english import with_article
from data.objects import named, referring
from data.sample import Object, Sample
from models.minigpt4.instructions import converse
from models.shared.boxes import box_text
from models.shared.chat import Template, Turn, laid_out
from models.shared.images import ImageTransform
from models.shared.prompts import DESCRIBE
from models.shared.tasks import Draw, drawn

Item = TypeVar("Item")
LOCATE, NAME, GROUND = "give me the location of {}", "what object is in this location {}", "describe this picture in detail."


def identified(task: str, request: str, *, identifiers: bool = True) -> str:
    return f"[{task}] {request}" if identifiers else request


def _caption(sample: Sample, rng: Draw) -> Turn | None:
    return Turn(_one(DESCRIBE, rng), _one(sample.captions, rng)) if sample.captions else None


def _vqa(sample: Sample, rng: Draw) -> Turn | None:
    if not sample.questions:
        return None
    asked = _one(sample.questions, rng)
    return Turn(asked.question, asked.answer)


def _refer(sample: Sample, rng: Draw) -> Turn | None:
    if not (things := referring(sample)):
        return None
    phrase, thing = _one(things, rng)
    return Turn(LOCATE.format(phrase), _box(thing, sample))


def _identify(sample: Sample, rng: Draw) -> Turn | None:
    if not (things := [each for each in sample.objects if named(each)]):
        return None
    thing = _one(things, rng)
    return Turn(NAME.format(_box(thing, sample)), named(thing))


def _detection(sample: Sample, rng: Draw) -> Turn | None:
    if not (things := [each for each in sample.objects if each.name]):
        return None
    kind = _one(things, rng).name
    return Turn(kind, " ".join(f"<p>{named(each)}</p> {_box(each, sample)}" for each in things if each.name == kind))


def _grounding(sample: Sample, rng: Draw) -> Turn | None:
    things = sorted((each for each in sample.objects if named(each)), key=lambda each: each.box)
    return Turn(GROUND, ", ".join(f"<p>{with_article(named(each))}</p> {_box(each, sample)}" for each in things)) if things else None


TASKS: Mapping[str, Callable[[Sample, Draw], Turn | None]] = {
    "caption": _caption,
    "vqa": _vqa,
    "refer": _refer,
    "identify": _identify,
    "detection": _detection,
    "grounding": _grounding,
}
# Weight of each task in a stage's samples (section 3.3): first mostly what web data have (captions, with and without boxes), then the
# fine-grained tasks alone, then conversations, too.
STAGES: Mapping[str, Mapping[str, float]] = {
    "pretraining": {"caption": 4, "grounding": 3, "vqa": 1, "refer": 1, "identify": 1, "detection": 1},
    "tasks": {"caption": 1, "vqa": 3, "refer": 3, "identify": 1, "detection": 1},
    "instructions": {"caption": 1, "vqa": 2, "refer": 2, "identify": 1, "detection": 1, "grounding": 1, "conversation": 2},
}


def turns(sample: Sample, rng: Draw, mixture: Mapping[str, float], *, identifiers: bool = True) -> list[Turn]:
    """One task of the mixture that the sample's annotations allow, or a conversation of one or two turns."""
    tasks: dict[str, Callable[[Sample, Draw], Turn | list[Turn] | None]] = {**TASKS, "conversation": converse}
    found: tuple[str, Turn | list[Turn]] | None = drawn(sample, rng, mixture, tasks)
    if found is None:
        return converse(sample, rng)
    task, made = found
    return [Turn(identified(task, made.request, identifiers=identifiers), made.reply)] if isinstance(made, Turn) else made


@dataclass(frozen=True)
class TasksCollate:
    transform: ImageTransform
    template: Template
    mixture: Mapping[str, float]
    identifiers: bool

    def __call__(self, samples: Sequence[Sample], rng: Draw | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`, "ids" and "labels" `[B, T]`. Without a generator tasks are drawn with seed 0."""
        draw = rng or np.random.default_rng(0)
        rows = [self.template.conversation(turns(sample, draw, self.mixture, identifiers=self.identifiers)) for sample in samples]
        return {"pixels": self.transform([sample.image for sample in samples], rng), **laid_out(rows)}


def _box(thing: Object, sample: Sample) -> str:
    height, width = sample.image.shape[:2]
    return box_text(thing.box, height, width)


def _one(items: Sequence[Item], rng: Draw) -> Item:
    return items[int(rng.integers(len(items)))]
