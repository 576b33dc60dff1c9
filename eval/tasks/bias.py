"""Bias: is a model better at pictures that agree with a correlation in its training data?

The embedded data can be written with a planted correlation (`make data PLANTED=0.9`): in training the background's tone mostly
agrees with the colour of the object, in test the two are independent. A picture of one object is *aligned* when they agree and
*conflicting* when they do not. The model chooses the object's colour among all nine ("a red star", its shape given), and the
background's tone among three ("a red star on a dark background", the object given); a tie counts as a guess. The *disparity*
is the accuracy on aligned pictures minus that on conflicting ones; the *worst group* is the lowest accuracy among the nine
combinations of colour group and tone (Sagawa et al. 2020), which is below the mean by chance alone.

Without a planted correlation the groups are the same and the disparity is about 0: that is the control.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from data.english import with_article
from data.sample import Sample
from data.scenes.planted import TONE_OF, group_of
from data.scenes.world import COLOURS, TONES
from eval.base.capabilities import Images, Scorer
from eval.base.metrics import expected_recall, ranks
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.tasks.zeroshot import scene_attributes

ORDER = 140
HEADLINE: tuple[str, ...] = ()

MOST = 400  # pictures of a split: with twelve texts each, a model that scores pair by pair takes seconds
GROUPS = ("aligned", "conflicting")
VALUES = {"colour": COLOURS, "tone": TONES}


def plan(source: Source) -> list[Bias]:
    found = {split: spread(single_objects(source.samples(split)), MOST) for split in source.evaluated}
    return [Bias(split, samples) for split, samples in found.items() if samples]


def single_objects(samples: Sequence[Sample]) -> list[Sample]:
    """Scenes of one object on a background of known tone."""
    return [sample for sample in samples if scene_attributes(sample) and sample.extra.get("tone") in TONES]


@dataclass
class Bias:
    split: str
    samples: Sequence[Sample]
    name: ClassVar[str] = "bias"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Scorer
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"
    below_chance: ClassVar[str] = (
        "The worst group is the lowest of nine measured accuracies: guesses, equally good in all, would be below chance, too."
    )

    def __post_init__(self) -> None:
        counts = {group: sum(group_of(sample) == group for sample in self.samples) for group in GROUPS}
        self.measures: Sequence[Measure] = [measure for target in VALUES for measure in self._measures(target, counts)]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "most": MOST}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for sample in self.samples for target in VALUES for text in candidates(sample, target)))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        records = [self._about(row) for row in rows]
        for target, values in VALUES.items():
            texts = [text for row in rows for text in candidates(self.samples[row], target)]
            scores = scorer.pairs([images[row] for row in rows for _ in values], texts).reshape(len(rows), len(values))
            right = np.array([[value == self._truth(row, target) for value in values] for row in rows])
            for record, share, best in zip(records, expected_recall(ranks(scores, right), 1), scores.argmax(axis=1), strict=True):
                record |= {target: float(share), f"{target} said": values[int(best)]}
        return [[record] for record in records]

    def chance(self) -> list[list[Record]]:
        guesses = {target: 1 / len(values) for target, values in VALUES.items()}
        return [[record] for record in self.grade([self._about(row) | guesses for row in range(len(self.samples))])]

    def grade(self, records: list[Record]) -> list[Record]:
        """An answer counts for its group. Disparity and worst group need both groups."""
        comparable = {record["group"] for record in records} == set(GROUPS)
        compared = ("disparity", "worst group") if comparable else ()
        return [
            record | {f"{target} {name}": record[target] for target in VALUES for name in (record["group"], *compared)}
            for record in records
        ]

    def _measures(self, target: str, counts: dict[str, int]) -> list[Measure]:
        note = f"{len(VALUES[target])} values"
        missing = "pictures of one group only"
        return [
            Measure(target, note),
            *(Measure(f"{target} {group}", f"{note}, {count} pictures") for group, count in counts.items()),
            Measure(
                f"{target} disparity",
                "aligned minus conflicting pictures",
                whole=partial(disparity, target=target),
                unit="score",
                better="neither",
                missing=missing,
            ),
            Measure(
                f"{target} worst group",
                "least of nine: colour group on tone",
                whole=partial(worst_group, target=target),
                missing=missing,
            ),
        ]

    def _about(self, row: int) -> Record:
        truth = {target: self._truth(row, target) for target in VALUES}
        return {"truth": truth, "group": group_of(self.samples[row]), "cell": f"{TONE_OF[truth['colour']]} colours on {truth['tone']}"}

    def _truth(self, row: int, target: str) -> str:
        sample = self.samples[row]
        return str(sample.extra["tone"]) if target == "tone" else sample.objects[0].attributes[target]


def candidates(sample: Sample, target: str) -> list[str]:
    """The candidate texts of a picture, one for each value of the target, with all else given."""
    thing = sample.objects[0]
    if target == "colour":
        return [f"{with_article(colour)} {thing.name}" for colour in COLOURS]
    return [f"{with_article(thing.attributes['colour'])} {thing.name} on a {tone} background" for tone in TONES]


def disparity(records: Sequence[Record], target: str) -> float:
    """Accuracy on aligned pictures minus that on conflicting ones; NaN without both."""
    shares = _means(records, target, "group")
    return shares.get("aligned", np.nan) - shares.get("conflicting", np.nan)


def worst_group(records: Sequence[Record], target: str) -> float:
    return min(_means(records, target, "cell").values())


def _means(records: Sequence[Record], target: str, by: str) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        values[record[by]].append(record[target])
    return {name: sum(found) / len(found) for name, found in values.items()}
