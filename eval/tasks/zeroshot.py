"""Zero-shot classification: the class whose description fits the picture best.

*Scenes* (pictures of one object): the classes are all combinations of size, fill, colour and shape, so that every prompt
names as many attributes as the captions do; probabilities over the combinations are summed to those of one attribute, or of a
colour and shape together. A prompt such as "a star" would do worse, because no caption leaves the colour out.
*Class names* (any data set with labels): the data set's own templates (`zeroshot_classification_templates.txt` of CLIP_benchmark's
layout), else the usual photo templates.

The scores of a class's prompts are ensembled by the scorer (embeddings: mean of the normalised embeddings, CLIP section 3.1.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax

from data.sample import Sample
from data.scenes.world import COLOURS, FILLS, SHAPES, SIZES
from eval.base.capabilities import Images, Scorer
from eval.base.metrics import expected_recall, ranks
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source

ORDER = 10
HEADLINE = (r"shape|top-1",)

# A template is never edited: change the version with it, since results are only comparable under the same prompts.
PROMPTS_VERSION = 1
SCENE_TEMPLATES = tuple(start + "a {size} {fill} {colour} {shape}" for start in ("", "there is ", "one object: "))
SCENE_AXES = {"size": SIZES, "fill": FILLS, "colour": COLOURS, "shape": SHAPES}
CLASS_TEMPLATES = ("a photo of a {class}.", "a picture of a {class}.", "an image of a {class}.", "a close-up photo of a {class}.")


@dataclass(frozen=True, slots=True)
class Target:
    """A column: one axis of the classes, or several together, to be found within the first `k` guesses."""

    measure: str
    axes: tuple[str, ...]
    k: int = 1
    per_class: bool = False


SCENE_TARGETS = tuple(Target(name, tuple(name.split("+"))) for name in ("shape", "colour", "size", "fill", "colour+shape"))


def plan(source: Source) -> list[ZeroShot]:
    tasks = []
    for split in source.evaluated:
        truths = {id(sample): scene_attributes(sample) for sample in source.samples(split)}
        single = [sample for sample in source.samples(split) if truths[id(sample)]]
        labelled = [sample for sample in source.samples(split) if sample.label is not None]
        if single:
            tasks.append(ZeroShot(split, single, [truths[id(sample)] for sample in single], SCENE_AXES, SCENE_TEMPLATES, SCENE_TARGETS))
        elif labelled:
            names = class_names(source, labelled)
            targets = [Target("top-1", ("class",)), Target("mean per class", ("class",), per_class=True)]
            targets += [Target("top-5", ("class",), k=5)] * (len(names) >= 10)
            truth = [{"class": str(sample.label)} for sample in labelled]
            tasks.append(ZeroShot(split, labelled, truth, {"class": names}, source.templates or CLASS_TEMPLATES, targets))
    return tasks


def scene_attributes(sample: Sample) -> dict[str, str]:
    """The attributes of the only object of a scenes picture; {} for a picture of several, or from another data set."""
    if len(sample.objects) != 1:
        return {}
    thing = sample.objects[0]
    found = {"shape": thing.name} | {name: thing.attributes.get(name, "") for name in ("colour", "size", "fill")}
    return found if all(found[name] in values for name, values in SCENE_AXES.items()) else {}


def class_names(source: Source, samples: Sequence[Sample]) -> tuple[str, ...]:
    """The declared classes, and any other label that occurs."""
    return tuple(dict.fromkeys([*(source.classes or ()), *sorted({str(sample.label) for sample in samples})]))


@dataclass
class ZeroShot:
    """Classes are the product of `axes` (name -> values); `truths[i]` are the values of sample i."""

    split: str
    samples: Sequence[Sample]
    truths: Sequence[dict[str, str]]
    axes: dict[str, tuple[str, ...]]
    templates: Sequence[str]
    targets: Sequence[Target]
    name: ClassVar[str] = "zeroshot"
    part: str = ""
    gallery: ClassVar[bool] = True
    needs: ClassVar[type] = Scorer
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"
    below_chance: ClassVar[str] = (
        "Under a shift (heldout, style) a model prefers what it knows, such as a familiar colour and shape together; a guess does not."
    )

    def __post_init__(self) -> None:
        combinations = [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        spoken = [{name: value.replace("_", " ") for name, value in each.items()} for each in combinations]
        self.prompts = [[template.format_map(words) for template in self.templates] for words in spoken]
        numbers = "" if any(not name.isdecimal() for names in self.axes.values() for name in names) else "; classes are numbers, not names"
        self.measures: Sequence[Measure] = [
            Measure(target.measure, f"{self._size(target)} classes, {len(self.prompts)} prompts x {len(self.templates)} templates{numbers}")
            if not target.per_class
            else Measure(target.measure, "every class counts alike", weight="class weight")
            for target in self.targets
        ]
        counts = Counter(tuple(truth.values()) for truth in self.truths)
        self._weights = [len(self.truths) / len(counts) / counts[tuple(truth.values())] for truth in self.truths]

    def settings(self) -> dict[str, Any]:
        return {"version": PROMPTS_VERSION, "templates": list(self.templates), "classes": {name: list(v) for name, v in self.axes.items()}}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for texts in self.prompts for text in texts))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        logits = scorer.classes([images[row] for row in rows], self.prompts)  # [N, C]
        return self._records(rows, softmax(logits.astype(np.float64), axis=1))

    def chance(self) -> list[list[Record]]:
        everyone = range(len(self.samples))
        return self._records(everyone, np.full((len(everyone), len(self.prompts)), 1 / len(self.prompts)))

    def _records(self, rows: Sequence[int], probabilities: np.ndarray) -> list[list[Record]]:
        records: list[Record] = [{"truth": self.truths[row], "predicted": {}} for row in rows]
        for target in self.targets:
            shares = marginal(probabilities, self.axes, target.axes)
            values = list(product(*(self.axes[axis] for axis in target.axes)))
            truth = [values.index(tuple(self.truths[row][axis] for axis in target.axes)) for row in rows]
            places = ranks(shares, np.eye(len(values), dtype=bool)[truth])
            found = expected_recall(places, target.k)
            for record, row, share, right in zip(records, rows, shares, found.tolist(), strict=True):
                record["predicted"]["+".join(target.axes)] = " ".join(values[int(share.argmax())])
                record[target.measure] = right * self._weights[row] if target.per_class else right
                if target.per_class:
                    record["class weight"] = self._weights[row]
        return [[record] for record in records]

    def _size(self, target: Target) -> int:
        return int(np.prod([len(self.axes[axis]) for axis in target.axes]))


def marginal(probabilities: np.ndarray, axes: dict[str, tuple[str, ...]], kept: tuple[str, ...]) -> np.ndarray:
    """Sum `[N, C]` over every axis but `kept`: `[N, product of their sizes]`, in the order of `kept`, as float32 so that
    classes which only rounding tells apart tie."""
    grid = probabilities.reshape(-1, *(len(values) for values in axes.values()))
    names = list(axes)
    summed = grid.sum(axis=tuple(1 + names.index(name) for name in names if name not in kept))
    left = [name for name in names if name in kept]
    ordered = summed.transpose(0, *(1 + left.index(name) for name in kept))
    return ordered.reshape(len(probabilities), -1).astype(np.float32)
