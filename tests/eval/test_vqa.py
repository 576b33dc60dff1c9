"""VQA, with and without examples in context: the rules by a table of cases, the tasks by models whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.sample import Question, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.base.answers import normalised, soft_accuracy, yes_or_no
from eval.harness.source import in_memory
from eval.tasks import fewshot_vqa, vqa
from models.shared.prompts import answered, ask, question_of
from tests.eval import fakes

COLOURS = ("red", "blue", "green")


class Speaks:
    """Answers by hand: `say(number, question)`."""

    def __init__(self, say: Callable[[int, str], str]) -> None:
        self.say = say

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return [self.say(fakes.number_of(image), question) for image, question in zip(images, questions, strict=True)]


class Completes:
    """Writes by hand what follows a prompt."""

    def __init__(self, follow: Callable[[Sequence[Any]], str]) -> None:
        self.follow = follow

    def complete(self, prompts: Sequence[Sequence[Any]]) -> list[str]:
        return [self.follow(prompt) for prompt in prompts]


def asked(count: int, start: int = 0) -> list[Sample]:
    """Picture i has colour i % 3, and holds i % 2 things."""
    return [
        Sample(
            key=f"{i:05d}",
            image=fakes.picture(start + i),
            questions=(
                Question("what colour is it?", COLOURS[(start + i) % 3], "colour"),
                Question("how many things are there?", str((start + i) % 2), "count"),
            ),
        )
        for i in range(count)
    ]


def truth(number: int, question: str) -> str:
    return COLOURS[number % 3] if question.startswith("what") else str(number % 2)


# ------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("typed", "compared"),
    [
        ("  Yes. ", "yes"),
        ("The Cat", "cat"),
        ("a dog and an apple", "dog and apple"),
        ("two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("it's 10.", "it's 10"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("1,000 red-ish", "1000 redish"),  # a thousands comma deletes every mark
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("left-hand side", "left hand side"),
        ("what?!", "what"),
        ("red, blue", "red blue"),
        ("red\nblue\tgreen", "red blue green"),
        ("rock 'n' roll", "rock 'n' roll"),
        ("", ""),
        ("a", ""),
    ],
)
def test_normalisation(typed: str, compared: str) -> None:
    assert normalised(typed) == compared
    assert normalised(compared) == compared


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_of_ten_annotators(agree: int, expected: float) -> None:
    """VQAv2's published steps: 30, 60, 90 and 100 % for one, two, three and more of ten."""
    answers = ["Red"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert soft_accuracy("red.", answers) == pytest.approx(expected)


def test_soft_accuracy_equals_the_mean_over_those_who_leave_one_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        answers = rng.choice(["x", "y", "z"], size=int(rng.integers(4, 12))).tolist()
        left_out = [min(sum(other == "x" for other in answers[:i] + answers[i + 1 :]) / 3, 1) for i in range(len(answers))]
        assert soft_accuracy("x", answers) == pytest.approx(np.mean(left_out))


def test_fewer_annotators_must_all_agree() -> None:
    assert [soft_accuracy("x", answers) for answers in (["x"], ["y"], ["x", "x"], ["x", "y"], ["x", "x", "y"])] == pytest.approx(
        [1, 0, 1, 0.5, 2 / 3]
    )
    with pytest.raises(ValueError, match="at least one annotator"):
        soft_accuracy("x", [])


def test_a_question_is_read_back_from_its_prompt() -> None:
    assert ask("what is it?") == "question: what is it? answer:"
    assert question_of("\n" + ask("what is it?")) == question_of("what is it?") == "what is it?"
    assert answered("what is it?", "a star") == "question: what is it? answer: a star"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", True),
        ("yes", True),
        ("yes, there is", True),
        ("There is a dog in the image.", True),
        ("In the picture, there are two dogs. No cats.", True),
        ("No, there isn't", False),
        ("no", False),
        ("There isn\u2019t a dog", False),
        ("There is no dog in the image.", False),
        ("The image does not show a dog.", False),
        ("I don't know", None),
        ("I'm not sure.", None),
        ("no idea", None),
        ("maybe", None),
        ("blue", None),
        ("nobody", None),
        ("yesterday", None),
        ("", None),
        ("...", None),
    ],
)
def test_yes_or_no(answer: str, said: bool | None) -> None:
    assert yes_or_no(answer) is said


# ------------------------------------------------------------------------------------------------------------- VQA


def test_perfect_constant_and_silent(tmp_path: Path) -> None:
    splits = {"train": asked(9, start=100), "test": asked(12)}
    for name, model, expected in (
        ("perfect", Speaks(lambda number, question: f" {truth(number, question)}. ".upper()), (1, 1, 1)),
        ("constant", Speaks(lambda number, question: "red"), (1 / 6, 1 / 3, 0)),
        ("silent", Speaks(lambda number, question: ""), (0, 0, 0)),
    ):
        result = fakes.run(model, splits, tmp_path / name, fresh=model)
        found = [fakes.value(result, "vqa", metric) for metric in ("accuracy", "colour", "count")]
        assert found == pytest.approx(expected)
        assert fakes.cell(result, "vqa", "accuracy")["adapter"] == "generated answer"
        assert fakes.cell(result, "vqa", "count")["note"] == "12 questions"


def test_chance_is_the_usual_answer_of_the_training_questions(tmp_path: Path) -> None:
    """Training: green is the most frequent colour, and "how many dots" was always 5; of a new opening the usual answer of all."""
    train = [
        Sample("0", fakes.picture(90), questions=(Question("what colour is it?", "green"), Question("how many dots?", "5"))),
        Sample("1", fakes.picture(91), questions=(Question("what colour is it?", "green"), Question("how many dots?", "5"))),
        Sample("2", fakes.picture(92), questions=(Question("what colour is that?", "red"), Question("how many things?", "1"))),
    ]
    test = [
        Sample(
            "0",
            fakes.picture(0),
            questions=(
                Question("what colour is it?", "green", "seen"),
                Question("what colour is that?", "red", "seen"),
                Question("how many stars?", "5", "opening"),
                Question("who is it?", "green", "new"),
            ),
        )
    ]
    result = fakes.run(Speaks(truth), {"train": train, "test": test}, tmp_path, fresh=Speaks(truth))
    assert [fakes.value(result, "vqa", metric, "chance") for metric in ("seen", "opening", "new", "accuracy")] == [1, 1, 1, 1]
    assert "text-only prior" in result["notes"]["vqa"]  # what reports say of a number below it
    prior = vqa.learned(in_memory("x", {"train": train, "test": test}))
    assert (prior.guess("what colour is it?"), prior.guess("how many dogs?"), prior.guess("who is it?")) == ("green", "5", "green")
    assert prior.candidates("what colour is this?") == ["green", "red"]
    assert prior.candidates("who?") == ["green", "5", "red", "1"]


def test_without_training_questions_nothing_is_called_chance(tmp_path: Path) -> None:
    samples = asked(6)
    result = fakes.run(fakes.Pairs(lambda number, text: float(text.endswith(truth(number, text)))), {"test": samples}, tmp_path)
    assert fakes.value(result, "vqa", "accuracy") == 1  # ranked among the answers of the split
    assert "no training questions" in fakes.cell(result, "vqa", "accuracy")["note"]
    assert not [cell for cell in result["cells"] if cell["task"] == "vqa" and cell["variant"] == "chance"]
    assert "fewshot_vqa" not in {cell["task"] for cell in result["cells"]}


def test_a_model_that_only_scores_ranks_the_training_answers(tmp_path: Path) -> None:
    splits = {"train": asked(9, start=100), "test": asked(12)}
    right = fakes.Pairs(lambda number, text: float(text.endswith(f"? {truth(number, text)}")))
    result = fakes.run(right, splits, tmp_path / "right")
    assert fakes.value(result, "vqa", "accuracy") == 1
    assert fakes.cell(result, "vqa", "accuracy")["adapter"] == "ranked: question and answer by pairwise score"
    tied = fakes.run(fakes.Pairs(lambda number, text: 0.0), splits, tmp_path / "tied")
    for metric in ("accuracy", "colour", "count"):  # the first of equals is the most frequent: the prior's answer
        assert fakes.value(tied, "vqa", metric) == fakes.value(tied, "vqa", metric, "chance")


def test_who_has_to_look_at_every_candidate_is_asked_about_fewer_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.harness.ask.RANKED_SAMPLES", 30)
    splits = {"train": asked(9, start=100), "test": asked(40)}
    pairs = fakes.run(fakes.Pairs(lambda number, text: 0.0), splits, tmp_path / "pairs", tasks=["vqa"])
    assert fakes.cell(pairs, "vqa", "accuracy")["n"] == 30
    embeddings = fakes.run(fakes.noisy(), splits, tmp_path / "embeddings", tasks=["vqa"])
    assert fakes.cell(embeddings, "vqa", "accuracy")["n"] == 40


def test_several_annotators_count(tmp_path: Path) -> None:
    answers = ("red",) * 2 + ("dark red",) * 8
    sample = Sample("0", fakes.picture(0), questions=(Question("what colour?", "dark red", "other", answers),))
    model = Speaks(lambda number, question: "Red")
    result = fakes.run(model, {"test": [sample]}, tmp_path, fresh=model)
    assert fakes.value(result, "vqa", "other") == pytest.approx(0.6)
    record = json.loads((tmp_path / "fakes" / "vqa.test.model.jsonl").read_text().splitlines()[1])
    assert (record["said"], record["truth"]) == ("Red", list(answers))


def test_a_data_set_without_questions_plans_nothing() -> None:
    source = in_memory("x", {"train": fakes.captioned(3), "test": fakes.captioned(3)})
    assert vqa.plan(source) == []
    assert fewshot_vqa.plan(source) == []


def test_shifts_are_asked_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqa, "PICTURES", 6)
    monkeypatch.setattr(vqa, "SHIFTED_PICTURES", 2)
    planned = vqa.plan(in_memory("x", {"test": asked(10), "style": asked(10), "heldout": asked(1)}))
    assert [(task.split, len(task.samples)) for task in planned] == [("test", 6), ("heldout", 1), ("style", 2)]


# -------------------------------------------------------------------------------------------------------- few-shot


def test_examples_come_first_and_are_training_questions_of_the_same_opening(tmp_path: Path) -> None:
    splits = {"train": asked(30, start=100), "test": asked(8)}
    seen: list[Sequence[Any]] = []

    def follow(prompt: Sequence[Any]) -> str:
        seen.append(prompt)
        return f" {truth(fakes.number_of(prompt[-2]), question_of(prompt[-1]))}\nquestion: what colour is it? answer: grey"

    result = fakes.run(Completes(follow), splits, tmp_path, fresh=Completes(lambda prompt: "grey"))
    assert [fakes.value(result, "fewshot_vqa", f"k = {k}") for k in (0, 1, 4)] == [1, 1, 1]
    assert [fakes.value(result, "fewshot_vqa", f"k = {k}", "untrained") for k in (0, 1, 4)] == [0, 0, 0]
    by_length = sorted({len(prompt) for prompt in seen})
    assert by_length == [2, 4, 10]
    for prompt in seen:
        *shots, image, question = prompt
        assert isinstance(image, np.ndarray)
        for picture, text in zip(shots[::2], shots[1::2], strict=True):
            number = fakes.number_of(picture)
            assert number >= 100
            assert text == f"{question} {truth(number, question_of(question))}\n"
            assert text.startswith("\nquestion: ")
    one, four = (next(prompt for prompt in seen if len(prompt) == size) for size in (4, 10))
    assert one[0] is four[0]  # the examples of fewer shots are the first of those of more
    assert one[1] == four[1]


def test_who_copies_the_last_example_is_seen_at_once(tmp_path: Path) -> None:
    """Right where the example's answer happens to be the truth, and wrong without examples. The prior is right about every third
    colour, and about no count: those fall to the odd pictures, where the truth is 1 and the prior, of equals, says 0."""
    model = Completes(lambda prompt: prompt[-3].split()[-1] if len(prompt) > 2 else "")
    result = fakes.run(model, {"train": asked(30, start=100), "test": asked(60)}, tmp_path, fresh=model)
    assert fakes.value(result, "fewshot_vqa", "k = 0") == 0
    assert 0.2 < fakes.value(result, "fewshot_vqa", "k = 4") < 0.65
    assert fakes.value(result, "fewshot_vqa", "k = 4", "chance") == pytest.approx(1 / 3 / 2)


# ------------------------------------------------------------------------------------------------- through the harness


def scenes(count: int) -> dict[str, list[Sample]]:
    splits = {split: [make_sample(PRESETS["tiny"], split, i) for i in range(count)] for split in ("train", "val", "test", "style")}
    for samples in splits.values():
        for i, sample in enumerate(samples):
            sample.image[0, 0] = i % 256, i // 256, 7  # so that the fakes can read a picture's number
    return splits


class Guesses:
    """An arbitrary but fixed answer to every question, in every way that a model can answer."""

    score_kind = "guess"

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return [("yes", "no", "red", "2")[self._draw(i, q) % 4] for i, q in zip(images, questions, strict=True)]

    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        return torch.tensor([-float(self._draw(i, q + a) % 97) for i, q, a in zip(images, questions, answers, strict=True)])

    def complete(self, prompts: Sequence[Sequence[Any]]) -> list[str]:
        return self.answer([prompt[-2] for prompt in prompts], [f"{len(prompt)} {prompt[-1]}" for prompt in prompts])

    def _draw(self, image: np.ndarray, text: str) -> int:
        return int(np.random.default_rng([fakes.number_of(image), *text.encode()]).integers(1 << 30))


TASKS = ["vqa", "fewshot_vqa", "pope"]


def test_the_truth_is_right_about_everything(tmp_path: Path) -> None:
    result = fakes.run(Guesses(), scenes(40), tmp_path, fresh=Guesses(), tasks=TASKS)
    oracle = [cell for cell in result["cells"] if cell["variant"] == "oracle"]
    assert {cell["task"] for cell in oracle} == set(TASKS)
    for cell in oracle:
        expected = 0.5 if cell["metric"].startswith("yes-rate") else 0.0 if cell["metric"].startswith("unparsed") else 1.0
        assert cell["value"] == expected, cell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The records of an evaluation in batches of 64, by file."""
    folder = tmp_path_factory.mktemp("whole")
    fakes.run(Guesses(), scenes(25), folder, fresh=Guesses(), tasks=TASKS, batch_size=64)
    return {path.name: path.read_bytes() for path in (folder / "fakes").glob("*.jsonl")}


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_the_batch_size_changes_nothing_and_an_interrupted_evaluation_goes_on(
    tmp_path: Path, whole: dict[str, bytes], batch_size: int
) -> None:
    assert {name.split(".")[0] for name in whole} == set(TASKS)
    paths = [tmp_path / "fakes" / name for name in whole]
    fakes.run(Guesses(), scenes(25), tmp_path, fresh=Guesses(), tasks=TASKS, batch_size=batch_size)
    assert {path.name: path.read_bytes() for path in paths} == whole
    if batch_size == 7:
        for number, path in enumerate(paths):
            path.write_bytes(whole[path.name][: len(whole[path.name]) * (number % 5) // 5])
        fakes.run(Guesses(), scenes(25), tmp_path, fresh=Guesses(), tasks=TASKS, batch_size=batch_size)
        assert {path.name: path.read_bytes() for path in paths} == whole


def test_one_sample(tmp_path: Path) -> None:
    splits = scenes(3)
    result = fakes.run(Guesses(), splits | {"test": splits["test"][:1]}, tmp_path, fresh=Guesses(), tasks=TASKS)
    assert fakes.cell(result, "vqa", "accuracy")["n"] == 1
    assert fakes.cell(result, "fewshot_vqa", "k = 4", "shuffled images")["status"] == "n/a"


def test_other_examples_begin_anew(tmp_path: Path) -> None:
    """What the answers depend on besides the split asked about is part of the settings."""
    splits = scenes(6)
    first = fakes.run(Guesses(), splits, tmp_path, fresh=Guesses(), tasks=TASKS)
    train = [replace(sample, questions=tuple(replace(q, answer="purple") for q in sample.questions)) for sample in splits["train"]]
    other = fakes.run(Guesses(), splits | {"train": train}, tmp_path, fresh=Guesses(), tasks=TASKS)
    assert first["prompts"]["vqa"] != other["prompts"]["vqa"]
    assert first["prompts"]["fewshot_vqa"] != other["prompts"]["fewshot_vqa"]
    assert first["prompts"]["pope"] == other["prompts"]["pope"]  # its examples are of val
