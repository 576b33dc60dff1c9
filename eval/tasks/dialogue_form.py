"""Dialogue form: whether a model that chats replies in the form that a request asks for, and whether what it says is true (the requests are
those of MiniGPT-4, section 3.2, and LLaVA-1.5, section 3.2).

Each picture has one request, in turn for a description, a list, a number, a word, or an answer that needs two steps ("the object above the
moon is a red star, so it is red."). A reply is *well formed* if it has that form, ends by itself and does not repeat a phrase; the form is
checked without a look at the content. *true*: numbers and words are those of the truth, of a reasoning the conclusion is; of descriptions
and lists, in data whose truth is known, the share of claims that hold.

Chance is a text-only baseline: the most frequent reply to the same request about training pictures or, if it is new, to requests for the
same form. It is well formed always, so chance is of interest for what is true. Greedy decoding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data.sample import Sample
from data.scenes.language import agreement
from eval.base.answers import normalised
from eval.base.capabilities import Images, Replier, Said
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.scenes.oracle import has_truth
from models.shared.instructions import Form, Request, conclusion, has_form, reasoning, repeats, requests

ORDER = 125
HEADLINE = (r"well formed",)

PICTURES = 250
TRAIN_SAMPLES = 1000
FORMS: tuple[Form, ...] = ("description", "list", "number", "word", "reasoning")
EXACT: tuple[Form, ...] = ("number", "word", "reasoning")


def plan(source: Source) -> list[DialogueForm]:
    samples = [sample for sample in source.samples(source.primary) if possible(sample)]
    samples = spread(samples, PICTURES)
    return [DialogueForm(source.primary, samples, Prior.of(source))] if samples else []


def possible(sample: Sample) -> list[Request]:
    """All requests for one of the forms that a picture allows."""
    return [request for request in [*requests(sample), *reasoning(sample)] if request.form in FORMS]


def request_for(sample: Sample, number: int) -> Request:
    """The request of the picture with this number: the forms take turns, and where a picture does not allow one the next is asked for."""
    by_form: dict[Form, list[Request]] = defaultdict(list)
    for request in possible(sample):
        by_form[request.form].append(request)
    form = next(form for turn in range(len(FORMS)) if by_form[form := FORMS[(number + turn) % len(FORMS)]])
    return by_form[form][number // len(FORMS) % len(by_form[form])]


@dataclass
class Prior:
    """How often each reply was given to a request, and to all requests for a form, about training pictures."""

    to: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, source: Source) -> Prior:
        known = "train" in source.streams and "train" not in source.evaluated
        return cls.of_samples(source.beginning("train", TRAIN_SAMPLES) if known else [])

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> Prior:
        found = cls()
        for sample in samples:
            for request in possible(sample):
                for name in (request.text, request.form):
                    found.to[name][request.reply] += 1
        return found

    def guess(self, request: Request) -> str | None:
        """None without training pictures that allow a request for the form."""
        known = self.to.get(request.text) or self.to.get(request.form)
        return known.most_common(1)[0][0] if known else None


@dataclass
class DialogueForm:
    split: str
    samples: Sequence[Sample]
    prior: Prior
    name: ClassVar[str] = "dialogue_form"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Replier
    needed_method: ClassVar[str] = "reply"
    below_chance: ClassVar[str] = "Chance is a text-only baseline, the most frequent training reply, which is always well formed."

    def __post_init__(self) -> None:
        self.requests = [request_for(sample, number) for number, sample in enumerate(self.samples)]
        self.truthful = has_truth(self.samples)
        self.measures: Sequence[Measure] = [
            Measure("well formed", f"{len(self.samples)} requests"),
            *(Measure(form, "well formed replies", weight=f"{form} requests") for form in FORMS),
            Measure("cut off", "replies that do not end by themselves", better="lower"),
            Measure("repeating", "replies that repeat a phrase", better="lower"),
            Measure("true", "of what can be checked", weight="checked"),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "prior": [self.prior.guess(request) for request in self.requests]}

    def texts(self) -> list[str]:
        return []

    def ask(self, subject: Replier, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        said = subject.replies([images[row] for row in rows], [self.requests[row].text for row in rows])
        return [[self._record(row, reply)] for row, reply in zip(rows, said, strict=True)]

    def chance(self) -> list[list[Record]]:
        guesses = [self.prior.guess(request) for request in self.requests]
        if None in guesses:
            return []
        return [[self._record(row, Said(guess or "", True))] for row, guess in enumerate(guesses)]

    def _record(self, row: int, reply: Said) -> Record:
        request, again = self.requests[row], repeats(reply.text)
        formed = float(has_form(reply.text, request.form) and reply.ended and not again)
        about: Record = {"request": request.text, "form": request.form, "expected": request.reply, "said": reply.text}
        about |= {"well formed": formed, request.form: formed, f"{request.form} requests": 1.0}
        about |= {"cut off": float(not reply.ended), "repeating": float(again)}
        true = self._true(row, reply.text)
        return about | ({} if true is None else {"true": true, "checked": 1.0})

    def _true(self, row: int, said: str) -> float | None:
        """None where nobody knows."""
        request = self.requests[row]
        if request.form == "reasoning":
            return float(normalised(conclusion(said)) == normalised(conclusion(request.reply)))
        if request.form in EXACT:
            return float(normalised(said) == normalised(request.reply))
        return agreement(said, self.samples[row]) if self.truthful else None
