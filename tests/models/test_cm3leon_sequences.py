"""What becomes of a document before CM3leon's decoder reads it: spans are moved, and every token of a frame has its place."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from models.cm3leon.sequence import Builder, Frame, Vocabulary, random_spans

VOCABULARY = Vocabulary(text=50, images=10)
BUILDER = Builder(VOCABULARY, Frame(text=5, cells=4), start=1, end=2)
BREAK, MASK, INFILL = 50, 51, 52


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], [1, 7, 8, 9, BREAK, -1, -2, -3, -4, 2]),
        ([(0, 3)], [1, MASK, BREAK, -1, -2, -3, -4, INFILL, 7, 8, 9, 2]),
        ([(1, 2), (5, 7)], [1, 7, MASK, 9, BREAK, -1, MASK, -4, INFILL, 8, INFILL, -2, -3, 2]),
        ([(4, 8)], [1, 7, 8, 9, BREAK, MASK, INFILL, -1, -2, -3, -4, 2]),
    ],
    ids=["causal", "whole text", "two spans", "whole picture"],
)
def test_spans_are_moved_behind_the_document(spans: list[tuple[int, int]], expected: list[int]) -> None:
    tokens = BUILDER.document([7, 8, 9], spans)
    assert [token.id for token in tokens] == expected
    plain = {token.id: token.place for token in BUILDER.document([7, 8, 9])}
    moved = {token.id: token.place for token in tokens if token.id in plain}
    assert moved == {id_: plain[id_] for id_ in moved}  # in its frame, what is cut out keeps its place


@pytest.mark.parametrize("span", [(2, 4), (3, 4), (0, 5), (2, 2), (6, 9)], ids=str)
def test_no_span_crosses_the_break(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"one side of the <break>"):
        BUILDER.document([7, 8, 9], [span])


def test_random_spans_are_cm3s() -> None:
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(3000):
        spans = random_spans(30, 64, rng)
        counts.append(len(spans))
        assert spans == sorted(spans)
        assert all(0 <= first < stop <= 95 and not first <= 30 < stop for first, stop in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert min(counts) == 1
    assert np.mean([count == 1 for count in counts]) > 2 * math.exp(-1) - 0.03  # Poisson's 0 and 1, and what overlaps
    assert max(counts) > 2
    assert all(span == (0, 1) or span[0] > 1 for span in random_spans(1, 4, rng))


def test_every_token_of_a_frame_has_a_place_of_its_own() -> None:
    rows = [BUILDER.document([7, 8, 9]), BUILDER.answered([7, 8, 9, 10, 11, 12], [7, 8]), BUILDER.edited([7])]
    for row in rows:
        places = [token.place for token in row]
        assert len(set(places)) == len(places)
        assert max(places) < BUILDER.frame.length
    assert [token.place for token in rows[0] if token.id < 0] == [token.place for token in rows[2] if -4 <= token.id < 0]
    assert len(rows[1]) == 1 + 5 + 1 + 4 + 1 + 2 + 1  # the prompt is cut to what the frame holds
