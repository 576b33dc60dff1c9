from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.adapters.rerank import SHORTLIST
from eval.adapters.scorers import Subject
from eval.base.capabilities import Ranker
from eval.harness.source import in_memory
from eval.tasks.retrieval import Retrieval, plan
from tests.eval import fakes


def test_perfect_and_inverted(tmp_path: Path) -> None:
    samples = fakes.captioned(20)
    perfect = fakes.run(fakes.knowing(samples), {"test": samples}, tmp_path / "a")
    inverted = fakes.run(fakes.knowing(samples, sign=-1), {"test": samples}, tmp_path / "b")
    for way in ("i2t", "t2i"):
        assert fakes.value(perfect, "retrieval", f"{way} R@1 (20)") == 1
        assert fakes.value(inverted, "retrieval", f"{way} R@10 (20)") == 0
        assert fakes.value(perfect, "retrieval", f"{way} R@1 (20)", "shuffled images") == 0
    assert fakes.cell(perfect, "retrieval", "i2t R@1 (20)")["note"] == "gallery 20 images, 60 captions"


def test_a_constant_model_gets_exactly_chance(tmp_path: Path) -> None:
    result = fakes.run(fakes.constant(), {"test": fakes.captioned(12)}, tmp_path)
    for way, k in (("i2t", 1), ("i2t", 5), ("t2i", 1), ("t2i", 10)):
        name = f"{way} R@{k} (12)"
        assert fakes.value(result, "retrieval", name) == pytest.approx(fakes.value(result, "retrieval", name, "chance"))
    assert fakes.value(result, "retrieval", "t2i R@5 (12)", "chance") == pytest.approx(5 / 12)
    assert fakes.value(result, "retrieval", "i2t R@1 (12)", "chance") == pytest.approx(1 / 12)  # 3 right ones of 36


def test_a_caption_of_two_images_is_one_candidate_and_right_for_both(tmp_path: Path) -> None:
    samples = [replace(sample, captions=(*sample.captions[:1], "something grey")) for sample in fakes.captioned(2)]
    task = Retrieval("test", samples)
    assert task.texts() == ["caption 0 of 0", "something grey", "caption 0 of 1"]
    assert task.right.tolist() == [[True, True, False], [False, True, True]]
    result = fakes.run(fakes.knowing(samples), {"test": samples}, tmp_path)
    assert fakes.value(result, "retrieval", "t2i R@1 (2)") == 1
    # the queries: two own captions and the shared one, which is right whatever comes first
    assert fakes.value(result, "retrieval", "t2i R@1 (2)", "chance") == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_of_an_images_vectors_the_most_similar_one_counts() -> None:
    vectors = {0: [(1.0, 0.0), (0.0, 1.0)], 1: [(0.6, 0.8), (-1.0, 0.0)]}
    texts = {"right": (1.0, 0.0), "up": (0.0, 1.0), "left": (-1.0, 0.0)}
    scorer = Subject(fakes.Embeds(vectors.__getitem__, texts.__getitem__)).embeddings  # type: ignore[arg-type]
    assert scorer is not None
    images = [fakes.picture(0), fakes.picture(1)]
    assert scorer.matrix(images, list(texts)) == pytest.approx(np.array([[1.0, 1.0, 0.0], [0.6, 0.8, 1.0]]))
    assert scorer.by_text(images, ["left"]) == pytest.approx(np.array([[0.0, 1.0]]))
    assert scorer.pairs(images, ["up", "up"]) == pytest.approx(np.array([1.0, 0.8]))
    mean = np.array([-0.2, 0.4]) / np.hypot(0.2, 0.4)
    assert scorer.features(images) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], mean]))


def test_recall_by_brute_force_over_orders_of_ties() -> None:
    """Integer scores with many ties, against the average over every order of the candidates."""
    samples = fakes.captioned(4, captions=1)
    judge = {(i, f"caption 0 of {j}"): (i * j + i) % 3 for i in range(4) for j in range(4)}
    model = fakes.Pairs(lambda number, text: float(judge[number, text]))
    (scorer,) = Subject(model).able(Ranker)
    task = Retrieval("test", samples)
    records = task.ask(scorer, [sample.image for sample in samples], range(4))
    for i in range(4):
        expected = []
        for order in permutations(range(4)):
            ranked = sorted(order, key=lambda j: -judge[i, f"caption 0 of {j}"])
            expected.append(ranked[0] == i)
        assert records[i][0]["i2t R@1 (4)"] == pytest.approx(np.mean(expected))


def test_galleries_of_500_and_of_all() -> None:
    samples = [replace(sample, foils=()) for sample in fakes.captioned(510, captions=1)]
    tasks = plan(in_memory("fakes", {"test": samples}))
    assert [len(task.samples) for task in tasks] == [500, 510]
    assert [task.measures[0].name for task in tasks] == ["i2t R@1 (500)", "i2t R@1 (510)"]


def test_a_pairwise_scorer_is_asked_as_often_as_is_affordable_and_about_no_pair_twice(tmp_path: Path) -> None:
    samples = [replace(sample, foils=()) for sample in fakes.captioned(502, captions=1)]
    model = fakes.Pairs(lambda number, text: float(text.endswith(f" {number}")))
    result = fakes.run(model, {"test": samples}, tmp_path, fresh=fakes.constant())
    assert fakes.value(result, "retrieval", "i2t R@1 (500)") == 1
    assert fakes.cell(result, "retrieval", "i2t R@1 (500)")["adapter"] == "pairwise score"
    assert fakes.cell(result, "retrieval", "i2t R@1 (500)")["n"] == 25_000 // 500
    # For two galleries: pictures and captions as queries, by the model, with shuffled images, and (one picture) blank ones.
    assert model.asked <= 2 * (2 * 2 * 25_000 + 2 * 502) + 24 * 502
    large = fakes.run(model, {"test": fakes.captioned(502, captions=8)}, tmp_path / "large", fresh=fakes.constant(), tasks=["retrieval"])
    assert fakes.cell(large, "retrieval", "i2t R@1 (500)")["status"] == "not run"


class Both(fakes.Embeds):
    """Embeddings, and a score of its own."""

    score_kind = "matching head"

    def __init__(self, model: fakes.Embeds, judge: Callable[[int, str], float]) -> None:
        super().__init__(model.image, model.text)
        self.judge, self.asked, self.looks = judge, 0, 0

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> torch.Tensor:
        self.asked += len(texts)
        self.looks += len({id(image) for image in images})
        return torch.tensor([self.judge(fakes.number_of(image), text) for image, text in zip(images, texts, strict=True)])


def test_a_shortlist_is_put_in_the_order_of_the_models_own_score() -> None:
    """What is not on the list stays behind whatever its score would be; equal scores are equal."""
    images, texts = [fakes.picture(i) for i in range(3)], [f"text {j}" for j in range(40)]
    judge = {(i, text): float((7 * i + 5 * j) % 6) for i in range(3) for j, text in enumerate(texts)}
    model = Both(fakes.noisy(), lambda number, text: judge[number, text])
    subject = Subject(model)
    plain, ordered = subject.able(Ranker)
    assert ordered.adapter == "embedding similarity, the best 16 re-ranked by matching head"
    before, after = plain.matrix(images, texts), ordered.matrix(images, texts)
    turned = ordered.by_text(images, texts)
    assert np.array_equal(turned > 0, np.ones((40, 3), bool))  # fewer pictures than a shortlist holds: all are re-ranked
    for i in range(3):
        best = np.argsort(-before[i], kind="stable")[:SHORTLIST]
        assert (after[i][best] > 0).all()
        assert (after[i] > 0).sum() == SHORTLIST
        rest = np.setdiff1d(np.arange(40), best)
        assert np.array_equal(np.argsort(-after[i][rest], kind="stable"), np.argsort(-before[i][rest], kind="stable"))
        for a in best:
            for b in best:
                assert np.sign(after[i][a] - after[i][b]) == np.sign(judge[i, texts[a]] - judge[i, texts[b]])
    for j, text in enumerate(texts):
        for a, b in permutations(range(3), 2):
            assert np.sign(turned[j][a] - turned[j][b]) == np.sign(judge[a, text] - judge[b, text])


def test_re_ranking_is_a_row_of_its_own_and_looks_at_each_picture_about_once(tmp_path: Path) -> None:
    samples = [replace(sample, foils=()) for sample in fakes.captioned(60)]
    model = Both(fakes.constant(), lambda number, text: float(text.endswith(f" {number}")))
    result = fakes.run(model, {"test": samples}, tmp_path, tasks=["retrieval"])
    name = "by embedding similarity, the best 16 re-ranked by matching head"
    assert fakes.value(result, "retrieval", "i2t R@1 (60)") == fakes.value(result, "retrieval", "i2t R@1 (60)", "chance")
    assert fakes.value(result, "retrieval", "t2i R@1 (60)", name) == pytest.approx(16 / 60)  # those whose picture is on the list
    assert model.asked == 16 * (60 + 60)  # one caption of three
    assert model.looks < 300  # not 16 for each of 180 captions
    assert not [cell for cell in result["cells"] if cell["variant"].startswith("by matching head")]


def test_as_many_queries_are_re_ranked_as_is_affordable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.harness.ask.RERANKED_PAIRS", 16 * 40 * 2)
    model = Both(fakes.noisy(), lambda number, text: 0.0)
    samples = [replace(sample, foils=()) for sample in fakes.captioned(60)]
    result = fakes.run(model, {"test": samples}, tmp_path, tasks=["retrieval"])
    name = "by embedding similarity, the best 16 re-ranked by matching head"
    assert fakes.cell(result, "retrieval", "i2t R@1 (60)", name)["n"] == 40
    assert fakes.cell(result, "retrieval", "i2t R@1 (60)")["n"] == 60
