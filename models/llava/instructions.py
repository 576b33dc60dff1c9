"""What LLaVA learns from: captions of images, then conversations about them, written from the images' annotations (2304.08485, section 3).

The paper lets GPT-4 write conversations, detailed descriptions and complex reasoning from captions and boxes; here they come from
templates. Version 1.5 adds questions with short answers, which say which form of answer they ask for (section 3.2): "answer in one word."
Questions without this sentence are answered by a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from data.english import with_article
from data.sample import Question, Sample
from models.shared.chat import Row, Template, Turn, packed
from models.shared.images import ImageTransform
from models.shared.instructions import BRIEFLY, IN_ONE_WORD, has_form, reasoning, requests
from models.shared.prefix_model import images_or_states
from models.shared.prompts import DESCRIBE

T = TypeVar("T")

IN_WORDS = 0.75  # share of the questions that are to be answered by a word


def dialogues(sample: Sample, rng: np.random.Generator, *, conversations: int, most: int, format_prompt: bool = True) -> list[list[Turn]]:
    """Up to `most` requests about a picture in any order, dealt out to so many conversations: a description; a list, a caption, the number
    of objects, or a question that requires reasoning; and the sample's questions."""
    found = _drawn(sample, rng, format_prompt=format_prompt)[:most] or [Turn(DESCRIBE[0], "")]
    return [found[first::conversations] for first in range(min(conversations, len(found)))]


def _drawn(sample: Sample, rng: np.random.Generator, *, format_prompt: bool) -> list[Turn]:
    by_form: dict[str, list[Turn]] = {"caption": [Turn(BRIEFLY, caption) for caption in sample.captions]}
    for request in [*requests(sample), *reasoning(sample)]:
        by_form.setdefault(request.form, []).append(Turn(request.text, request.reply))
    others = [form for form in ("caption", "list", "number", "reasoning") if by_form.get(form)]
    forms = [*(["description"] if "description" in by_form else []), *([_one(others, rng)] if others else [])]
    turns = [_one(by_form[form], rng) for form in forms]
    turns += [_asked(question, rng, format_prompt=format_prompt) for question in sample.questions]
    return [turns[place] for place in rng.permutation(len(turns))]


def _asked(question: Question, rng: np.random.Generator, *, format_prompt: bool) -> Turn:
    """The question, to be answered by a word or by a sentence."""
    if not has_form(question.answer, "word"):
        return Turn(question.question, question.answer)
    if rng.random() < IN_WORDS:
        return Turn(question.question + (IN_ONE_WORD if format_prompt else ""), question.answer)
    return Turn(question.question, sentence(question.question, question.answer) or question.answer)


def sentence(question: str, answer: str) -> str | None:
    """The answer as a sentence: "what colour is the star?", "red" -> "the star is red."; None for questions of an unknown kind."""
    for pattern, made in SENTENCES:
        if match := re.fullmatch(pattern, question):
            sentences = made if isinstance(made, dict) else {answer: made}
            if answer in sentences:
                return sentences[answer].format(*match.groups(), answer=answer, an_answer=with_article(answer))
    return None


SENTENCES: tuple[tuple[str, str | dict[str, str]], ...] = (
    (r"what colour is (.+)\?", "{0} is {answer}."),
    (r"what shape is (.+)\?", "{0} is {an_answer}."),
    (r"how many (.+) are there\?", "the number of {0} is {answer}."),
    (r"is there (an? .+)\?", {"yes": "yes, there is {0}.", "no": "no, there is not {0}."}),
    (
        r"where is (.+) as seen from (.+)\?",
        {
            "left": "{0} is to the left of {1}.",
            "right": "{0} is to the right of {1}.",
            "above": "{0} is above {1}.",
            "below": "{0} is below {1}.",
        },
    ),
    (
        r"is (the .+?) ((?:to the left of|to the right of|above|below) the .+)\?",
        {"yes": "yes, {0} is {1}.", "no": "no, {0} is not {1}."},
    ),
    (r'does this figure show "(.+)"\?', {"yes": "yes, it shows {0}.", "no": "no, it does not show {0}."}),
)


def _one(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


@dataclass(frozen=True)
class RequestsCollate:
    """Collates images with up to K texts each. Images are the states of the frozen tower, if they were computed before."""

    transform: ImageTransform
    template: Template
    conversations: int

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "ids" and "labels" `[B, K, T]`; "states" float16 `[B, places, D]` or "pixels" uint8 `[B, 3, S, S]`. Without a generator texts
        are the first ones, or drawn with seed 0."""
        texts = packed([self.rows(sample, rng) for sample in samples])
        return texts | images_or_states(samples, self.transform, rng)

    def rows(self, sample: Sample, rng: np.random.Generator | None) -> list[Row]:
        """Up to K sequences about a picture."""
        raise NotImplementedError


@dataclass(frozen=True)
class CaptionCollate(RequestsCollate):
    """The first stage: captions without a request."""

    def rows(self, sample: Sample, rng: np.random.Generator | None) -> list[Row]:
        order = range(len(sample.captions)) if rng is None else rng.permutation(len(sample.captions))
        return [self.template.caption(sample.captions[place]) for place in order[: self.conversations]]


@dataclass(frozen=True)
class DialogueCollate(RequestsCollate):
    """The second stage: conversations."""

    requests: int
    format_prompt: bool

    def rows(self, sample: Sample, rng: np.random.Generator | None) -> list[Row]:
        draw = rng or np.random.default_rng(0)
        found = dialogues(sample, draw, conversations=self.conversations, most=self.requests, format_prompt=self.format_prompt)
        return [self.template.conversation(turns) for turns in found]
