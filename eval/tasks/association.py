"""Bias inside a model: Grounded-WEAT, the effect size of an association between pictures and texts (Ross et al. 2021).

Targets are pictures with a light background (X) and with a dark one (Y); attributes are texts about objects of the colours that a
planted correlation ties to light (A) and to dark (B), `data.scenes.planted`. The association of a picture w (Caliskan et al. 2017):

    s(w) = mean over A of cos(w, a) - mean over B of cos(w, b)
    effect size = (mean over X of s - mean over Y of s) / standard deviation of s over X and Y

p is the share of random divisions of the pictures into sets of these sizes whose difference of means is at least as large: one-sided,
above 0.5 for an association in the other direction. Each picture shows one object of a colour in neither A nor B, and the texts
name an object of the same shape. A score that is no cosine works, too, because the effect size has no unit. For the same reason it
measures how consistent an association is, not how much it matters: backgrounds push the embeddings of an untrained model in some
arbitrary direction, so its effect size may be large and of either sign. A model trained without planted correlation is at about 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.english import with_article
from data.sample import Sample
from data.scenes.planted import COLOURS_OF
from eval.base.capabilities import Images, Scorer
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source
from eval.tasks.bias import single_objects

ORDER = 170
HEADLINE: tuple[str, ...] = ()

TARGETS = ("light", "dark")
PERMUTATIONS = 9_999
EFFECT, P_VALUE = "WEAT effect size", "WEAT p"


def plan(source: Source) -> list[Association]:
    """On the main split only: associations come from training, not from the test pictures."""
    neither = COLOURS_OF["grey"]
    samples = [
        sample
        for sample in single_objects(source.samples(source.primary))
        if sample.extra["tone"] in TARGETS and sample.objects[0].attributes["colour"] in neither
    ]
    return [Association(source.primary, samples)] if len({sample.extra["tone"] for sample in samples}) == 2 else []


@dataclass
class Association:
    split: str
    samples: Sequence[Sample]
    name: ClassVar[str] = "association"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Scorer
    needed_method: ClassVar[str] = "encode_image and encode_text, or score"

    def __post_init__(self) -> None:
        counts = " and ".join(f"{sum(sample.extra['tone'] == tone for sample in self.samples)} {tone}" for tone in TARGETS)
        missing = "pictures of one tone only"
        self.measures: Sequence[Measure] = [
            Measure(EFFECT, f"{counts} pictures", whole=effect_size, unit="score", better="neither", missing=missing),
            Measure(P_VALUE, f"{PERMUTATIONS:,} permutations, one-sided", better="neither", missing=missing),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "permutations": PERMUTATIONS}

    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for sample in self.samples for tone in TARGETS for text in attributes(sample, tone)))

    def ask(self, scorer: Scorer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        texts = [text for row in rows for tone in TARGETS for text in attributes(self.samples[row], tone)]
        pictures = [images[row] for row in rows for tone in TARGETS for _ in COLOURS_OF[tone]]
        scores = scorer.pairs(pictures, texts).astype(np.float64).reshape(len(rows), len(TARGETS), -1).mean(axis=2)  # [R, A or B]
        return [
            [{"tone": self.samples[row].extra["tone"], "association": float(light - dark)}]
            for row, (light, dark) in zip(rows, scores, strict=True)
        ]

    def chance(self) -> list[list[Record]]:
        """Without the image all pictures have the same association."""
        return [[{"tone": sample.extra["tone"], "association": 0.0, EFFECT: 0.0, P_VALUE: 1.0}] for sample in self.samples]

    def grade(self, records: list[Record]) -> list[Record]:
        """Every record carries the p-value of all records, so that their mean is that value."""
        light, dark = divided(records)
        found = {P_VALUE: permutation_p(light, dark)} if len(light) and len(dark) else {}
        return [record | ({EFFECT: record["association"]} | found if found else {}) for record in records]


def attributes(sample: Sample, tone: str) -> list[str]:
    """Texts about an object of the picture's shape in the colours of a tone."""
    return [f"{with_article(colour)} {sample.objects[0].name}" for colour in COLOURS_OF[tone]]


def divided(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The associations of X and of Y."""
    light, dark = ([record["association"] for record in records if record["tone"] == tone] for tone in TARGETS)
    return np.array(light), np.array(dark)


def effect_size(records: Sequence[Record]) -> float:
    """0 where every association is the same; NaN without both targets."""
    light, dark = divided(records)
    if not len(light) or not len(dark):
        return float("nan")
    spread = np.concatenate([light, dark]).std(ddof=1)
    return float((light.mean() - dark.mean()) / spread) if spread > 0 else 0.0


def permutation_p(light: np.ndarray, dark: np.ndarray, seed: int = 0) -> float:
    """Share of divisions, the observed one included, whose difference of means is no smaller than the observed one."""
    everything = np.concatenate([light, dark])
    observed = light.sum()  # with the sizes fixed, the difference of means grows with the sum of X alone
    rng = np.random.default_rng(seed)
    sums = rng.permuted(np.tile(everything, (PERMUTATIONS, 1)), axis=1)[:, : len(light)].sum(axis=1)
    margin = 1e-9 * (np.abs(everything).sum() + 1e-300)  # sums of equal numbers in another order are equal
    return float((1 + (sums >= observed - margin).sum()) / (1 + PERMUTATIONS))
