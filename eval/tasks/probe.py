"""Probes: simple classifiers on frozen image features.

*Linear*: logistic regression on up to 2,000 pictures of the train split (scenes: pictures of one object, a probe per attribute;
else the class label), with the regularisation chosen on val; features standardised, L-BFGS to convergence (CLIP, appendix A.3).
*Nearest neighbours*: the vote of the 20 most similar of the same pictures, by cosine. *k-shot*: logistic regression on k of them
from each class, the mean over 5 draws. A labelled data set of a single split is probed by 5-fold cross-validation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from data.sample import Sample
from eval.base.capabilities import Features, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.tasks.zeroshot import SCENE_AXES, scene_attributes

ORDER = 130
HEADLINE: tuple[str, ...] = ()

TRAIN_SAMPLES = 2000
FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0)  # C, most regularised first: it wins ties
NEIGHBOURS = 20
SHOTS = (1, 4, 16)
DRAWS = 5  # of a k-shot probe's pictures


def plan(source: Source) -> list[Probe]:
    labelled = {split: [sample for sample in source.samples(split) if truth_of(sample)] for split in source.evaluated}
    labelled = {split: samples for split, samples in labelled.items() if samples}
    if not labelled:
        return []
    most = min(TRAIN_SAMPLES, source.limit or TRAIN_SAMPLES)
    if not any_labelled(source, "train"):
        return [task for split, samples in labelled.items() if (task := cross_validated(split, samples))]

    def read() -> Folds:
        train, val = first_labelled(source, "train", most), any_labelled(source, "val") and first_labelled(source, "val", most)
        if not val:
            train, val = [sample for i, sample in enumerate(train) if i % FOLDS], train[::FOLDS]
        return [(train, val)]

    fits = Fits(read)
    return [Probe(split, samples, fits, [0] * len(samples), f"trained on up to {most} images") for split, samples in labelled.items()]


def truth_of(sample: Sample) -> dict[str, str]:
    """The labels for a probe: {target: value}, {} when there are none."""
    return scene_attributes(sample) or ({"top-1": str(sample.label)} if sample.label is not None else {})


def any_labelled(source: Source, split: str) -> bool:
    """Whether a split has labels and is not evaluated itself. Reads as little as possible: most models cannot be probed."""
    read = 64
    while split in source.streams and split not in source.evaluated:
        begun = source.beginning(split, read)
        if any(truth_of(sample) for sample in begun):
            return True
        if len(begun) < read:
            return False
        read *= 2
    return False


def first_labelled(source: Source, split: str, most: int) -> list[Sample]:
    """Scenes are in random order: the first `most`. A class-folder set may be sorted by class: read it all, keep some of each."""
    read = most
    while True:
        begun = source.beginning(split, read)
        found = [sample for sample in begun if truth_of(sample)]
        if found and not scene_attributes(found[0]):
            return spread([sample for sample in source.streams[split]() if truth_of(sample)], most)
        if len(found) >= most or len(begun) < read:
            return found[:most]
        read *= 2


def cross_validated(split: str, samples: list[Sample]) -> Probe | None:
    """Every sample predicted by a probe that did not see it. Classes of fewer than 5 images are left out."""
    counts = Counter(tuple(truth_of(sample).values()) for sample in samples)
    kept = [sample for sample in samples if counts[tuple(truth_of(sample).values())] >= FOLDS]
    targets = [truth_of(sample).get("top-1") for sample in kept]
    if len(set(targets)) < 2 or None in targets:
        return None
    fits, which = [], [0] * len(kept)
    for number, (seen, unseen) in enumerate(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(targets, targets)):
        fits.append(([kept[i] for n, i in enumerate(seen) if n % FOLDS], [kept[i] for i in seen[::FOLDS]]))
        for i in unseen:
            which[int(i)] = number
    few = f", {len(samples) - len(kept)} images of classes with fewer than {FOLDS} left out" if len(kept) < len(samples) else ""
    return Probe(split, kept, Fits(lambda: fits), which, f"{FOLDS}-fold cross-validation{few}")


Folds = list[tuple[list[Sample], list[Sample]]]  # training and validation samples


@dataclass(eq=False)
class Fits:
    """The probes of one data set: for each (train, val) the classifiers of every measure, fitted to a subject when first used."""

    read: Callable[[], Folds]
    _fitted: dict[int, tuple[Features, list[dict[str, list[Pipeline]]]]] = field(default_factory=dict)

    @cached_property
    def data(self) -> Folds:
        return self.read()

    def of(self, subject: Features) -> list[dict[str, list[Pipeline]]]:
        if id(subject) not in self._fitted:
            with threadpool_limits(1):  # on matrices this small a second thread makes it far slower
                self._fitted[id(subject)] = (subject, [self._fit(subject, train, val) for train, val in self.data])
        return self._fitted[id(subject)][1]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for sample in (sample for pair in self.data for part in pair for sample in part):
            digest.update(repr((sample.key, truth_of(sample))).encode() + sample.image.tobytes())
        return digest.hexdigest()

    @staticmethod
    def _fit(subject: Features, train: list[Sample], val: list[Sample]) -> dict[str, list[Pipeline]]:
        seen, unseen = (subject.features([sample.image for sample in part]) for part in (train, val))
        truths, val_truths = [truth_of(sample) for sample in train], [truth_of(sample) for sample in val]
        return {
            measure_of(name, method): fit(seen, [each[name] for each in truths], unseen, [each[name] for each in val_truths])
            for method, fit in METHODS.items()
            for name in truths[0]
        }


def linear(train: np.ndarray, labels: list[str], val: np.ndarray, val_labels: list[str]) -> list[Pipeline]:
    """Standardisation and logistic regression, with the C that is best on val."""
    if len(set(labels)) < 2:
        return [make_pipeline(DummyClassifier(strategy="most_frequent")).fit(train, labels)]
    candidates = [_regression(c).fit(train, labels) for c in STRENGTHS]
    return [max(candidates, key=lambda probe: probe.score(val, val_labels))]


def neighbours(train: np.ndarray, labels: list[str], val: np.ndarray, val_labels: list[str]) -> list[Pipeline]:
    return [make_pipeline(KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine")).fit(train, labels)]


def shots(k: int, train: np.ndarray, labels: list[str], val: np.ndarray, val_labels: list[str]) -> list[Pipeline]:
    """A regression for each draw of k pictures of every class, or of all where a class has fewer. C stays 1: with k pictures none
    are left to choose it on."""
    if len(set(labels)) < 2:
        return linear(train, labels, val, val_labels)
    names, found = np.array(labels), []
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(names))
        chosen = np.concatenate([order[names[order] == name][:k] for name in sorted(set(labels))])
        found.append(_regression(1.0).fit(train[chosen], names[chosen].tolist()))
    return found


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


METHODS: dict[str, Callable[[np.ndarray, list[str], np.ndarray, list[str]], list[Pipeline]]] = {
    "": linear,
    f"{NEIGHBOURS}-NN": neighbours,
    **{f"{k}-shot": partial(shots, k) for k in SHOTS},
}


def measure_of(target: str, method: str) -> str:
    return f"{target} {method}".strip()


@dataclass
class Probe:
    split: str
    samples: Sequence[Sample]
    fits: Fits
    which: Sequence[int]  # which of the fits predicts each sample
    note: str
    name: ClassVar[str] = "probe"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Features
    needed_method: ClassVar[str] = "encode_image"
    below_chance: ClassVar[str] = (
        "On heldout, training images with the right shape have other colours: neighbours that share the colour are always wrong."
    )

    def __post_init__(self) -> None:
        self.truths = [truth_of(sample) for sample in self.samples]
        order = [name for name in ("shape", "colour", "size", "fill", "top-1") if name in self.truths[0]]
        self.measures: Sequence[Measure] = [
            Measure(measure_of(name, method), self._note(name, method)) for method in METHODS for name in order
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 2, "C": list(STRENGTHS), "methods": list(METHODS), "draws": DRAWS, "train": self.fits.fingerprint()}

    def texts(self) -> list[str]:
        return []

    def ask(self, subject: Features, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        records: dict[int, Record] = {row: {"truth": self.truths[row], "predicted": {}} for row in rows}
        for number, probes in enumerate(self.fits.of(subject)):
            mine = [row for row in rows if self.which[row] == number]
            features = subject.features([images[row] for row in mine]) if mine else np.empty((0, 0))
            for measure, fitted in probes.items() if mine else ():
                target = measure.split(" ")[0]
                predicted = np.stack([probe.predict(features) for probe in fitted])  # [draws, N]
                for row, votes in zip(mine, predicted.T, strict=True):
                    records[row][measure] = float((votes == self.truths[row][target]).mean())
                    if measure == target:
                        records[row]["predicted"][target] = str(votes[0])
        return [[records[row]] for row in rows]

    def chance(self) -> list[list[Record]]:
        """A guess drawn from the probe's training labels is right as often as the true label occurs there."""
        frequencies = []
        for train, _ in self.fits.data:
            counts = Counter(pair for sample in train for pair in truth_of(sample).items())
            frequencies.append({pair: count / len(train) for pair, count in counts.items()})
        return [
            [
                {
                    measure_of(name, method): self._chance(frequencies[fold], name, value, method)
                    for method in METHODS
                    for name, value in truth.items()
                }
            ]
            for fold, truth in zip(self.which, self.truths, strict=True)
        ]

    @staticmethod
    def _chance(frequency: dict[tuple[str, str], float], name: str, value: str, method: str) -> float:
        if not method.endswith("-shot"):
            return frequency.get((name, value), 0.0)
        return float((name, value) in frequency) / sum(target == name for target, _ in frequency)  # all its classes alike

    def _note(self, name: str, method: str) -> str:
        drawn = f", {method.removesuffix('-shot')} of each class drawn {DRAWS} times" if method.endswith("-shot") else ""
        return f"{self._classes(name)} classes, {self.note}{drawn}"

    def _classes(self, name: str) -> int:
        return len(SCENE_AXES[name]) if name in SCENE_AXES else len({truth[name] for truth in self.truths})
