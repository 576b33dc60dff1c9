"""What Qwen-VL learns from: captions, then several tasks with boxes as text and some text without images, then conversations
(arXiv 2308.12966, section 3 and appendix B).

A task is a request with the reply that is learned. Objects and boxes are marked: `<ref>the red star</ref><box>(105,203),(391,480)</box>`.

caption a description · vqa a short answer · refer the box of an object that is named · identify the name of the object in a box ·
grounding a description whose phrases have boxes · several a request about all images of a sample · text a text without its image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from data.dialogues import turns_of
from data.english import with_article
from data.objects import named, referring
from data.sample import Object, Sample
from models.contract import Batch
from models.llava.instructions import dialogues
from models.shared.boxes import THOUSANDTHS, box_text
from models.shared.chat import Row, Template, Turn, packed
from models.shared.images import ImageTransform
from models.shared.tasks import Draw, drawn

T = TypeVar("T")
CAPTION, ANSWER, GROUND = "Describe the image in English:", "{} Answer:", "Describe the image in English with boxes:"
REFER = "<ref>{}</ref>"
LOCATE = "where is {}?"  # in a conversation


def boxed(thing: Object, sample: Sample) -> str:
    height, width = sample.image.shape[:2]
    return f"<box>{box_text(thing.box, height, width, THOUSANDTHS)}</box>"


def _caption(sample: Sample, rng: Draw) -> Turn | None:
    return Turn(CAPTION, _one(sample.captions, rng)) if sample.captions else None


def _vqa(sample: Sample, rng: Draw) -> Turn | None:
    if not sample.questions:
        return None
    asked = _one(sample.questions, rng)
    return Turn(ANSWER.format(asked.question), asked.answer)


def _refer(sample: Sample, rng: Draw) -> Turn | None:
    if not (things := referring(sample)):
        return None
    phrase, thing = _one(things, rng)
    return Turn(REFER.format(phrase), boxed(thing, sample))


def _identify(sample: Sample, rng: Draw) -> Turn | None:
    if not (things := [each for each in sample.objects if named(each)]):
        return None
    thing = _one(things, rng)
    return Turn(boxed(thing, sample), f"<ref>the {named(thing)}</ref>")


def _grounding(sample: Sample, rng: Draw) -> Turn | None:
    things = sorted((each for each in sample.objects if named(each)), key=lambda each: each.box)
    said = ", ".join(f"<ref>{with_article(named(each))}</ref>{boxed(each, sample)}" for each in things)
    return Turn(GROUND, said) if things else None


def _several(sample: Sample, rng: Draw) -> Turn | None:
    turns = turns_of(sample)
    return Turn(*_one(turns, rng)) if turns else None


TASKS: Mapping[str, Callable[[Sample, Draw], Turn | None]] = {
    "caption": _caption,
    "vqa": _vqa,
    "refer": _refer,
    "identify": _identify,
    "grounding": _grounding,
    "several": _several,
}
# The second stage's samples, in millions in table 3: captions 19.7, questions 3.6, boxes of phrases 8.7, phrases of boxes 8.7, grounded
# captions 3.5, and 24.8 of text reading, which the embedded data do not have. Here a tenth of that many captions are enough, since
# questions have to be learned from these samples alone.
MIXTURE: Mapping[str, float] = {"caption": 2, "vqa": 4, "refer": 4, "identify": 1, "grounding": 1, "several": 4}


@dataclass(frozen=True)
class TextsCollate:
    """Collates samples with up to K texts each, about their first image, about all of them, or about none."""

    transform: ImageTransform
    plain: Template
    chat: Template
    sequences: int

    def __call__(self, samples: Sequence[Sample], rng: Draw | None = None) -> Batch:
        """ "ids" and "labels" `[B, K, T]`; "pixels" uint8 `[B, P, 3, S, S]`, of which the first "pictures" `[B]` are a sample's. Without a
        generator texts are the first ones, or drawn with seed 0."""
        groups = [self.rows(sample, rng) for sample in samples]
        shown = [len(sample.images) if turns_of(sample) else 1 for sample in samples]
        pixels = torch.zeros(len(samples), max(shown), 3, self.transform.size, self.transform.size, dtype=torch.uint8)
        for place, sample, count in zip(pixels, samples, shown, strict=True):
            place[:count] = self.transform(sample.images[:count], rng)
        return packed(groups) | {"pixels": pixels, "pictures": torch.tensor(shown)}

    def rows(self, sample: Sample, rng: Draw | None) -> list[Row]:
        """Up to K sequences about a sample."""
        raise NotImplementedError

    def about_all(self, sample: Sample, turns: Sequence[Turn]) -> Row:
        return self.chat.conversation(turns, images=len(sample.images))


@dataclass(frozen=True)
class CaptionCollate(TextsCollate):
    """The first stage: captions."""

    def rows(self, sample: Sample, rng: Draw | None) -> list[Row]:
        order = range(len(sample.captions)) if rng is None else rng.permutation(len(sample.captions))
        return [self.plain.conversation([Turn(CAPTION, sample.captions[place])]) for place in order[: self.sequences]]


@dataclass(frozen=True)
class TasksCollate(TextsCollate):
    """The second stage: tasks, and texts alone."""

    text_share: float

    def rows(self, sample: Sample, rng: Draw | None) -> list[Row]:
        draw = rng or np.random.default_rng(0)
        return [self._row(sample, draw) for _ in range(self.sequences)]

    def _row(self, sample: Sample, rng: Draw) -> Row:
        if sample.captions and rng.random() < self.text_share:
            return self.plain.conversation([Turn("", _one(sample.captions, rng))], images=0)
        task, turn = drawn(sample, rng, MIXTURE, TASKS) or ("caption", Turn(CAPTION, ""))
        return self.about_all(sample, [turn]) if task == "several" else self.plain.conversation([turn])


@dataclass(frozen=True)
class ChatCollate(TextsCollate):
    """The third stage: conversations, LLaVA's and about places; of a sample with several images also one about them."""

    requests: int

    def rows(self, sample: Sample, rng: Draw | None) -> list[Row]:
        draw = rng or np.random.default_rng(0)
        of_all = turns_of(sample)
        count = self.sequences - bool(of_all)
        talks = dialogues(sample, draw, conversations=count, most=self.requests) if count else []
        things = referring(sample)
        if talks and things:
            name, thing = _one(things, draw)
            _one(talks, draw).append(Turn(LOCATE.format(name), f"{REFER.format(name)}{boxed(thing, sample)}"))
        rows = [self.chat.conversation(turns) for turns in talks]
        return [*rows, self.about_all(sample, [Turn(*each) for each in of_all])] if of_all else rows


def _one(items: Sequence[T], rng: Draw) -> T:
    return items[int(rng.integers(len(items)))]
