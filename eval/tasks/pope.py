"""Object hallucination by polling (POPE, Li et al. 2023, section 5.1): "is there a ...?", half of the time about an absent object.

A picture has questions about up to three present objects and as many absent ones, chosen in three ways: *random*; *popular*,
the objects in most pictures; *adversarial*, the objects that occur most often together with the present ones. Objects have the
names of their data set; where they have colours (scenes), about half of the pictures get questions about coloured objects, "a red
star". Scenes put objects together at random, so there adversarial means above all a present colour with a present shape.

Questions that came with the data (kinds "pope-random", ..., see data/importers/pope.py) replace these.

Scoring: `Decider` in eval/adapters/verdicts.py turns a model's output into yes, no or neither; a free answer is read by
eval/base/yesno.py. The published script reads every answer without "no" or "not" as yes: `python -m eval.answers pope` gives its
numbers. A model that only scores texts needs a
threshold for "there is a red star": the one with the best accuracy on questions made in the same way from up to 200 pictures of
val, or train; without either the median score of the questions themselves, which uses no label. An answer that is neither yes nor
no counts as wrong, and not as a yes.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from data.english import with_article
from data.sample import Sample
from eval.base.answers import yes_or_no
from eval.base.capabilities import Decider, Example, Images, Verdict
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.scenes.oracle import has_truth
from eval.tasks.vqa import POLLS

ORDER = 110
HEADLINE = (r"accuracy \(adversarial\)", r"accuracy \(all\)")

PICTURES, SHIFTED_PICTURES, EXAMPLE_PICTURES = 200, 100, 200
OBJECTS = 3  # per picture, as in the paper
KINDS = ("random", "popular", "adversarial")

Name = tuple[str, ...]  # ("dog",), ("red", "star")


@dataclass(frozen=True, slots=True)
class Poll:
    """A question, its statement, its true answer, and the kinds that it counts for."""

    question: str
    statement: str
    truth: bool
    kinds: tuple[str, ...]


def plan(source: Source) -> list[POPE]:
    tasks = []
    for split in source.evaluated:
        polls = polled(source.samples(split), SHIFTED_PICTURES if split in source.shifts else PICTURES)
        if polls:
            tasks.append(POPE(split, [sample for sample, _ in polls], [asked for _, asked in polls], _examples(source, polls)))
    return tasks


def polled(samples: Sequence[Sample], most: int) -> list[tuple[Sample, list[Poll]]]:
    """The questions about each picture: those that came with the data, else generated for at most `most` pictures."""
    given = [(sample, asked) for sample in samples if (asked := _given(sample))]
    if given:
        return given
    called = "is there {}?" if has_truth(samples) else "Is there {} in the image?"
    coloured, plain = Objects(samples, coloured=True), Objects(samples, coloured=False)
    found = []
    for sample in spread([sample for sample in samples if sample.objects], most):
        rng = Random(f"pope/{sample.key}")
        objects = coloured if any("colour" in thing.attributes for thing in sample.objects) and rng.random() < 0.5 else plain
        if asked := objects.polls(sample, called, rng):
            found.append((sample, asked))
    return found


class Objects:
    """The objects of a split's pictures: how often each occurs, and how often together with each other one."""

    def __init__(self, samples: Sequence[Sample], *, coloured: bool) -> None:
        self.coloured = coloured
        self.count: Counter[Name] = Counter()
        self.together: dict[Name, Counter[Name]] = {}
        for sample in samples:
            present = self.names(sample)
            self.count.update(present)
            for name in present:
                self.together.setdefault(name, Counter()).update(present)

    def names(self, sample: Sample) -> list[Name]:
        """The distinct objects of a picture; with their colours, only those that have one."""
        if self.coloured:
            found = [(thing.attributes["colour"], thing.name) for thing in sample.objects if "colour" in thing.attributes]
            return list(dict.fromkeys(found))
        return list(dict.fromkeys((thing.name,) for thing in sample.objects))

    def polls(self, sample: Sample, called: str, rng: Random) -> list[Poll]:
        """Questions about present objects, and for each kind as many about absent ones."""
        present = self.names(sample)
        absent = [name for name in sorted(self.count) if name not in present]
        size = min(OBJECTS, len(present), len(absent))
        rng.shuffle(absent)  # breaks ties of popularity and closeness

        words = {word for other in present for word in other}

        def closeness(name: Name) -> tuple[int, int]:
            return len(words.intersection(name)), sum(self.together[other][name] for other in present)

        asked: list[tuple[Name, bool, tuple[str, ...]]] = [(name, True, KINDS) for name in rng.sample(present, size)]
        chosen = {
            "random": absent[:size],
            "popular": sorted(absent, key=lambda name: -self.count[name])[:size],
            "adversarial": sorted(absent, key=closeness, reverse=True)[:size],
        }
        for name in dict.fromkeys(name for names in chosen.values() for name in names):
            asked.append((name, False, tuple(kind for kind in KINDS if name in chosen[kind])))
        things = [(_thing(name), truth, kinds) for name, truth, kinds in asked]
        return [Poll(called.format(thing), f"there is {thing}", truth, kinds) for thing, truth, kinds in things]


@dataclass
class POPE:
    """`polls[i]` are the questions about sample i; thresholds are chosen on `examples`."""

    split: str
    samples: Sequence[Sample]
    polls: Sequence[Sequence[Poll]]
    examples: Sequence[Example]
    name: ClassVar[str] = "pope"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Decider
    needed_method: ClassVar[str] = "answer_likelihood, answer or score"
    below_chance: ClassVar[str] = (
        "Chance says yes half of the time. A model that mostly says no, as with a threshold from other data, has a lower recall and F1."
    )

    def __post_init__(self) -> None:
        self.measures: Sequence[Measure] = []
        counts = Counter(kind for polls in self.polls for poll in polls for kind in poll.kinds)
        for kind in sorted(counts, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)):
            self.measures = [*self.measures, *_measures(kind, f"{counts[kind]} questions")]

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr(self.polls).encode())
        for image, statement, truth in self.examples:
            digest.update(image.tobytes() + repr((statement, truth)).encode())
        return {"version": 2, "questions and examples": digest.hexdigest()}

    def texts(self) -> list[str]:
        asked = [poll.statement for polls in self.polls for poll in polls]
        return list(dict.fromkeys([*asked, *(statement for _, statement, _ in self.examples)]))

    def ask(self, subject: Decider, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        pictures = [images[row] for row in rows for _ in self.polls[row]]
        polls = [poll for row in rows for poll in self.polls[row]]
        found = subject.verdicts(pictures, [poll.question for poll in polls], [poll.statement for poll in polls], self.examples)
        verdicts = iter(found)
        return [[record for poll in self.polls[row] for record in _records(poll, next(verdicts))] for row in rows]

    def chance(self) -> list[list[Record]]:
        """A coin toss."""
        return [[_scored(poll, kind, 0.5, 0.5, 0.0) for poll in polls for kind in poll.kinds] for polls in self.polls]


def auc(records: Sequence[Record]) -> float:
    """Area under the ROC curve of `margin`: the probability that a picture with the object has the larger one, ties half.
    NaN when all questions have the same answer."""
    truth = np.array([record["truth"] for record in records], bool)
    ranks = rankdata([record["margin"] for record in records])
    yes, no = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else float("nan")


def _measures(kind: str, note: str) -> list[Measure]:
    return [
        Measure(f"accuracy ({kind})", note),
        Measure(f"precision ({kind})", "true among yes", weight="said yes"),
        Measure(f"recall ({kind})", "yes among true", weight="truth"),
        Measure(f"F1 ({kind})", "of yes", weight="said yes + truth"),
        Measure(f"yes-rate ({kind})", "share of answers that are yes; half of the right ones are", better="neither"),
        Measure(f"unparsed ({kind})", "answers that are neither yes nor no", better="lower"),
        Measure(f"AUC ({kind})", "of the margin", whole=auc),
    ]


def _records(poll: Poll, verdict: Verdict) -> list[Record]:
    """A question is asked once, and recorded for each kind that it counts for."""
    about: Record = {"question": poll.question, "said": None if verdict.said is None else int(verdict.said)}
    about |= {} if verdict.words is None else {"answer": verdict.words}
    yes, no = float(verdict.said is True), float(verdict.said is False)
    return [about | _scored(poll, kind, yes, no, verdict.margin) for kind in poll.kinds]


def _scored(poll: Poll, kind: str, yes: float, no: float, margin: float | None) -> Record:
    """The fields of the measures; `yes` and `no` are 0 or 1, or the expectation of a guess."""
    truth = int(poll.truth)
    record: Record = {"kind": kind, "truth": truth, "said yes": yes, "said yes + truth": yes + truth}
    record |= {f"accuracy ({kind})": yes if poll.truth else no, f"yes-rate ({kind})": yes, f"unparsed ({kind})": 1 - yes - no}
    record |= {f"precision ({kind})": yes * truth, f"recall ({kind})": yes * truth, f"F1 ({kind})": 2 * yes * truth}
    return record if margin is None else record | {"margin": margin, f"AUC ({kind})": margin}


def _examples(source: Source, own: Sequence[tuple[Sample, Sequence[Poll]]]) -> list[Example]:
    """Statements with their truth, once for each kind, so that half are true; without another split the questions' own statements,
    without their truth."""
    for split in ("val", "train"):
        if split in source.streams and split not in source.evaluated:
            most = min(EXAMPLE_PICTURES, source.limit or EXAMPLE_PICTURES)
            polls = polled(source.beginning(split, most), most)
            if polls:
                return [(s.image, poll.statement, poll.truth) for s, asked in polls for poll in asked for _ in poll.kinds]
    return [(sample.image, poll.statement, None) for sample, asked in own for poll in asked for _ in poll.kinds]


def _given(sample: Sample) -> list[Poll]:
    found: dict[tuple[str, bool], list[str]] = {}
    for question in sample.questions:
        if question.kind.startswith(POLLS) and (truth := yes_or_no(question.answer)) is not None:
            found.setdefault((question.question, truth), []).append(question.kind.removeprefix(POLLS).strip("-") or "all")
    return [Poll(text, _statement(text), truth, tuple(kinds)) for (text, truth), kinds in found.items()]


def _statement(question: str) -> str:
    """'Is there a dog in the image?' -> 'there is a dog'; of another question its words."""
    match = re.fullmatch(r"is there (an? .+?)(?: in (?:the|this) (?:image|picture|photo))?\s*\?", question.strip(), re.IGNORECASE)
    return f"there is {match[1]}" if match else question.strip().rstrip("?")


def _thing(name: Name) -> str:
    return with_article(" ".join(name))
