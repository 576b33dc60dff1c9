"""The standard caption metrics: BLEU, ROUGE-L and CIDEr-D by pycocoevalcap's scorers, METEOR and SPICE where they can run.

Each caption gets a record of numbers. CIDEr-D, ROUGE-L and SPICE of a corpus are the mean over its captions; BLEU and METEOR are
computed from sums of counts, which the records carry, so that any selection of captions can be scored again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from eval.base.records import Record
from eval.captions.java import meteor, meteor_score, spice, why_no_meteor, why_no_spice
from eval.captions.tokens import tokenise

ORDERS = (1, 2, 3, 4)
TOO_FEW = "CIDEr-D weighs words by how few pictures they belong to: it needs at least two"


class Corpus:
    """The references of all pictures of an evaluation, tokenised and counted once. CIDEr-D's document frequencies are theirs."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """`references[i]`: what people wrote about picture i. Raises TypeError or ValueError for anything but lists of strings."""
        _list_of(references, "references", "lists of strings, one list for each picture")
        for i, given in enumerate(references):
            _list_of(given, f"references[{i}]", "strings, all references of one picture")
            if not given:
                raise ValueError(f"references[{i}]: expected at least one reference, found none; leave the picture out")
            _all_strings(given, f"references[{i}]")
        self.raw = references

    @cached_property
    def references(self) -> list[list[str]]:
        tokens = iter(tokenise([text for given in self.raw for text in given]))
        return [[next(tokens) for _ in given] for given in self.raw]

    @cached_property
    def counts(self) -> list[list[dict[tuple[str, ...], int]]]:
        """n-grams of each reference."""
        return [cider_scorer.cook_refs(given) for given in self.references]

    @cached_property
    def frequencies(self) -> dict[tuple[str, ...], float]:
        """In how many pictures' references an n-gram occurs."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for given in self.counts:
            for ngram in {ngram for each in given for ngram in each}:
                found[ngram] += 1
        return found

    def score(self, captions: Sequence[str], rows: Sequence[int] | None = None) -> list[Record]:
        """The metrics of each caption, the i-th of picture `rows[i]` (of picture i unless given); a picture is described once.

        CIDEr-D is left out of a corpus of one picture. METEOR and SPICE are left out where they cannot run.
        """
        _list_of(captions, "captions", "strings, one for each picture")
        _all_strings(captions, "captions")
        rows = range(len(self.raw)) if rows is None else rows
        if len(captions) != len(rows) or len(set(rows)) != len(rows):
            raise ValueError(f"found {len(captions)} captions for {len(set(rows))} pictures: expected one for each, in the same order")
        if not captions:
            return []
        tokens, references = tokenise(captions), [self.references[row] for row in rows]
        columns: dict[str, Sequence[Any]] = {"tokens": tokens, "n-grams": [_ngrams(*pair) for pair in zip(tokens, references, strict=True)]}
        columns |= {f"BLEU-{n}": [bleu([counted], n) for counted in columns["n-grams"]] for n in ORDERS}
        columns["ROUGE-L"] = [float(Rouge().calc_score([text], given)) for text, given in zip(tokens, references, strict=True)]
        if len(self.raw) > 1:
            columns["CIDEr-D"] = self._cider(tokens, rows)
        if not why_no_meteor():
            columns["matches"] = meteor().statistics(tokens, references)
            columns["METEOR"] = [meteor_score([counted]) for counted in columns["matches"]]
        if not why_no_spice():
            columns["SPICE"] = spice(tokens, references)
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{name: value for name, value in record.items() if value == value} for record in records]  # SPICE can be NaN

    def _cider(self, tokens: Sequence[str], rows: Sequence[int]) -> list[float]:
        """By pycocoevalcap's scorer, with the frequencies of all pictures, also of those that these captions are not about."""
        asked = set(rows)
        scorer = cider_scorer.CiderScorer(n=4, sigma=6.0)
        scorer.ctest = [cider_scorer.cook_test(text) for text in tokens]
        scorer.crefs = [self.counts[row] for row in (*rows, *(row for row in range(len(self.raw)) if row not in asked))]
        scorer.document_frequency = self.frequencies
        return [float(value) for value in scorer.compute_cider()]


def _ngrams(caption: str, references: Sequence[str]) -> list[int]:
    """What BLEU is made of: length of the caption and of the reference closest to it, then n-grams that match and n-grams, by order."""
    found = bleu_scorer.cook_test(caption, bleu_scorer.cook_refs(references), eff="closest")
    return [found["testlen"], found["reflen"], *found["correct"], *found["guess"]]


def bleu(counted: Sequence[Sequence[int]], n: int) -> float:
    """BLEU-n of a corpus (Papineni et al. 2002), smoothed as pycocoevalcap does: tiny numbers keep divisions by zero away."""
    sums = np.sum(np.asarray(counted, np.float64), axis=0)
    length, reference, correct, guessed = sums[0], sums[1], sums[2 : 2 + n], sums[6 : 6 + n]
    precision = float(np.prod((correct + 1e-15) / (guessed + 1e-9))) ** (1 / n)
    ratio = (length + 1e-15) / (reference + 1e-9)
    return precision * math.exp(min(0.0, 1 - 1 / ratio)) if ratio > 1e-9 else 0.0


def whole(name: str) -> Callable[[Sequence[Record]], float] | None:
    """How a metric of many captions is made of their records; None where it is their mean."""
    if name.startswith("BLEU-"):
        return partial(_of_records, "n-grams", partial(bleu, n=int(name[-1])))
    return partial(_of_records, "matches", meteor_score) if name == "METEOR" else None


def _of_records(field: str, statistic: Callable[[Sequence[Any]], float], records: Sequence[Record]) -> float:
    return statistic([record[field] for record in records])


def _list_of(value: Any, name: str, expected: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: expected a list of {expected}; found {value!r:.60}")


def _all_strings(values: Sequence[Any], name: str) -> None:
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{i}]: expected a string, found {value!r:.60}")
