from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.adapters.parts import PartScorer
from eval.adapters.scorers import EmbeddingScorer, ImageFeatures, PairScorer, RankedAnswers, Subject
from eval.base.capabilities import Answerer, AnswerScorer, Captioner, Completer, Drawer, Features, Ranker, Scorer
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


class Parts:
    """Compares by parts that depend on the text: of a picture's three vectors the one that fits counts."""

    score_kind = "by parts"

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.read: list[str] = []

    def image_parts(self, images: list[np.ndarray]) -> torch.Tensor:
        self.seen += [int(image[0, 0, 0]) for image in images]
        return torch.stack([torch.randn(3, 5, generator=torch.Generator().manual_seed(int(image[0, 0, 0]))) for image in images])

    def text_parts(self, texts: list[str]) -> torch.Tensor:
        self.read += texts
        return torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(len(text))) for text in texts])

    def compare(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nvd,td->ntv", images.double(), texts.double()).amax(dim=-1)


def test_parts_are_encoded_once_and_every_question_has_the_same_scores() -> None:
    model = Parts()
    subject = Subject(model, batch_size=4)
    (scorer,) = subject.able(Scorer)
    assert isinstance(scorer, PartScorer)
    assert subject.able(Scorer, gallery=True) == subject.able(Ranker, gallery=True) == [scorer]
    images, texts = [np.full((2, 2, 3), number, np.uint8) for number in range(70)], ["a" * length for length in range(1, 12)]
    scorer.prepare(images, texts)
    whole = scorer.matrix(images, texts)
    expected = model.compare(model.image_parts(images), model.text_parts(texts)).numpy()
    assert np.allclose(whole, expected)
    assert np.array_equal(scorer.by_text(images, texts[3:5]), whole[:, 3:5].T)
    assert np.array_equal(scorer.matrix(images[9:11], texts), whole[9:11])
    rows, columns = [5, 3, 5, 60], [0, 2, 7, 10]
    found = scorer.pairs([images[row] for row in rows], [texts[column] for column in columns])
    assert np.allclose(found, whole[rows, columns])
    assert sorted(model.seen) == sorted([*range(70)] * 2)  # once by the adapter, once by this test
    assert sorted(model.read) == sorted(texts * 2)


def test_a_class_is_the_mean_of_its_prompts_parts() -> None:
    model = Parts()
    (scorer,) = Subject(model).able(Scorer)
    images, prompts = [np.full((2, 2, 3), number, np.uint8) for number in range(3)], [["a", "bb"], ["ccc"]]
    mean = torch.stack([model.text_parts(texts).mean(dim=0) for texts in prompts])
    assert np.allclose(scorer.classes(images, prompts), model.compare(model.image_parts(images), mean).numpy())


def test_a_comparison_that_is_no_number_is_an_error_and_ranking_answers_by_parts_is_cheap() -> None:
    class Broken(Parts):
        def compare(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), len(texts)), float("nan"))

    (scorer,) = Subject(Broken()).able(Scorer)
    with pytest.raises(ValueError, match="compare returned NaN"):
        scorer.matrix([fakes.picture(1)], ["a"])
    (answerer,) = Subject(Parts()).able(Answerer)
    assert isinstance(answerer, RankedAnswers)
    assert not answerer.costly
