"""Visual question answering: accuracy by VQA's rules (eval/base/answers.py), over all questions and per kind of question.

A generating model answers freely. A model that can only rank chooses among the training answers to questions with the same
opening words ("how many", "what colour"), at most 50, the most frequent first; the literature ranks 1,000 to 3,000, which is
too costly without a classifier head. Chance is the text-only prior: the most frequent training answer to the same question,
else to questions with its opening, else of all. A data set without training questions has no prior, and the candidates are
the answers of the split itself.

Up to 500 pictures of the main split and 200 of each shift, with all their questions: 95% intervals of about 0.02. A model that writes
its answers gets fewer, one that
needs a forward pass for every candidate 100 (eval/harness/ask.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data.sample import Question, Sample
from eval.base.answers import soft_accuracy
from eval.base.capabilities import Answerer, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread

ORDER = 90
HEADLINE = (r"accuracy",)

PICTURES, SHIFTED_PICTURES = 500, 200
TRAIN_SAMPLES = 2000
CANDIDATES = 50
BELOW_CHANCE = "Chance is a text-only prior, the most frequent training answer to each question: this model would do better without images."
POLLS = "pope"  # questions of kinds with this prefix belong to eval/tasks/pope.py


def plan(source: Source) -> list[VQA]:
    tasks, prior = [], None
    for split in source.evaluated:
        samples = questioned(source, split, PICTURES, SHIFTED_PICTURES)
        if samples:
            prior = prior or learned(source)
            tasks.append(VQA(split, samples, prior))
    return tasks


def questioned(source: Source, split: str, most: int, most_shifted: int) -> list[Sample]:
    """Samples of a split with questions to answer, evenly spread."""
    found = [sample for sample in source.samples(split) if open_questions(sample)]
    return spread(found, most_shifted if split in source.shifts else most)


def open_questions(sample: Sample) -> list[Question]:
    return [question for question in sample.questions if not question.kind.startswith(POLLS)]


def learned(source: Source) -> Prior:
    """The prior of the first split that is not evaluated and has questions."""
    for split in ("train", "val"):
        if split in source.streams and split not in source.evaluated:
            samples = source.beginning(split, min(TRAIN_SAMPLES, source.limit or TRAIN_SAMPLES))
            if questions := [question for sample in samples for question in open_questions(sample)]:
                return Prior(questions)
    return Prior([])


def accuracy(said: str, question: Question) -> float:
    return soft_accuracy(said, question.answers or (question.answer,))


@dataclass
class Prior:
    """The text-only prior: how often each answer was given in training. Falsy without training questions."""

    questions: Sequence[Question]
    _to: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _opening: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _all: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for question in self.questions:
            for counts in (self._to[question.question], self._opening[opening(question.question)], self._all):
                counts[question.answer] += 1

    def __bool__(self) -> bool:
        return bool(self._all)

    def guess(self, question: str) -> str:
        """The most frequent answer; "" without training questions."""
        counts = self._to.get(question) or self._opening.get(opening(question)) or self._all
        return first[0][0] if (first := counts.most_common(1)) else ""

    def candidates(self, question: str) -> list[str]:
        return [answer for answer, _ in (self._opening.get(opening(question)) or self._all).most_common(CANDIDATES)]

    def settings(self) -> dict[str, Any]:
        return {words: counts.most_common(CANDIDATES) for words, counts in sorted(self._opening.items())}


def opening(question: str) -> str:
    """The first two words, which say what kind of answer is expected but not which."""
    return " ".join(question.lower().split()[:2])


@dataclass
class VQA:
    split: str
    samples: Sequence[Sample]
    prior: Prior
    name: ClassVar[str] = "vqa"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Answerer
    needed_method: ClassVar[str] = "answer, answer_likelihood or score"
    below_chance: ClassVar[str] = BELOW_CHANCE

    def __post_init__(self) -> None:
        self.questions = [open_questions(sample) for sample in self.samples]
        self.choices = self.prior or Prior([question for asked in self.questions for question in asked])
        kinds = Counter(question.kind for asked in self.questions for question in asked)
        note = f"{kinds.total()} questions; {chance_note(self.prior)}"
        self.measures: Sequence[Measure] = [Measure("accuracy", note)]
        self.measures = [*self.measures, *(Measure(kind, f"{count} questions") for kind, count in sorted(kinds.items()))]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "candidates": self.choices.settings()}

    def texts(self) -> list[str]:
        questions = dict.fromkeys(question.question for asked in self.questions for question in asked)
        return [f"{question} {answer}" for question in questions for answer in self.choices.candidates(question)]

    def ask(self, subject: Answerer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        pictures = [images[row] for row in rows for _ in self.questions[row]]
        texts = [question.question for row in rows for question in self.questions[row]]
        said = iter(subject.answers(pictures, texts, [self.choices.candidates(text) for text in texts]))
        return [[_record(question, next(said)) for question in self.questions[row]] for row in rows]

    def chance(self) -> list[list[Record]]:
        if not self.prior:
            return []
        return [[_record(question, self.prior.guess(question.question)) for question in asked] for asked in self.questions]


def chance_note(prior: Prior) -> str:
    if not prior:
        return "no training questions: no text-only prior, candidates from this split"
    return f"chance: the most frequent answer in {len(prior.questions)} training questions"


def _record(question: Question, said: str) -> Record:
    right = accuracy(said, question)
    truth: str | list[str] = list(question.answers) or question.answer
    return {"question": question.question, "truth": truth, "said": said, "accuracy": right, question.kind: right}
