from __future__ import annotations

import numpy as np
import pytest

from eval.adapters.scorers import EmbeddingScorer, ImageFeatures, PairScorer, Subject
from eval.base.capabilities import Answerer, AnswerScorer, Captioner, Completer, Drawer, Features, Scorer
from eval.harness.controls import derangement
from eval.scenes.oracle import Oracle
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
    (scorer,) = Subject(Oracle(samples)).able(Scorer)
    scores = scorer.matrix([sample.image for sample in samples], [sample.captions[0] for sample in samples])
    assert (np.diag(scores) == 1).all()
    assert (scores[~np.eye(50, dtype=bool)] < 1).all()


def test_adapters_are_found_by_capability() -> None:
    (dense,) = Subject(fakes.noisy()).able(Scorer)
    assert isinstance(dense, EmbeddingScorer)
    (pairwise,) = Subject(fakes.Pairs(lambda number, text: 0.0)).able(Scorer)
    assert isinstance(pairwise, PairScorer)
    assert pairwise.adapter == "pairwise score"

    class OnlyImages:
        def encode_image(self, images: object) -> None: ...

    assert Subject(OnlyImages()).able(Scorer) == []
    assert type(Subject(OnlyImages()).able(Features)[0]) is ImageFeatures
    for need in (Features, Scorer, Captioner, Answerer, AnswerScorer, Drawer, Completer):
        assert Subject(object()).able(need) == []


def test_a_gallery_prefers_embeddings_and_given_pairs_the_score() -> None:
    class Both(fakes.Embeds):
        score_kind = "matching head"

        def score(self, images: list[np.ndarray], texts: list[str]) -> list[float]:
            return [0.5] * len(texts)

    subject = Subject(Both(lambda number: [1.0], lambda text: [1.0]))
    assert [adapter.adapter for adapter in subject.able(Scorer, gallery=True)] == ["embedding similarity", "matching head"]
    assert [adapter.adapter for adapter in subject.able(Scorer)] == ["matching head", "embedding similarity"]
    assert subject.able(Scorer)[1] is subject.able(Features)[0]  # pictures are embedded once for all tasks


def test_answers_are_ranked_where_none_can_be_generated() -> None:
    subject = Subject(fakes.Pairs(lambda number, text: float(text == f"what is it? thing {number}")))
    (answerer,) = subject.able(Answerer)
    assert answerer.adapter == "ranked: question and answer by pairwise score"
    images, candidates = [fakes.picture(1), fakes.picture(2), fakes.picture(3)], ["thing 2", "thing 1", "thing 3"]
    found = answerer.answers(images, ["what is it?"] * 3, [candidates, candidates, candidates[:2]])
    assert found == ["thing 1", "thing 2", "thing 2"]


def test_embeddings_and_pairs_give_the_same_scores() -> None:
    """The pairwise adapter around the embedding adapter's own pair scores: matrix, pairs and classes must agree."""
    (dense,) = Subject(fakes.noisy()).able(Scorer)
    pairwise = PairScorer(dense.pairs, "pairs", batch_size=3)
    images, texts = [fakes.picture(i) for i in range(4)], ["a", "b", "c"]
    assert np.array_equal(dense.matrix(images, texts), pairwise.matrix(images, texts))
    assert np.array_equal(dense.pairs(images[:3], texts), np.diag(dense.matrix(images[:3], texts)))
    single = [[text] for text in texts]
    assert pairwise.classes(images, single) * np.exp(2.0) == pytest.approx(dense.classes(images, single), rel=1e-5)


def test_equal_embeddings_tie_exactly_in_every_batch() -> None:
    (dense,) = Subject(fakes.Embeds(lambda number: np.sin(np.arange(50)), lambda text: np.cos(np.arange(50) + 1))).able(Scorer)
    scores = dense.matrix([fakes.picture(i) for i in range(37)], [f"text {i}" for i in range(211)])
    assert len(np.unique(scores)) == 1
