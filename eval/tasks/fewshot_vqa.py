"""Few-shot VQA: a question after k examples in context, each a picture with a question and its answer (Frozen, section 4.1).

The examples are training questions with the same opening words, about other pictures. The prompt is picture, "question: ...
answer: ..." for each of them, and picture, "question: ... answer:" at the end, as in the paper, each text on a line of its own.
The first line of the completion counts, by the rules of VQA. Controls exchange the query picture, never the examples. One
question per picture, all kinds in turn.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import numpy as np

from data.sample import Question, Sample
from eval.base.capabilities import Completer, Images, Prompt
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source
from eval.tasks.vqa import BELOW_CHANCE, TRAIN_SAMPLES, Prior, accuracy, chance_note, learned, open_questions, opening, questioned
from models.shared.prompts import answered, ask

ORDER = 100
HEADLINE: tuple[str, ...] = ()

SHOTS = (0, 1, 4)
PICTURES, SHIFTED_PICTURES = 200, 50  # a prompt of four examples costs five pictures

Example = tuple[np.ndarray, Question]


def plan(source: Source) -> list[FewShotVQA]:
    if "train" not in source.streams or "train" in source.evaluated:
        return []
    found = {split: samples for split in source.evaluated if (samples := questioned(source, split, PICTURES, SHIFTED_PICTURES))}
    prior = learned(source) if found else Prior([])
    if not prior:
        return []
    train = source.beginning("train", min(TRAIN_SAMPLES, source.limit or TRAIN_SAMPLES))
    return [FewShotVQA(split, samples, train, prior) for split, samples in found.items()]


@dataclass
class FewShotVQA:
    split: str
    samples: Sequence[Sample]
    train: Sequence[Sample]
    prior: Prior
    name: ClassVar[str] = "fewshot_vqa"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Completer
    needed_method: ClassVar[str] = "complete"
    below_chance: ClassVar[str] = BELOW_CHANCE

    def __post_init__(self) -> None:
        asked = [open_questions(sample) for sample in self.samples]
        self.questions = [questions[row % len(questions)] for row, questions in enumerate(asked)]
        self.examples = _examples(self.train, [(sample.key, q.question) for sample, q in zip(self.samples, self.questions, strict=True)])
        self.measures: Sequence[Measure] = [Measure(f"k = {k}", f"{k} examples; {chance_note(self.prior)}") for k in SHOTS]

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for image, question in (example for examples in self.examples for example in examples):
            digest.update(image.tobytes() + f"{question.question} {question.answer}".encode())
        return {"version": 2, "shots": list(SHOTS), "examples": digest.hexdigest()}

    def texts(self) -> list[str]:
        return []

    def ask(self, subject: Completer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        written = [subject.completions([self._prompt(row, images[row], k) for row in rows]) for k in SHOTS]
        return [
            [self._record(row, [_first_line(text) for text in texts])] for row, texts in zip(rows, zip(*written, strict=True), strict=True)
        ]

    def chance(self) -> list[list[Record]]:
        return [[self._record(row, [self.prior.guess(q.question)] * len(SHOTS))] for row, q in enumerate(self.questions)]

    def _prompt(self, row: int, image: np.ndarray, k: int) -> Prompt:
        examples = self.examples[row][:k]
        shown = [part for picture, each in examples for part in (picture, f"\n{answered(each.question, each.answer)}\n")]
        return [*shown, image, "\n" + ask(self.questions[row].question)]

    def _record(self, row: int, said: Sequence[str]) -> Record:
        question = self.questions[row]
        right = {f"k = {k}": accuracy(text, question) for k, text in zip(SHOTS, said, strict=True)}
        return {"question": question.question, "truth": question.answer, "said": list(said)} | right


def _examples(train: Sequence[Sample], asked: Sequence[tuple[str, str]]) -> list[list[Example]]:
    """For each (key, question) the examples, drawn by the key: k shots use the first k."""
    pools: dict[str, list[Example]] = defaultdict(list)
    for sample in train:
        for question in open_questions(sample):
            pools[opening(question.question)].append((sample.image, question))
    everything = [example for pool in pools.values() for example in pool]
    found = []
    for key, text in asked:
        pool = pools.get(opening(text)) or everything
        found.append(Random(f"fewshot/{key}").sample(pool, min(max(SHOTS), len(pool))))
    return found


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]
