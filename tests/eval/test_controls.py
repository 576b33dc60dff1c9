from __future__ import annotations

import numpy as np
import pytest

from eval.capabilities import EmbeddingScorer, ImageFeatures, PairScorer, adapt
from eval.controls import derangement, oracle
from tests.eval import fakes


@pytest.mark.parametrize("n", [2, 3, 10, 1001])
def test_a_derangement_moves_everything(n: int) -> None:
    order = derangement(n)
    assert sorted(order) == list(range(n))
    assert all(i != other for i, other in enumerate(order))
    assert order == derangement(n)
    if n > 3:
        assert order != derangement(n, seed=1)


def test_one_item_cannot_be_deranged() -> None:
    with pytest.raises(ValueError, match="at least two"):
        derangement(1)


def test_the_oracle_knows_every_caption_of_its_picture_to_be_true() -> None:
    samples = fakes.single_objects()[:50]
    scores = oracle(samples).matrix([sample.image for sample in samples], [sample.captions[0] for sample in samples])
    assert (np.diag(scores) == 1).all()
    assert (scores[~np.eye(50, dtype=bool)] < 1).all()


def test_adapters_are_found_by_capability() -> None:
    assert isinstance(adapt(fakes.noisy()), EmbeddingScorer)
    assert isinstance(adapt(fakes.Pairs(lambda number, text: 0.0)), PairScorer)
    assert adapt(object()) is None

    class OnlyImages:
        def encode_image(self, images: object) -> None: ...

    assert type(adapt(OnlyImages())) is ImageFeatures


def test_embeddings_and_pairs_give_the_same_scores() -> None:
    """The pairwise adapter around the embedding adapter's own pair scores: matrix, pairs and classes must agree."""
    dense = adapt(fakes.noisy())
    pairwise = PairScorer(dense.pairs, "pairs", batch_size=3)
    images, texts = [fakes.picture(i) for i in range(4)], ["a", "b", "c"]
    assert np.array_equal(dense.matrix(images, texts), pairwise.matrix(images, texts))
    assert np.array_equal(dense.pairs(images[:3], texts), np.diag(dense.matrix(images[:3], texts)))
    single = [[text] for text in texts]
    assert pairwise.classes(images, single) * np.exp(2.0) == pytest.approx(dense.classes(images, single), rel=1e-5)


def test_equal_embeddings_tie_exactly_in_every_batch() -> None:
    dense = adapt(fakes.Embeds(lambda number: np.sin(np.arange(50)), lambda text: np.cos(np.arange(50) + 1)))
    scores = dense.matrix([fakes.picture(i) for i in range(37)], [f"text {i}" for i in range(211)])
    assert len(np.unique(scores)) == 1
