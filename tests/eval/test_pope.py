"""Object polling: what is asked, and models whose verdicts are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from data.sample import Object, Question, Sample
from data.scenes.build import make_sample
from data.scenes.world import COLOURS, HELD_OUT, PRESETS, SHAPES
from eval.adapters.verdicts import threshold
from eval.harness.source import in_memory
from eval.tasks import pope
from tests.eval import fakes
from tests.eval.test_vqa import Speaks

ANIMALS = ("cat", "dog", "emu", "fox", "gnu", "hen")
BOX = (0.0, 0.0, 1.0, 1.0)
Measured = dict[str, float]


def zoo(count: int, start: int = 0) -> list[Sample]:
    """Picture i shows the animals i % 6 and, in every other picture, a cat."""
    return [
        Sample(
            key=f"{i:05d}",
            image=fakes.picture(start + i),
            objects=tuple(Object(name, BOX) for name in (ANIMALS[i % 6], *(["cat"] if i % 2 else []))),
        )
        for i in range(count)
    ]


def holds(number: int, text: str) -> bool:
    """Whether the animal that a question or statement names is in the picture."""
    words = text.lower().replace("?", "").split()
    return ANIMALS[number % 6] in words or ("cat" in words and number % 2 == 1)


def measures(result: dict[str, Any], kind: str = "random", variant: str = "model") -> Measured:
    cells = [cell for cell in result["cells"] if cell["task"] == "pope" and cell["variant"] == variant and cell["split"] == "test"]
    return {cell["metric"].removesuffix(f" ({kind})"): cell["value"] for cell in cells if cell["metric"].endswith(f" ({kind})")}


class Weighs:
    """Likelihoods of answers by hand: `weigh(number, question, answer)`."""

    def __init__(self, weigh: Any) -> None:
        self.weigh = weigh

    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.weigh(fakes.number_of(i), q, a) for i, q, a in zip(images, questions, answers, strict=True)])


# --------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_questions_are_balanced_and_true_of_scenes(split: str) -> None:
    samples = [make_sample(PRESETS["tiny"], split, i) for i in range(120)]
    polls = pope.polled(samples, 100)
    assert len(polls) == 100
    coloured = 0
    for sample, asked in polls:
        present = {thing.name for thing in sample.objects} | {f"{thing.attributes['colour']} {thing.name}" for thing in sample.objects}
        assert len({poll.question for poll in asked}) == len(asked)
        for poll in asked:
            thing = poll.statement.removeprefix("there is a").removeprefix("n").strip()
            assert poll.truth == (thing in present)
            assert poll.question in (f"is there a {thing}?", f"is there an {thing}?")
            coloured += " " in thing
        for kind in pope.KINDS:
            truths = Counter(poll.truth for poll in asked if kind in poll.kinds)
            assert truths[True] == truths[False] <= pope.OBJECTS
    assert 0.3 < coloured / sum(len(asked) for _, asked in polls) < 0.7


def test_no_question_names_a_pair_that_training_never_showed() -> None:
    samples = [make_sample(PRESETS["tiny"], "test", i) for i in range(300)]
    named = {" ".join(poll.statement.split()[-2:]) for _, asked in pope.polled(samples, 300) for poll in asked}
    assert any(set(name.split()) <= {*COLOURS, *SHAPES} for name in named)
    assert not named & {f"{colour} {shape}" for colour, shape in HELD_OUT}


def test_popular_and_adversarial_choose_by_count_and_company() -> None:
    """Company: cat with dog 3 times, fox with dog once; emu is in most pictures, never with a dog."""
    pictures = [("cat", "dog")] * 3 + [("fox", "dog")] + [("emu",)] * 6 + [("gnu",)] * 2
    samples = [Sample(str(i), fakes.picture(i), objects=tuple(Object(n, BOX) for n in names)) for i, names in enumerate(pictures)]
    dog = Sample("x", fakes.picture(99), objects=(Object("dog", BOX), Object("dog", BOX)))
    objects = pope.Objects([*samples, dog], coloured=False)
    for seed in range(5):
        asked = objects.polls(dog, "Is there {} in the image?", Random(seed))
        by_kind = {kind: [(poll.question, poll.truth) for poll in asked if kind in poll.kinds] for kind in pope.KINDS}
        assert all(questions[0] == ("Is there a dog in the image?", True) for questions in by_kind.values())
        assert by_kind["popular"][1:] == [("Is there an emu in the image?", False)]
        assert by_kind["adversarial"][1:] == [("Is there a cat in the image?", False)]


def test_adversarial_pairs_mix_what_is_there() -> None:
    samples = [make_sample(PRESETS["tiny"], "test", i) for i in range(200)]
    objects = pope.Objects(samples, coloured=True)
    sample = next(sample for sample in samples if len(objects.names(sample)) == 3)
    words = {word for name in objects.names(sample) for word in name}
    absent = [poll.statement for poll in objects.polls(sample, "is there {}?", Random(0)) if "adversarial" in poll.kinds and not poll.truth]
    assert len(absent) == 3
    mixes = {name for name in objects.count if set(name) <= words and name not in objects.names(sample)}
    assert sum(set(text.split()[-2:]) <= words for text in absent) == min(3, len(mixes))


def test_a_picture_is_asked_the_same_whatever_its_neighbours_order() -> None:
    samples = zoo(30)
    first, second = pope.polled(samples, 30), pope.polled(samples[::-1], 30)
    assert {sample.key: asked for sample, asked in first} == {sample.key: asked for sample, asked in second}


def test_no_objects_no_questions() -> None:
    assert pope.plan(in_memory("x", {"test": fakes.captioned(5)})) == []
    assert pope.polled([Sample("0", fakes.picture(0), objects=(Object("cat", BOX),))], 10) == []  # nothing is absent


# -------------------------------------------------------------------------------------------------- who answers how


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (lambda n, q: "Yes." if holds(n, q) else "No, there isn't.", (1, 1, 1, 1, 0.5, 0)),
        (lambda n, q: "No" if holds(n, q) else "yes", (0, 0, 0, 0, 0.5, 0)),
        (lambda n, q: "yes, there is", (0.5, 0.5, 1, 2 / 3, 1, 0)),
        (lambda n, q: "There is no such thing.", (0.5, None, 0, 0, 0, 0)),
        (lambda n, q: "blue", (0, None, 0, 0, 0, 1)),
        (lambda n, q: "yes" if holds(n, q) else "hm", (0.5, 1, 1, 1, 0.5, 0.5)),
    ],
)
def test_spoken_answers(tmp_path: Path, say: Any, expected: tuple[float | None, ...]) -> None:
    result = fakes.run(Speaks(say), {"test": zoo(36)}, tmp_path, fresh=Speaks(say))
    for kind in pope.KINDS:
        found = measures(result, kind)
        assert [found[name] for name in ("accuracy", "precision", "recall", "F1", "yes-rate", "unparsed")] == list(expected)
        assert found["AUC"] is None  # words carry no margin
    assert fakes.cell(result, "pope", "accuracy (random)")["adapter"] == "yes or no in a generated answer"


def test_chance_is_one_half(tmp_path: Path) -> None:
    result = fakes.run(Speaks(lambda n, q: "yes"), {"test": zoo(12)}, tmp_path, fresh=Speaks(lambda n, q: "no"))
    for kind in pope.KINDS:
        assert measures(result, kind, "chance") == dict.fromkeys(("accuracy", "precision", "recall", "F1", "yes-rate", "AUC"), 0.5) | {
            "unparsed": 0
        }


def test_likelihoods_say_what_is_likelier(tmp_path: Path) -> None:
    """A bias towards yes ruins the answers and leaves the order of the margins as it was."""
    biased = Weighs(lambda n, q, a: 3.0 * (a == "yes") + float(holds(n, q) == (a == "yes")))
    found = measures(fakes.run(biased, {"test": zoo(36)}, tmp_path / "biased", fresh=biased))
    assert (found["accuracy"], found["yes-rate"], found["AUC"]) == (0.5, 1, 1)
    tied = Weighs(lambda n, q, a: 0.0)
    found = measures(fakes.run(tied, {"test": zoo(36)}, tmp_path / "tied", fresh=tied))
    assert (found["accuracy"], found["unparsed"], found["AUC"]) == (0, 1, 0.5)
    lines = [json.loads(line) for line in (tmp_path / "biased" / "fakes" / "pope.test.model.jsonl").read_text().splitlines()[1:-1]]
    assert {(line["truth"], line["said"], line["margin"]) for line in lines} == {(1, 1, 4.0), (0, 1, 2.0)}


def test_a_model_with_both_gets_a_row_for_each(tmp_path: Path) -> None:
    class Both(Weighs, Speaks):
        def __init__(self) -> None:
            self.weigh = lambda n, q, a: float(holds(n, q) == (a == "yes"))
            self.say = lambda n, q: "yes"

    result = fakes.run(Both(), {"test": zoo(12)}, tmp_path, fresh=Both())
    assert measures(result)["accuracy"] == 1
    assert measures(result, variant="by yes or no in a generated answer")["accuracy"] == 0.5


def test_scores_are_cut_where_the_other_split_says(tmp_path: Path) -> None:
    """Scores of 0.6 and 0.8: any fixed threshold such as 0.5 would say yes to everything."""
    judge = fakes.Pairs(lambda number, text: 0.8 if holds(number, text) else 0.6)
    splits = {"val": zoo(24), "test": zoo(36)}
    result = fakes.run(judge, splits, tmp_path / "val", fresh=fakes.Pairs(lambda n, t: 0.5))
    assert [measures(result)[name] for name in ("accuracy", "F1", "yes-rate", "AUC")] == [1, 1, 0.5, 1]
    assert measures(result, variant="untrained")["accuracy"] == 0.5
    alone = fakes.run(judge, {"test": zoo(36)}, tmp_path / "alone", fresh=judge)
    assert measures(alone)["accuracy"] == 1  # the median of the questions' own scores, no label looked at


def test_the_threshold_does_not_see_the_labels_asked_about(tmp_path: Path) -> None:
    """The other split's scores are all higher, so the cut lies above everything here, where labels would have put it lower."""
    judge = fakes.Pairs(lambda number, text: (0.9 if number >= 600 else 0.2) + 0.1 * holds(number, text))
    result = fakes.run(judge, {"val": zoo(24, start=600), "test": zoo(36)}, tmp_path, fresh=judge)
    assert [measures(result)[name] for name in ("accuracy", "yes-rate", "AUC")] == [0.5, 0, 1]


@pytest.mark.parametrize(
    ("scores", "truths", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [False, False, True, True], 0.5),
        ([0.1, 0.2, 0.8, 0.9], [None] * 4, 0.5),
        ([0.9, 0.1, 0.8, 0.2], [True, False, True, False], 0.5),
        ([0.1, 0.4, 0.6, 0.7], [False, True, False, True], 0.65),  # two cuts err once, at 0.25 and 0.65
        ([1.0, 2.0], [True, True], 0.0),
        ([1.0, 2.0], [False, False], 3.0),
        ([5.0, 5.0, 5.0], [True, True, False], 4.0),
    ],
)
def test_threshold(scores: list[float], truths: list[bool | None], expected: float) -> None:
    assert threshold(np.array(scores), truths) == pytest.approx(expected)


def test_threshold_is_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores, truth = rng.integers(0, 6, 20).astype(float), rng.random(20) < 0.5
        right = [int(((scores > cut) == truth).sum()) for cut in np.arange(-1, 8, 0.5)]
        assert ((scores > threshold(scores, truth.tolist())) == truth).sum() == max(right)


def test_auc_is_the_probability_of_the_larger_margin() -> None:
    rng = np.random.default_rng(0)
    records = [{"truth": int(rng.integers(2)), "margin": float(rng.integers(5))} for _ in range(60)]
    pairs = [(a["margin"], b["margin"]) for a in records for b in records if a["truth"] and not b["truth"]]
    assert pope.auc(records) == pytest.approx(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert np.isnan(pope.auc(records[:1]))


# -------------------------------------------------------------------------------------- questions that came with the data


def test_given_questions_are_asked_as_they_are(tmp_path: Path) -> None:
    questions = (
        Question("Is there a snowboard in the image?", "yes", "pope-random"),
        Question("Is there a snowboard in the image?", "yes", "pope-popular"),
        Question("Is there an apple in the picture?", "no", "pope-random"),
        Question("Is there a car in the image?", "no", "pope-popular"),
        Question("what is this?", "a park", "open"),
    )
    samples = [Sample("0", fakes.picture(0), questions=questions, objects=(Object("cat", BOX), Object("dog", BOX)))]
    [(_, asked)] = pope.polled(samples, 10)
    assert [(poll.statement, poll.truth, poll.kinds) for poll in asked] == [
        ("there is a snowboard", True, ("random", "popular")),
        ("there is an apple", False, ("random",)),
        ("there is a car", False, ("popular",)),
    ]
    heard: list[str] = []

    def say(number: int, question: str) -> str:
        heard.append(question)
        return "Yes" if "snowboard" in question else "No"

    result = fakes.run(Speaks(say), {"test": samples}, tmp_path, fresh=Speaks(lambda n, q: ""), tasks=["pope"])
    assert {question for question in heard if question.startswith("Is there")} == {poll.question for poll in asked}
    assert measures(result, "popular")["accuracy"] == 1
    assert fakes.cell(result, "pope", "accuracy (random)")["note"] == "2 questions"
    assert {cell["metric"] for cell in result["cells"] if cell["task"] == "vqa"} <= {"accuracy", "open"}
