from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.sample import Sample
from eval.adapters.naming import ASKED, NearestMeanNames
from eval.harness.source import in_memory
from eval.tasks.binding import OTHER, QUERIES, SETTINGS, first_word, plan
from eval.tasks.probe import truth_of
from tests.eval import fakes
from tests.eval.test_zeroshot import knows


class Completes:
    """Completions by hand: `say` is given the numbers of the pictures with the words that follow them, and that of the last."""

    def __init__(self, say: Callable[[list[tuple[int, str]], int], str]) -> None:
        self.say = say

    def complete(self, prompts: Sequence[Sequence[str | np.ndarray]]) -> list[str]:
        found = []
        for task, *shown, image, asked in prompts:
            assert task == "answer with blicket or dax."
            assert asked == ASKED
            numbers = [fakes.number_of(part) for part in shown[::2]]
            words = [re.fullmatch(r"this is a (dax|blicket)\.", part)[1] for part in shown[1::2]]
            found.append(self.say(list(zip(numbers, words, strict=True)), fakes.number_of(image)))
        return found


class Sees:
    def encode_image(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return knows("colour").encode_image(images)


class Both(Completes, Sees):
    pass


def ask(model: Any, out: Path, **options: Any) -> dict[str, Any]:
    return fakes.run(model, {"test": fakes.single_objects()}, out, tasks=["binding"], fresh=model, **options)


def attribute(name: str) -> Callable[[int], str]:
    truths = [truth_of(sample) for sample in fakes.single_objects()]
    return lambda number: truths[number][name] if number < len(truths) else "blank"


def learner(name: str) -> Completes:
    """Learns words for values of one attribute only, and says the first word where that does not decide."""
    value = attribute(name)
    return Completes(lambda lesson, asked: next((word for n, word in lesson if value(n) == value(asked)), lesson[0][1]))


def test_who_learns_words_for_shapes_binds_shapes_and_guesses_colours(tmp_path: Path) -> None:
    result = ask(learner("shape"), tmp_path)
    for setting in SETTINGS:
        assert fakes.value(result, "binding", f"shape, {setting}") == 1
        assert 0.3 < fakes.value(result, "binding", f"colour, {setting}") < 0.7
        assert fakes.value(result, "binding", f"shape, {setting}", "oracle") == 1
        assert fakes.value(result, "binding", f"colour, {setting}", "oracle") == 1
        assert fakes.value(result, "binding", f"shape, {setting}", "chance") == 0.5
    assert 0.3 < fakes.value(result, "binding", "shape, k = 3", "shuffled images") < 0.7
    assert fakes.value(result, "binding", "word") == 1


def test_one_word_always_is_exactly_chance(tmp_path: Path) -> None:
    result = ask(Completes(lambda lesson, asked: "a Dax, I think. Or blicket?"), tmp_path)
    assert fakes.value(result, "binding", "colour, k = 1") == fakes.value(result, "binding", "shape, k = 3") == 0.5
    silent = ask(Completes(lambda lesson, asked: "a red star"), tmp_path / "silent")
    assert fakes.value(silent, "binding", "colour, k = 1") == fakes.value(silent, "binding", "word") == 0


def test_features_bind_what_they_hold_and_stand_beside_completions(tmp_path: Path) -> None:
    result = ask(Sees(), tmp_path)
    assert fakes.value(result, "binding", "colour, k = 1") == 1
    assert fakes.value(result, "binding", "shape, k = 3") == pytest.approx(0.5, abs=0.15)
    assert "nearest mean" in fakes.cell(result, "binding", "colour, k = 1")["adapter"]
    both = ask(Both(learner("shape").say), tmp_path / "both")
    assert fakes.value(both, "binding", "shape, k = 1") == 1
    assert fakes.value(both, "binding", "colour, k = 1", "by nearest mean of image features") == 1


def test_examples_are_of_their_class_and_share_nothing_else_with_what_is_asked() -> None:
    [task] = plan(in_memory("fakes", {"test": fakes.single_objects()}))
    assert len(task.samples) == QUERIES
    assert sum(episodes[0].word == "dax" for episodes in task.episodes) == QUERIES / 2
    truths = [truth_of(sample) for sample in task.known]
    for sample, episodes in zip(task.samples, task.episodes, strict=True):
        true = truth_of(sample)
        assert [episode.target for episode in episodes] == ["shape", "colour"]
        for episode in episodes:
            assert all(truths[i][episode.target] == true[episode.target] for i in episode.right)
            assert len({truths[i][episode.target] for i in episode.wrong} | {true[episode.target]}) == 2
            for i in (*episode.right, *episode.wrong):
                assert truths[i][OTHER[episode.target]] != true[OTHER[episode.target]]
            lesson = episode.lesson(task.known, 3, 2)
            assert sorted(word for _, word in lesson) == ["blicket"] * 6 + ["dax"] * 6


def test_class_names_serve_where_there_are_no_scenes(tmp_path: Path) -> None:
    model = fakes.Embeds(lambda number: np.eye(2)[number % 2], lambda text: [1.0, 0.0])
    result = fakes.run(model, {"test": fakes.labelled(40, ("cat", "dog"))}, tmp_path, tasks=["binding"])
    assert fakes.value(result, "binding", "k = 1") == fakes.value(result, "binding", "k = 3") == 1


@pytest.mark.parametrize("samples", [[], fakes.single_objects()[:1], fakes.labelled(5, ("a", "b"))])
def test_too_few_pictures_plan_nothing(samples: list[Sample]) -> None:
    assert plan(in_memory("fakes", {"test": [*samples, Sample("z", fakes.picture(900), captions=("text",))]})) == []


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_the_batch_size_changes_nothing_and_what_was_killed_is_completed(tmp_path: Path, batch_size: int) -> None:
    whole = ask(learner("colour"), tmp_path / "whole", batch_size=64)
    assert ask(learner("colour"), tmp_path / "other", batch_size=batch_size)["cells"] == whole["cells"]
    path = tmp_path / "other" / "fakes" / "binding.test.model.jsonl"
    content = path.read_text()
    path.write_text(content[: len(content) // 3])
    assert ask(learner("colour"), tmp_path / "other", batch_size=batch_size)["cells"] == whole["cells"]
    assert path.read_text() == content
    assert json.loads(content.splitlines()[1])["said"].keys() == SETTINGS.keys()


def test_equal_features_name_what_was_taught_first() -> None:
    features = Sees()
    features.adapter, features.features = "image features", lambda images: np.ones((len(images), 3), np.float32)
    picture = fakes.picture(0)
    assert NearestMeanNames(features).names([[(picture, "blicket"), (picture, "dax")]], [picture]) == ["blicket"]


@pytest.mark.parametrize(
    ("text", "word"),
    [("dax", "dax"), ("A BLICKET.", "blicket"), ("not a blicket but a dax", "blicket"), ("daxes", ""), ("", ""), ("red dax\n", "dax")],
)
def test_the_first_of_the_two_words_counts(text: str, word: str) -> None:
    assert first_word(text) == word
