"""The second stage's small set: requests about an image, most for a certain format, with replies generated from the ground truth.

The paper has 3,500 descriptions, written by its first stage, mended by a chat model and checked by hand. The embedded data set
knows its pictures' content; on other data requests are limited to captions and questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from data.english import with_article
from data.sample import Sample
from models.lm.corpus import COUNT, DESCRIBE
from models.minigpt4.template import Template, Turn, laid_out
from models.shared.images import ImageTransform

Form = Literal["description", "list", "number", "word", "free"]
LIST = ("describe this picture as a list.", "list the objects.")
IN_ONE_WORD = " answer in one word."
LONGEST_ITEM = 6  # words
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Request:
    text: str
    reply: str
    form: Form


def requests(sample: Sample) -> list[Request]:
    """All requests that a picture allows, with true replies; descriptions first."""
    found = [Request(text, sample.captions[0], "description") for text in DESCRIBE if sample.captions]
    if sample.objects:
        listed = ", ".join(with_article(f"{each.attributes.get('colour', '')} {each.name}".strip()) for each in sample.objects)
        found += [Request(text, listed, "list") for text in LIST]
        found += [Request(text, str(len(sample.objects)), "number") for text in COUNT]
    for each in sample.questions:
        found.append(Request(each.question, each.answer, "free"))
        if has_form(each.answer, "word"):
            found.append(Request(each.question + IN_ONE_WORD, each.answer, "word"))
    return found


def has_form(reply: str, form: Form) -> bool:
    """Whether a reply has the requested format, regardless of its content."""
    words = _words(reply)
    if form == "description":
        return len(words) >= 3
    if form == "list":
        return all(2 <= len(_words(item)) <= LONGEST_ITEM for item in re.split(r", and |, | and ", reply.rstrip(".")))
    if form == "number":
        return len(words) == 1 and (words[0].isdecimal() or words[0] in NUMBERS)
    return len(words) == 1 if form == "word" else len(words) >= 1


def repeats(text: str) -> bool:
    """Whether some words are repeated in a row: "a red star, a red star"."""
    words = _words(text)
    return any(words[i : i + n] == words[i + n : i + 2 * n] for n in range(1, len(words) // 2 + 1) for i in range(len(words) - 2 * n + 1))


def converse(sample: Sample, rng: np.random.Generator) -> list[Turn]:
    """One or two turns about a picture; every form is equally likely, however many requests it has."""
    left, turns = requests(sample), []
    for _ in range(1 + int(rng.integers(2))):
        if left:
            forms = sorted({request.form for request in left})
            form = forms[int(rng.integers(len(forms)))]
            of_it = [request for request in left if request.form == form]
            chosen = of_it[int(rng.integers(len(of_it)))]
            turns.append(Turn(chosen.text, chosen.reply))
            left = [request for request in left if request.reply != chosen.reply or request.form != chosen.form]
    return turns or [Turn(DESCRIBE[0], "")]


@dataclass(frozen=True)
class CaptionCollate:
    """Stage 1: pictures with captions and no request."""

    transform: ImageTransform
    template: Template

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`, "ids" and "labels" `[B, T]`. Without a generator: the first caption of each."""
        texts = [sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples]
        rows = [self.template.caption(text) for text in texts]
        return {"pixels": self.transform([sample.image for sample in samples], rng), **laid_out(rows)}


@dataclass(frozen=True)
class InstructionCollate:
    """Stage 2: pictures with conversations about them."""

    transform: ImageTransform
    template: Template

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """As stage 1's. Without a generator the conversations are drawn with seed 0."""
        draw = rng or np.random.default_rng(0)
        rows = [self.template.conversation(converse(sample, draw)) for sample in samples]
        return {"pixels": self.transform([sample.image for sample in samples], rng), **laid_out(rows)}


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
