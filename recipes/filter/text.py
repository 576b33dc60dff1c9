"""Filters by captions. A sample is dropped if all its captions are: models are shown any of them."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from data.fields import require
from data.sample import Sample
from recipes.filter.filters import Verdict


class Length:
    """DataComp's basic filter of captions: more than two words, more than five characters. The score is the number of words."""

    def __init__(self, words: int = 3, characters: int = 6, most_words: int = 1000) -> None:
        require(0 <= words <= most_words, "words", words, f"0 to most-words, {most_words}")
        require(characters >= 0, "characters", characters, "0 or more")
        self.words, self.characters, self.most = words, characters, most_words
        self.counts, self.kept = array("l"), array("b")

    def see(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            counts = {text: len(text.split()) for text in sample.captions}
            good = [n for text, n in counts.items() if self.words <= n <= self.most and len(text.strip()) >= self.characters]
            self.counts.append(max(good or counts.values()))
            self.kept.append(bool(good))

    def verdict(self) -> Verdict:
        rule = f"{self.words} to {self.most} words, {self.characters} or more characters"
        about = {"words": self.words, "most_words": self.most, "characters": self.characters}
        return Verdict(np.array(self.kept, bool), np.array(self.counts), rule, about)


class Boilerplate:
    """A caption that many samples have says nothing of its picture. Captions are compared without case, punctuation at their ends, and
    the values of numbers ("photo 3 of 17"). The score is the number of samples that have the rarest caption of this one."""

    def __init__(self, repeats: float = 0.005) -> None:
        """repeats: the largest share of the samples that may have a caption; two samples may always."""
        require(0 <= repeats <= 1, "repeats", repeats, "a share from 0 to 1")
        self.repeats = repeats
        self.samples: list[tuple[int, ...]] = []  # hashes of their captions
        self.uses: Counter[int] = Counter()

    def see(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            hashes = {_hash(text) for text in sample.captions}
            self.uses.update(hashes)
            self.samples.append(tuple(hashes))

    def verdict(self) -> Verdict:
        most = max(2.0, self.repeats * len(self.samples))
        counts = np.array([min(self.uses[each] for each in hashes) for hashes in self.samples])
        return Verdict(counts <= most, counts, f"a caption that at most {int(most):,} samples have", {"repeats": self.repeats})


class Mentions:
    """DataComp's text-based filter: a caption mentions something that matters, such as a class of the test set. There these are the names
    of ImageNet-21k, here a list of words or phrases. The score is the number of different ones."""

    def __init__(self, names: Iterable[str]) -> None:
        names = {" ".join(name.lower().split()) for name in names} - {""}
        require(bool(names), "entities", len(names), "one name per line")
        longest_first = sorted(names, key=lambda name: (-len(name), name))  # "hot dog" before "dog"
        self.names = len(names)
        self.pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?:e?s)?\b")
        self.counts = array("l")

    def see(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.counts.append(max(len(set(self.pattern.findall(" ".join(text.lower().split())))) for text in sample.captions))

    def verdict(self) -> Verdict:
        counts = np.array(self.counts)
        return Verdict(counts > 0, counts, f"one of {self.names:,} names in a caption", {"names": self.names})


def _hash(text: str) -> int:
    plain = re.sub(r"\d+", "0", " ".join(text.lower().split())).strip(" .,;:!?\"'()[]")
    return int.from_bytes(blake2b(plain.encode(), digest_size=8).digest(), "big")
