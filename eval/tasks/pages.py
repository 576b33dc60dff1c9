"""Pages: pictures with a text each, after a rule that only the earlier pairs reveal (data/scenes/pages.py). Prompts are interleaved as in
Flamingo, section 3.1.

*place k*: the share of pages whose text number k is continued right after the pairs before it; at place 0 there are none. A model that
learns from pairs in context rises with the place. Controls of the task, on the last text of the page: *last picture only*, without the
earlier pairs, cannot rise; with *other pictures before*, those of another page beside the same texts, only rules that show in the texts
alone are left. By kind of rule, all places where the rule can be known (after two pairs): *naming* of attributes, new *word*, *whether*
a property is there, *change* since the picture before.

The first line of the completion counts, and has to be the text up to case and punctuation. Chance is a text-only baseline: the training
text that most often follows the text before, on training pages; after a text that training pages lack, the same text again.
The harness's controls exchange, or blank, all pictures of a page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from data.sample import Sample
from data.scenes.pages import SHOWN, SPLITS, pairs_of
from eval.base.answers import normalised
from eval.base.capabilities import Completer, Images, Prompt
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread

ORDER = 105
HEADLINE = (r"place 4",)

PAGES = 200  # of a split: a page of five pictures costs seven prompts
TRAIN_SAMPLES = 2000
KINDS = ("naming", "word", "whether", "change")
ALONE, EXCHANGED = "last picture only", "other pictures before"


def plan(source: Source) -> list[Pages]:
    found = {split: [sample for sample in source.samples(split) if _is_page(sample)] for split in SPLITS if split in source.streams}
    if not any(found.values()):
        return []
    prior = Prior.of(source)
    return [Pages(split, spread(samples, PAGES), prior) for split, samples in found.items() if samples]


def _is_page(sample: Sample) -> bool:
    """Of this kind, with its pictures before their texts."""
    return bool(sample.page) and "rule" in sample.extra and isinstance(sample.page[0], int)


@dataclass
class Prior:
    """Which text follows which on training pages. The text before the first one is ""."""

    after: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, source: Source) -> Prior:
        return cls.of_samples(source.beginning("train", TRAIN_SAMPLES) if "train" in source.streams else [])

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> Prior:
        found = cls()
        for sample in filter(_is_page, samples):
            texts = ["", *(text for _, text in pairs_of(sample))]
            for before, text in pairwise(texts):
                found.after[before][text] += 1
        return found

    def guess(self, before: str) -> str:
        """The most frequent text after this one; the same again if it is unknown."""
        known = self.after.get(before)
        return known.most_common(1)[0][0] if known else before


@dataclass
class Pages:
    split: str
    samples: Sequence[Sample]
    prior: Prior
    name: ClassVar[str] = "pages"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Completer
    needed_method: ClassVar[str] = "complete"
    below_chance: ClassVar[str] = "Chance is a text-only baseline, the text that follows most often on training pages, which is better."

    def __post_init__(self) -> None:
        self.truth = [[text for _, text in pairs_of(sample)] for sample in self.samples]
        self.owner = {id(sample.image): row for row, sample in enumerate(self.samples)}
        places = [Measure(f"place {k}", f"after {k} pairs") for k in range(max(map(len, self.truth)))]
        controls = [Measure(ALONE, "the last text, without the earlier pairs"), Measure(EXCHANGED, "earlier pictures of another page")]
        kinds = [Measure(kind, f"after {SHOWN} pairs or more", weight=f"{kind} texts") for kind in KINDS]
        self.measures: Sequence[Measure] = [*places, *controls, *kinds]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "prior": {before: counts.most_common(1) for before, counts in sorted(self.prior.after.items())}}

    def texts(self) -> list[str]:
        return []

    def ask(self, subject: Completer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        prompts, sizes = [], []
        for row in rows:
            made = self._prompts(row, self._shown(row, images[row]))
            prompts += made
            sizes.append(len(made))
        said = iter(subject.completions(prompts))
        return [[self._record(row, [_first_line(next(said)) for _ in range(size)])] for row, size in zip(rows, sizes, strict=True)]

    def chance(self) -> list[list[Record]]:
        guesses = [[self.prior.guess(before) for before in ["", *truth[:-1]]] for truth in self.truth]
        return [
            [self._record(row, [*found, self.prior.guess(""), found[-1]])] for row, found in enumerate(guesses)
        ]  # without pictures, other pictures change nothing

    def _shown(self, row: int, first: np.ndarray) -> list[np.ndarray]:
        """The pictures of a page whose first picture is to be this one: its own, those of another page, or blank ones."""
        count = len(self.samples[row].images)
        other = self.owner.get(id(first))
        if other is None:
            return [first] * count
        found = self.samples[other].images
        return [found[place % len(found)] for place in range(count)]

    def _prompts(self, row: int, pictures: Sequence[np.ndarray]) -> list[Prompt]:
        """One for every place, then those of the controls."""
        texts = self.truth[row]
        others = self.samples[(row + 1) % len(self.samples)].images
        exchanged = [*(others[place % len(others)] for place in range(len(texts) - 1)), pictures[-1]]
        return [
            *(_prompt(pictures[: place + 1], texts[:place]) for place in range(len(texts))),
            _prompt(pictures[-1:], []),
            _prompt(exchanged, texts[:-1]),
        ]

    def _record(self, row: int, said: Sequence[str]) -> Record:
        truth, kind = self.truth[row], self.samples[row].extra["rule"].split()[0]
        right = [float(normalised(text) == normalised(true)) for text, true in zip(said, [*truth, truth[-1], truth[-1]], strict=True)]
        places = {f"place {place}": value for place, value in enumerate(right[:-2])}
        known = right[SHOWN:-2]
        kinds = {kind: sum(known), f"{kind} texts": float(len(known))} if kind in KINDS and known else {}
        about = {"rule": self.samples[row].extra["rule"], "truth": truth, "said": list(said)}
        return about | places | {ALONE: right[-2], EXCHANGED: right[-1]} | kinds


def _prompt(pictures: Sequence[np.ndarray], texts: Sequence[str]) -> Prompt:
    """Every picture with its text on the next line; after the last one the text is to be continued."""
    *before, last = pictures
    return [*(part for picture, text in zip(before, texts, strict=True) for part in (picture, f"\n{text}\n")), last, "\n"]


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].strip()
