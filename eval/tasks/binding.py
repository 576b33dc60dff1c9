"""Fast binding: a new word for a known concept, learned from k pictures (Frozen, section 4.3: open-ended classification).

Two classes are called "dax" and "blicket"; after k pictures of each, in random order, the model names another picture. On
scenes the classes are two shapes (or two colours), and no example has the colour (the shape) of the query picture; elsewhere
they are class labels. "3 times" repeats the same pictures. A generating model must write the word: the first of the two that
occurs counts. Each word is the right one equally often, so chance is 1/2.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from data.sample import Sample
from eval.base.capabilities import Images, Lesson, Namer
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.tasks.probe import truth_of

ORDER = 120
HEADLINE = (r"shape, k = 3|k = 3",)

WORDS = ("dax", "blicket")
QUERIES, SHIFTED_QUERIES = 100, 50  # each costs a prompt of up to seven pictures for every target and setting
SETTINGS = {"k = 1": (1, 1), "k = 1, 3 times": (1, 3), "k = 3": (3, 1)}  # examples of each class, how often each is shown
EQUALLY_LONG = (("k = 1",), ("k = 1, 3 times", "k = 3"))
OTHER = {"shape": "colour", "colour": "shape"}


@dataclass(frozen=True)
class Episode:
    """Which samples are examples of the right and of the wrong class, and the word for the right one."""

    target: str
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    word: str

    def lesson(self, samples: Sequence[Sample], k: int, times: int) -> Lesson:
        other = WORDS[1 - WORDS.index(self.word)]
        shown = [(samples[i].image, self.word) for i in self.right[:k]] + [(samples[i].image, other) for i in self.wrong[:k]]
        rng = Random(repr((self, k, times)))
        return [example for _ in range(times) for example in rng.sample(shown, len(shown))]


def plan(source: Source) -> list[Binding]:
    tasks = []
    for split in source.evaluated:
        known = [sample for sample in source.samples(split) if truth_of(sample)]
        truths = [truth_of(sample) for sample in known]
        most = SHIFTED_QUERIES if split in source.shifts else QUERIES
        asked = spread(list(range(len(known))), min(most, source.limit or most))
        found = {row: episodes(known[row].key, truths, row, WORDS[number % 2]) for number, row in enumerate(asked)}
        rows = [row for row, each in found.items() if each]
        if rows:
            tasks.append(Binding(split, [known[row] for row in rows], known, [found[row] for row in rows]))
    return tasks


def episodes(key: str, truths: Sequence[dict[str, str]], row: int, word: str) -> list[Episode]:
    """An episode about sample `row` for every target with enough examples, drawn by its key."""
    rng, found = Random(f"binding/{key}"), []
    most = max(k for k, _ in SETTINGS.values())
    for target in [name for name in ("shape", "colour", "top-1") if name in truths[row]]:
        apart = OTHER.get(target, "")
        classes: dict[str, list[int]] = {}
        for i, truth in enumerate(truths):
            if i != row and (not apart or truth[apart] != truths[row][apart]):
                classes.setdefault(truth[target], []).append(i)
        right = classes.pop(truths[row][target], [])
        others = sorted(name for name, members in classes.items() if len(members) >= most)
        if len(right) >= most and others:
            wrong = classes[rng.choice(others)]
            found.append(Episode(target, tuple(rng.sample(right, most)), tuple(rng.sample(wrong, most)), word))
    return found


@dataclass
class Binding:
    split: str
    samples: Sequence[Sample]
    known: Sequence[Sample]  # the pool of examples
    episodes: Sequence[Sequence[Episode]]  # of each sample
    name: ClassVar[str] = "binding"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Namer
    needed_method: ClassVar[str] = "complete, or encode_image"

    def __post_init__(self) -> None:
        targets = dict.fromkeys(episode.target for episodes in self.episodes for episode in episodes)
        self.measures: Sequence[Measure] = [
            *[Measure(_measure(target, setting), "which of two new words") for target in targets for setting in SETTINGS],
            Measure("word", "the answer has one of the two words", better="neither"),
        ]

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr([(sample.key, truth_of(sample)) for sample in self.known]).encode())
        digest.update(repr(self.episodes).encode())
        return {"version": 1, "words": list(WORDS), "settings": list(SETTINGS), "episodes": digest.hexdigest()}

    def texts(self) -> list[str]:
        return []

    def ask(self, namer: Namer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        asked = [(row, episode) for row in rows for episode in self.episodes[row]]
        pictures = [images[row] for row, _ in asked]
        said: dict[str, list[str]] = {}
        for settings in EQUALLY_LONG:  # asked together, so that a picture of both is encoded once
            lessons = [episode.lesson(self.known, *SETTINGS[setting]) for _, episode in asked for setting in settings]
            found = namer.names(lessons, [picture for picture in pictures for _ in settings])
            said |= {setting: found[place :: len(settings)] for place, setting in enumerate(settings)}
        records: dict[int, list[Record]] = {row: [] for row in rows}
        for number, (row, episode) in enumerate(asked):
            records[row].append(_record(episode, {setting: texts[number] for setting, texts in said.items()}))
        return [records[row] for row in rows]

    def chance(self) -> list[list[Record]]:
        """One of the two words, at random."""
        half = dict.fromkeys(SETTINGS, 0.5)
        return [
            [{"word": 1.0} | {_measure(episode.target, setting): share for setting, share in half.items()} for episode in found]
            for found in self.episodes
        ]


def _record(episode: Episode, said: dict[str, str]) -> Record:
    words = {setting: first_word(text) for setting, text in said.items()}
    right = {_measure(episode.target, setting): float(word == episode.word) for setting, word in words.items()}
    return {"truth": episode.word, "said": said, "word": sum(map(bool, words.values())) / len(words)} | right


def first_word(text: str) -> str:
    """Whichever of the two words a text has first, "" when neither."""
    found = re.search(rf"\b({'|'.join(WORDS)})\b", text.lower())
    return found[1] if found else ""


def _measure(target: str, setting: str) -> str:
    return setting if target == "top-1" else f"{target}, {setting}"
