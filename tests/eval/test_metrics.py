from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from eval.base.metrics import estimate, expected_recall, ranks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_expected_recall_is_the_mean_over_all_orders_of_tied_candidates(candidates: list[tuple[int, bool]], k: int) -> None:
    candidates[0] = (candidates[0][0], True)
    hits = []
    for order in permutations(candidates):
        ranked = sorted(order, key=lambda candidate: -candidate[0])  # stable: among ties the permutation decides
        hits.append(any(right for _, right in ranked[:k]))
    scores, right = (np.array([column]) for column in zip(*candidates, strict=True))
    assert expected_recall(ranks(scores, right), k)[0] == pytest.approx(np.mean(hits))


def test_ranks_without_ties() -> None:
    scores = np.array([[0.9, 0.5, 0.7], [0.1, 0.2, 0.3]])
    right = np.array([[False, True, False], [False, True, True]])
    places = ranks(scores, right)
    assert places.tolist() == [[2, 1, 1], [0, 1, 1]]
    assert expected_recall(places, 1).tolist() == [0, 1]
    assert expected_recall(places, 3).tolist() == [1, 1]


def test_estimate_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 6, size=300)
    totals = rng.binomial(counts, 0.3)
    reference = bootstrap(
        (totals, counts),
        lambda t, c, axis: t.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = estimate(totals, counts)
    assert found.value == totals.sum() / counts.sum()
    assert found.low == pytest.approx(reference.low, abs=0.005)
    assert found.high == pytest.approx(reference.high, abs=0.005)
    assert found.n == 300


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        found = estimate((rng.random(100) < 0.7).astype(float))
        covered.append(found.low <= 0.7 <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_images_are_resampled_not_records() -> None:
    """Ten equal records of one image say no more than one."""
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.5).astype(float)
    once, tenfold = estimate(right), estimate(right * 10, np.full(200, 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(("count", "low"), [(1, 0.025), (10, 0.6915), (2000, 0.99816)])
def test_an_unbroken_record_is_not_certainty(count: int, low: float) -> None:
    perfect, hopeless = estimate(np.ones(count)), estimate(np.zeros(count))
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(low, abs=1e-4)
    assert (hopeless.low, hopeless.high) == pytest.approx((0, 1 - low), abs=1e-4)


def test_images_without_records_do_not_count_and_nothing_at_all_is_an_error() -> None:
    assert estimate([1, 0, 0], [1, 0, 1]).n == 2
    with pytest.raises(ValueError, match="no records"):
        estimate([], [])
