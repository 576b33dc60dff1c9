from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data.sample import Sample
from data.scenes.build import build
from eval.harness.source import from_shards, in_memory
from eval.tasks import memorisation
from eval.tasks.memorisation import Training, grams, plain
from tests.eval import fakes


class Says:
    """Captions by hand."""

    def __init__(self, words: Callable[[int], str]) -> None:
        self.words, self.asked = words, 0

    def caption(self, images: list[np.ndarray]) -> list[str]:
        self.asked += len(images)
        return [self.words(fakes.number_of(image)) for image in images]


def pictured(start: int, captions: list[tuple[str, ...]]) -> list[Sample]:
    return [Sample(key=f"{start + i:05d}", image=fakes.picture(start + i), captions=texts) for i, texts in enumerate(captions)]


TRAIN = pictured(1000, [("a dog on a sofa", "dog, sofa"), ("a cat in the sun", "the cat sleeps")] * 5)
TEST = pictured(0, [("a cat in the sun", "a grey cat")] * 10 + [("a bird in a tree", "some bird")] * 10)
SPLITS = {"train": TRAIN, "test": TEST}


def evaluated(model: object, out: Path, splits: dict[str, list[Sample]] = SPLITS, **options: object) -> dict:
    return fakes.run(model, splits, out, tasks=["memorisation"], fresh=Says(lambda number: "nothing"), **options)


def test_a_reciter_a_describer_and_one_who_says_new_things(tmp_path: Path) -> None:
    for name, words, expected in (
        ("reciter", lambda number: "A dog on a sofa .", [1, 1, 1, 1]),
        ("describer", lambda number: "a cat in the sun" if number < 10 else "a bird in a tree", [0.5, 0, None, 1]),
        ("original", lambda number: f"picture number {number}", [0, 0, 0, 0]),
    ):
        result = evaluated(Says(words), tmp_path / name)
        measures = ("verbatim", "verbatim elsewhere", "similarity", "duplicates")
        found = [fakes.value(result, "memorisation", measure) for measure in measures]
        assert [value if limit is not None else None for value, limit in zip(found, expected, strict=True)] == expected, name
        assert fakes.value(result, "memorisation", "references verbatim") == 0.25  # the sunny cat, one of two, half of the time
        assert fakes.value(result, "memorisation", "verbatim", "chance") == 1
    assert fakes.value(result, "memorisation", "verbatim", "untrained") == 0


def test_the_nearest_caption_is_that_of_a_slow_search() -> None:
    rng = np.random.default_rng(0)
    words = ["red", "blue", "star", "moon", "and", "a", "big", "one"]
    train = [" ".join(rng.choice(words, size=rng.integers(2, 7))) for _ in range(150)]
    asked = [" ".join(rng.choice([*words, "unseen"], size=rng.integers(1, 7))) for _ in range(80)] + ["", "quite other words"]
    found = Training(in_memory("x", {"train": pictured(0, [(text,) for text in train])})).nearest([plain(text) for text in asked])

    def pieces(text: str) -> set[tuple[str, ...]]:
        return {(word,) for word in text.split()} | set(pairwise(text.split()))

    for text, (nearest, similarity) in zip(asked, found, strict=True):
        slow = [2 * len(pieces(text) & pieces(other)) / (len(pieces(text)) + len(pieces(other))) for other in train]
        assert similarity == pytest.approx(max(slow))
        assert slow[train.index(nearest)] == pytest.approx(max(slow))
    assert found[-1][1] == found[-2][1] == 0


def test_words_are_compared_whatever_their_case_and_punctuation() -> None:
    assert plain("A dog, on a  Sofa.") == plain("a dog on a sofa") == "a dog on a sofa"
    assert plain("Été à Zürich!") == "été à zürich"
    assert grams("a red star") == {"a", "red", "star", "a red", "red star"}


def test_a_true_caption_from_training_is_not_from_elsewhere(tmp_path: Path) -> None:
    """Scenes are judged by the truth, not by the five references that happened to be written."""
    scenes = fakes.single_objects()[:40]
    unsaid = [replace(sample, captions=("some picture",)) for sample in scenes]
    model = Says(lambda number: scenes[min(number, 39)].captions[0] if number % 2 == 0 else scenes[0].captions[0])
    result = evaluated(model, tmp_path, {"train": scenes, "test": unsaid})
    assert fakes.value(result, "memorisation", "verbatim") == 1
    assert fakes.value(result, "memorisation", "verbatim elsewhere") == 0.5
    assert fakes.value(result, "memorisation", "references verbatim") == 0
    oracle = evaluated(model, tmp_path / "own", {"train": scenes[:20], "test": scenes})
    assert fakes.value(oracle, "memorisation", "verbatim", "oracle") == 0.5
    assert fakes.value(oracle, "memorisation", "verbatim elsewhere", "oracle") == 0


def test_nothing_is_planned_without_training_captions_and_nothing_asked_of_the_speechless(tmp_path: Path) -> None:
    assert memorisation.plan(in_memory("x", {"test": TEST})) == []
    assert memorisation.plan(in_memory("x", {"train": fakes.labelled(4, ["a", "b"]), "test": TEST})) == []
    assert memorisation.plan(in_memory("x", {"train": TRAIN, "test": fakes.labelled(4, ["a", "b"])})) == []
    splits = [task.split for task in memorisation.plan(in_memory("x", {**SPLITS, "heldout": TEST[:3], "style": TEST[:2]}))]
    assert splits == ["test", "heldout", "style"]

    class Looks:
        def encode_image(self, images: list[np.ndarray]) -> torch.Tensor:
            return torch.ones(len(images), 2)

    result = fakes.run(Looks(), SPLITS, tmp_path, tasks=["memorisation"], fresh=Looks())
    cell = fakes.cell(result, "memorisation", "verbatim")
    assert (cell["value"], cell["status"], cell["note"]) == (None, "n/a", "needs caption")


def test_training_captions_are_read_from_shards_and_known_by_their_index(tmp_path: Path) -> None:
    build(tmp_path, "tiny", workers=1, samples={"train": 12, "test": 3})
    source = from_shards(tmp_path)
    (task,) = memorisation.plan(source)
    assert task.train.identity() == source.shards["train"].hash
    assert "known" not in vars(task.train)  # nothing is read before a captioner is there
    assert set(task.train.known.values()) == {text for sample in source.beginning("train", 12) for text in sample.captions}


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)])
def test_the_batch_size_changes_nothing_and_an_interrupted_evaluation_goes_on(tmp_path: Path, batch_size: int) -> None:
    def model() -> Says:
        return Says(lambda number: TRAIN[number % 10].captions[number % 2] if number % 3 else f"a cat number {number // 2}")

    whole = evaluated(model(), tmp_path / "whole", batch_size=16)
    again = evaluated(model(), tmp_path / "again", batch_size=batch_size)
    assert again["cells"] == whole["cells"]
    path = tmp_path / "again" / "fakes" / "memorisation.test.model.jsonl"
    lines = path.read_bytes()
    assert lines == (tmp_path / "whole" / "fakes" / path.name).read_bytes()
    path.write_bytes(lines[: len(lines) // 2])
    assert evaluated(model(), tmp_path / "again", batch_size=batch_size)["cells"] == whole["cells"]
    assert path.read_bytes() == lines
    one = evaluated(model(), tmp_path / "one", {"train": TRAIN, "test": TEST[:1]})
    assert fakes.value(one, "memorisation", "duplicates") == 0
