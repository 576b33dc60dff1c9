"""What trained models make of a picture, a sentence and a question, side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import models
from data.files import FileError
from data.sample import Sample, sound
from eval.adapters.attention import look
from eval.adapters.scorers import Subject
from eval.base.capabilities import Answerer, Captioner, Drawer, Scorer
from eval.harness.showcase import PICTURES, data_uri
from eval.harness.source import Source, spread
from eval.tasks.vqa import Prior

LONGEST = 1000  # characters of a sentence or a question
OTHERS = 32  # captions that a sentence is compared with

Json = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What is taken from a data set: pictures to choose from, captions to compare a sentence with, answers to choose among."""

    name: str = ""
    samples: Sequence[Sample] = ()
    captions: Sequence[str] = ()
    prior: Prior = field(default_factory=lambda: Prior([]))  # of answers

    @classmethod
    def of(cls, source: Source) -> Known:
        samples = source.samples(source.primary)
        captions = list(dict.fromkeys(sample.captions[0] for sample in samples if sample.captions))
        prior = Prior([question for sample in samples for question in sample.questions])
        return cls(source.name, spread(samples, PICTURES), spread(captions, OTHERS), prior)

    def answers(self, question: str) -> list[str]:
        """From which models choose that do not write: those of questions that begin alike."""
        return self.prior.candidates(question) or ["yes", "no"]


@dataclass
class Runs:
    """The trained runs in a folder. A model is loaded when it is first asked; one works at a time."""

    root: Path
    device: str = "cpu"
    known: Known = field(default_factory=Known)
    _loaded: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> list[str]:
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [folder.name for folder in folders if folder.name == sound(folder.name) and (folder / "model.json").is_file()]

    def ask(self, name: str, image: np.ndarray, sentence: str = "", question: str = "") -> Json:
        """What a run has to say: "run", "model", "paradigm", "seconds", "errors" (sentences), and if it is capable of them "similarity",
        "caption", "answer", "drawing" and "look". Never raises: the other runs go on."""
        with self._lock:
            start = time.perf_counter()
            try:
                model = self._model(name)
            except Exception as error:  # files of a run can be broken in any way
                return {"run": name, "errors": [_said(error)]}
            found: Json = {"run": name, "model": type(model).__name__, "paradigm": model.paradigm, "errors": []}
            for part, value in self._parts(Subject(model), image, sentence, question).items():
                try:
                    found |= {part: made} if (made := value()) is not None else {}
                except Exception as error:
                    found["errors"].append(f"{part}: {_said(error)}")
            return found | {"seconds": round(time.perf_counter() - start, 1)}

    def _model(self, name: str) -> Any:
        if name not in self.names:
            raise FileError(f"{name}: no run of this name with a model.json in {self.root}")
        if name not in self._loaded:
            self._loaded[name] = models.load(self.root / name, self.device).requires_grad_(False)
        return self._loaded[name]

    def _parts(self, subject: Subject, image: np.ndarray, sentence: str, question: str) -> dict[str, Callable[[], Json | None]]:
        return {
            "look": lambda: _look(subject, image),
            "similarity": lambda: self._similarity(subject, image, sentence) if sentence else None,
            "caption": lambda: _caption(subject, image),
            "answer": lambda: self._answer(subject, image, question) if question else None,
            "drawing": lambda: _drawing(subject, sentence) if sentence else None,
        }

    def _similarity(self, subject: Subject, image: np.ndarray, sentence: str) -> Json | None:
        """The score, and how many other captions fit the picture less: scores of different kinds have that in common."""
        others = [caption for caption in self.known.captions if caption != sentence]
        for scorer in subject.able(Scorer)[:1]:
            own, *rest = scorer.pairs([image] * (1 + len(others)), [sentence, *others]).tolist()
            if not np.isfinite(own):
                raise ValueError(f"the score is {own}")
            return {"value": own, "how": scorer.adapter, "above": sum(own > other for other in rest), "others": len(others)}
        return None

    def _answer(self, subject: Subject, image: np.ndarray, question: str) -> Json | None:
        for answerer in subject.able(Answerer)[:1]:
            return {"text": answerer.answers([image], [question], [self.known.answers(question)])[0], "how": answerer.adapter}
        return None


def _caption(subject: Subject, image: np.ndarray) -> Json | None:
    return next(({"text": each.captions([image])[0], "how": each.adapter} for each in subject.able(Captioner)), None)


def _drawing(subject: Subject, sentence: str) -> Json | None:
    return next(({"image": data_uri(each.drawings([sentence])[0])} for each in subject.able(Drawer)), None)


def _look(subject: Subject, image: np.ndarray) -> Json:
    seen = look(subject.model, image)
    if seen.shares is None:
        return {"how": seen.kind}
    return {"how": seen.kind, "percent": np.rint(100 * seen.shares / seen.shares.max()).astype(int).flatten().tolist(), "area": seen.area}


def _said(error: Exception) -> str:
    return sound(" ".join(f"{error}".split()))[:500] or type(error).__name__
