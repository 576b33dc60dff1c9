"""Answers written elsewhere, against hand-worked figures and against the published scripts written out again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import EvalError
from eval.answers import pope, vqa
from eval.answers.__main__ import main
from eval.base.answers import published_accuracy

# ------------------------------------------------------------------------------------------------------------- POPE

QUESTIONS = [("person", "yes"), ("car", "no"), ("dog", "yes"), ("cat", "no"), ("bus", "yes"), ("kite", "no")]
ANSWERS = ["Yes, there is.", "No, there is no car.", "Definitely not.", "Absolutely.", "It is unclear.", "There is not. Yes."]


def lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def asked(folder: Path) -> Path:
    return lines(
        folder / "coco_pope_random.json",
        [
            {"question_id": i + 1, "image": f"{i // 2}.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for i, (thing, label) in enumerate(QUESTIONS)
        ],
    )


def answered(folder: Path, texts: list[str]) -> Path:
    entries = [{"question": f"is there a {thing} in the image?", "answer": text} for (thing, _), text in zip(QUESTIONS, texts, strict=True)]
    return lines(folder / "answers.json", entries)


def values(cells: list[dict[str, Any]]) -> dict[str, float | None]:
    return {cell["metric"]: cell["value"] for cell in cells}


def published_pope(answers: list[str], labels: list[str]) -> dict[str, float]:
    """evaluate.py of POPE, step by step."""
    said = []
    for text in answers:
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        said.append(0 if "No" in words or "not" in words or "no" in words else 1)
    truth = [0 if label == "no" else 1 for label in labels]
    count = {pair: sum((s, t) == pair for s, t in zip(said, truth, strict=True)) for pair in ((1, 1), (1, 0), (0, 0), (0, 1))}
    precision, recall = count[1, 1] / (count[1, 1] + count[1, 0]), count[1, 1] / (count[1, 1] + count[0, 1])
    found = {"accuracy": (count[1, 1] + count[0, 0]) / len(truth), "precision": precision, "recall": recall}
    return found | {"F1": 2 * precision * recall / (precision + recall), "yes ratio": said.count(1) / len(said)}


def test_pope_by_hand(tmp_path: Path) -> None:
    """Published: yes no no yes yes no, so 2 of 3 present and 2 of 3 absent objects. Parsed: yes no no yes - no; the last answer
    contradicts itself."""
    cells, records = pope.score(answered(tmp_path, ANSWERS), asked(tmp_path))
    found = values(cells)
    assert [found[name] for name in ("accuracy", "precision", "recall", "F1", "yes ratio")] == pytest.approx(
        [4 / 6, 2 / 3, 2 / 3, 2 / 3, 0.5]
    )
    assert [record["said"] for record in records] == [1, 0, 0, 1, None, None]
    parsed = [found[f"{name} (parsed)"] for name in ("accuracy", "precision", "recall", "F1", "yes ratio")]
    assert parsed == pytest.approx([2 / 6, 1 / 2, 1 / 3, 2 / 5, 2 / 6])
    assert found["unparsed"] == pytest.approx(2 / 6)
    assert cells[0]["n"] == 3  # images


def test_pope_equals_the_published_script(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [
        "Yes",
        "No",
        "no.",
        "NO",
        "Yes, no dog",
        "No,",
        "not",
        "yes. no",
        "There is not",
        "nothing",
        "Yes\nno",
        "no!",
        "",
        "cannot",
        " No",
    ]
    for _ in range(20):
        labels = rng.choice(["yes", "no"], 40).tolist()
        answers = rng.choice(texts, 40).tolist()
        questions = lines(
            tmp_path / "q.json",
            [{"question_id": i, "image": f"{i % 9}", "text": f"t{i}", "label": label} for i, label in enumerate(labels)],
        )
        given = lines(tmp_path / "a.json", [{"question": f"t{i}", "answer": answer} for i, answer in enumerate(answers)])
        found = values(pope.score(given, questions)[0])
        assert {name: found[name] for name in published_pope(answers, labels)} == pytest.approx(published_pope(answers, labels))


def test_an_always_right_model_is_right_however_it_speaks(tmp_path: Path) -> None:
    texts = ["Absolutely." if label == "yes" else "Absolutely not." for _, label in QUESTIONS]
    found = values(pope.score(answered(tmp_path, texts), asked(tmp_path))[0])
    assert (found["accuracy (parsed)"], found["unparsed"]) == (1, 0)


def test_answers_with_ids_come_in_any_order(tmp_path: Path) -> None:
    entries = [{"question_id": i + 1, "text": text} for i, text in enumerate(ANSWERS)]
    shuffled = lines(tmp_path / "ids.jsonl", entries[::-1])
    assert values(pope.score(shuffled, asked(tmp_path))[0]) == values(pope.score(answered(tmp_path, ANSWERS), asked(tmp_path))[0])
    few = lines(tmp_path / "few.jsonl", entries[:2])
    with pytest.raises(EvalError, match=r"4 of 6 questions have no answer, the first is question_id 3; .*--subset"):
        pope.score(few, asked(tmp_path))
    assert values(pope.score(few, asked(tmp_path), subset=True)[0])["accuracy"] == 1


def test_a_model_that_never_says_yes_has_no_precision(tmp_path: Path) -> None:
    cells, _ = pope.score(answered(tmp_path, ["No"] * 6), asked(tmp_path))
    found = {cell["metric"]: cell for cell in cells}
    assert (found["precision"]["value"], found["precision"]["note"]) == (None, "no answer is yes")
    assert (found["recall"]["value"], found["F1"]["value"], found["accuracy"]["value"]) == (0, 0, 0.5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"question": "is there a person in the image?", "answer": "yes"}], r"has 1 answers without question_id, .* has 6 questions"),
        ([{"question_id": 9, "answer": "yes"}], "question_id 9 is not among the questions"),
        ([{"question_id": 1, "answer": "yes"}, {"question_id": 1, "answer": "no"}], "question_id 1 has two answers"),
        ([{"question_id": 1}], "expected lines .*answer 1 is"),
        ([{"question_id": 1, "answer": "yes"}, {"answer": "no"}], "expected lines .*answer 2 is"),
        ([{"question": "is there a zebra in the image?", "answer": "yes"}] * 6, "answer 1 is to 'is there a zebra"),
        ([{"question_id": 1, "answer": "yes"}, 5], "expected one JSON object per line"),
    ],
)
def test_wrong_answers_are_named(tmp_path: Path, entries: list[Any], message: str) -> None:
    path = lines(tmp_path / "answers.json", entries)
    with pytest.raises(EvalError, match=f"answers.json.*{message}"):
        pope.score(path, asked(tmp_path))
    path.write_text(path.read_text() + "{")
    with pytest.raises(EvalError, match=rf"answers.json: line {len(entries) + 1} is not a JSON object"):
        pope.score(path, asked(tmp_path))
    lines(path, entries)
    with pytest.raises(SystemExit, match=r"answers: .*answers.json"):
        main(["pope", str(path), str(asked(tmp_path))])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question_id": 1, "image": "a", "text": "t", "label": "maybe"}, "expected questions"),
        ({"question_id": 1, "image": "a", "text": "t"}, "expected questions"),
        ({"question": "t", "answer": "yes"}, "expected questions"),
    ],
)
def test_wrong_questions_are_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(EvalError, match=f"q.json.*{message}"):
        pope.score(answered(tmp_path, ANSWERS), lines(tmp_path / "q.json", [entry]))


KINDS = ("random", "popular", "adversarial")
ABSENT = {"random": ("car", "cat", "kite"), "popular": ("chair", "cup"), "adversarial": ("fork", "oven", "sofa")}


def three_files(folder: Path) -> list[Path]:
    """As in POPE's repository: the ids of each file begin at 1, the present objects are the same, and one file is shorter."""
    files = []
    for kind in KINDS:
        things = [pair for absent in ABSENT[kind] for pair in (("person", "yes"), (absent, "no"))]
        entries = [
            {"question_id": i + 1, "image": "0.jpg", "text": f"Is there a {thing} in the image?", "label": label}
            for i, (thing, label) in enumerate(things)
        ]
        files.append(lines(folder / f"coco_pope_{kind}.json", entries))
    return files


def answers_to(files: list[Path], wrong: str) -> list[dict[str, Any]]:
    """Right ones, but to all questions of one kind wrong ones."""
    found = []
    for kind, path in zip(KINDS, files, strict=True):
        for entry in map(json.loads, path.read_text().splitlines()):
            says = entry["label"] if kind != wrong else {"yes": "no", "no": "yes"}[entry["label"]]
            found.append({"question_id": entry["question_id"], "category": kind, "question": entry["text"], "answer": says})
    return found


def without(entries: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in names} for entry in entries]


@pytest.mark.parametrize("wrong", KINDS)
@pytest.mark.parametrize(
    "left_out", [(), ("category",), ("question",), ("question_id",), ("category", "question_id"), ("question", "question_id")], ids=str
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_answers_to_all_of_popes_files_in_one(wrong: str, left_out: tuple[str, ...], turned: bool, tmp_path: Path) -> None:
    files = three_files(tmp_path)
    given = lines(tmp_path / "answers.jsonl", without(answers_to(files, wrong), *left_out))
    cells, records = pope.score(given, *(files[::-1] if turned else files))
    found = values(cells)
    assert {kind: found[f"{kind}: accuracy"] for kind in KINDS} == {kind: float(kind != wrong) for kind in KINDS}
    assert {kind: found[f"{kind}: accuracy (parsed)"] for kind in KINDS} == {kind: float(kind != wrong) for kind in KINDS}
    assert len(records) == 16
    assert {record["questions"] for record in records} == set(KINDS)


def test_a_prompt_tells_the_question_too(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    entries = without(answers_to(files, "popular"), "category")
    prompts = [entry | {"prompt": f"{entry['question']}\nAnswer with one word."} for entry in entries]
    found = values(pope.score(lines(tmp_path / "answers.jsonl", without(prompts, "question")), *files)[0])
    assert [found[f"{kind}: accuracy"] for kind in KINDS] == [1, 0, 1]


def test_answers_to_several_files_without_order_need_a_category(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    entries = sorted(answers_to(files, "popular"), key=lambda entry: str(entry["question_id"]))
    found = values(pope.score(lines(tmp_path / "answers.jsonl", entries), *files)[0])
    assert [found[f"{kind}: accuracy"] for kind in KINDS] == [1, 0, 1]
    with pytest.raises(EvalError, match=r"not clear which questions .* from number 1 on"):
        pope.score(lines(tmp_path / "answers.jsonl", without(entries, "category")), *files)


def test_ids_that_are_in_one_file_only_need_nothing_else(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    entries = without(answers_to(files, "popular"), "category", "question")
    for number, path in enumerate(files):
        lines(path, [each | {"question_id": each["question_id"] + 100 * number} for each in map(json.loads, path.read_text().splitlines())])
    starts = [0] * 6 + [100] * 4 + [200] * 6
    entries = [entry | {"question_id": entry["question_id"] + start} for entry, start in zip(entries, starts, strict=True)]
    found = values(pope.score(lines(tmp_path / "answers.jsonl", entries[::-1]), *files)[0])
    assert [found[f"{kind}: accuracy"] for kind in KINDS] == [1, 0, 1]


def test_answers_that_may_belong_to_any_of_several_files_are_refused(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    entries = answers_to(files, "popular")
    given = lines(tmp_path / "answers.jsonl", without(entries, "category", "question"))
    with pytest.raises(EvalError, match=r"not clear which questions \(random, popular, adversarial\).*\"category\": 'random' or 'popular'"):
        pope.score(given, *files)
    with pytest.raises(EvalError, match=r"question_id 1 has two answers.*name all of these files"):
        pope.score(given, files[0])
    lines(given, without(entries, "category", "question", "question_id"))
    with pytest.raises(EvalError, match=r"has 16 answers without question_id.*name all of these files"):
        pope.score(given, files[0])
    lines(given, [entries[0] | {"category": "easy"}])
    with pytest.raises(EvalError, match="answer 1 is of category 'easy', expected one of random, popular, adversarial"):
        pope.score(given, *files)
    lines(given, entries[:6])
    with pytest.raises(EvalError, match=r"4 of 4 questions have no answer, the first is question_id 1; .*coco_pope_popular.json"):
        pope.score(given, *files)
    assert values(pope.score(given, *files, subset=True)[0])["random: accuracy"] == 1
    lines(given, without(entries[:1], "category"))  # asked in every file
    with pytest.raises(EvalError, match="not clear which questions"):
        pope.score(given, *files, subset=True)
    with pytest.raises(SystemExit, match="expected one or more files"):
        main(["pope", str(given)])


# -------------------------------------------------------------------------------------------------------------- VQA


def published_vqa(said: str, answers: list[str]) -> float:
    """vqaEval.py of VQA, step by step; contractions left out."""

    def punctuation(text: str) -> str:
        out = text
        for mark in [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]:
            beside = mark + " " in text or " " + mark in text
            out = out.replace(mark, "" if beside or re.search(r"(\d)(\,)(\d)", text) is not None else " ")
        return re.compile(r"(?!<=\d)(\.)(?!\d)").sub("", out, 32)

    def digits(text: str) -> str:
        numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        table = {"none": "0"} | {word: str(i) for i, word in enumerate(numbers)}
        return " ".join(word for word in (table.get(word, word) for word in text.lower().split()) if word not in ("a", "an", "the"))

    given = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    result = said.replace("\n", " ").replace("\t", " ").strip()
    if len(set(given)) > 1:
        given, result = [digits(punctuation(answer)) for answer in given], digits(punctuation(result))
    scores = []
    for i in range(len(given)):
        others = given[:i] + given[i + 1 :]
        scores.append(min(1, sum(other == result for other in others) / 3))
    return sum(scores) / len(scores)


TEXTS = [
    "red",
    "Red",
    "red.",
    "the red",
    "a red",
    "two",
    "2",
    "2.5",
    "1,000",
    "1000",
    "yes",
    "yes/no",
    "red-ish",
    "red - ish",
    "",
    "  red\n",
    "!?",
]


def test_vqa_accuracy_equals_the_published_script() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        answers = rng.choice(TEXTS, size=int(rng.choice([1, 2, 3, 10]))).tolist()
        said = str(rng.choice(TEXTS))
        assert published_accuracy(said, answers) == pytest.approx(published_vqa(said, answers)), (said, answers)
    assert published_accuracy("a." * 40, ["x", "a." * 40]) == pytest.approx(published_vqa("a." * 40, ["x", "a." * 40]))


def test_unanimous_answers_are_compared_as_they_were_typed() -> None:
    assert published_accuracy("Yes", ["yes"] * 10) == 0
    assert published_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert published_accuracy("dont", ["don't"] * 5 + ["no"] * 5) == 1


def vqa_files(folder: Path, said: list[Any], given: list[list[str]]) -> tuple[Path, Path]:
    results, annotations = folder / "results.json", folder / "annotations.json"
    results.write_text(json.dumps([{"question_id": 10 + i, "answer": answer} for i, answer in enumerate(said)]))
    listed = [
        {
            "question_id": 10 + i,
            "image_id": i // 2,
            "question_type": ("is the", "how many", "other")[i % 3],
            "answer_type": ("yes/no", "number", "other")[i % 3],
            "multiple_choice_answer": answers[0],
            "answers": [{"answer": answer, "answer_id": n + 1, "answer_confidence": "yes"} for n, answer in enumerate(answers)],
        }
        for i, answers in enumerate(given)
    ]
    annotations.write_text(json.dumps({"info": {}, "license": {}, "data_subtype": "val2014", "annotations": listed}))
    return results, annotations


def test_vqa_by_hand(tmp_path: Path) -> None:
    """Ten annotators: four or more who agree 1, two .6, none 0, one .3."""
    given = [["yes"] * 6 + ["no"] * 4, ["2"] * 2 + ["3"] * 8, ["red"] * 9 + ["blue"], ["yes"] * 9 + ["no"]]
    results, annotations = vqa_files(tmp_path, ["Yes.", "two", "green", "no"], given)
    cells, records = vqa.score(results, annotations, question_types=True)
    expected = {"accuracy": (1 + 0.6 + 0 + 0.3) / 4, "yes/no": 0.65, "number": 0.6, "other": 0.0}
    expected |= {'"is the ..."': 0.65, '"how many ..."': 0.6, '"other ..."': 0.0}
    assert values(cells) == pytest.approx(expected)
    assert [record["question_id"] for record in records] == [10, 11, 12, 13]
    assert cells[0]["n"] == 2


def test_the_commands_print_and_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, annotations = vqa_files(tmp_path, ["yes"], [["yes"] * 6 + ["no"] * 4])
    main(["vqa", str(results), str(annotations), "--out", str(tmp_path / "vqa.jsonl")])
    assert "accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "vqa.jsonl").read_text())["accuracy"] == 1
    main(["pope", str(answered(tmp_path, ANSWERS)), str(asked(tmp_path)), "--out", str(tmp_path / "pope.jsonl")])
    printed = capsys.readouterr().out
    assert "unparsed" in printed
    assert len((tmp_path / "pope.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ([], "expected a list of"),
        ({"annotations": []}, "expected a list of"),
        ([{"question_id": 10}], "expected entries"),
        ([{"question_id": 10, "answer": "a"}, {"question_id": 10, "answer": "b"}], "question_id 10 has two answers"),
        ([{"question_id": 99, "answer": "a"}], "question_id 99 and 0 more are not annotated"),
        ([{"question_id": 10, "answer": "a"}], r"1 of 2 questions have no answer, the first is question_id 11; .*--subset"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, content: Any, message: str) -> None:
    results, annotations = vqa_files(tmp_path, [], [["yes"] * 10, ["no"] * 10])
    results.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(EvalError, match=f"results.json.*{message}"):
        vqa.score(results, annotations)
    with pytest.raises(SystemExit, match=r"answers: .*results.json"):
        main(["vqa", str(results), str(annotations)])


def test_a_questions_file_is_no_annotations_file(tmp_path: Path) -> None:
    results, annotations = vqa_files(tmp_path, ["yes"], [["yes"] * 10])
    for content in ({"questions": []}, {"annotations": [{"question_id": 10}]}, {"annotations": [{"answers": []}]}):
        annotations.write_text(json.dumps(content))
        with pytest.raises(EvalError, match=r"annotations.json: expected"):
            vqa.score(results, annotations)


def test_a_file_that_cannot_be_read_or_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    questions, answers = asked(tmp_path), answered(tmp_path, ANSWERS)
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(SystemExit, match=rf"answers: {re.escape(str(path))} cannot be read: \w.*Expected a file"):
            main(["pope", str(path), str(questions)])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"answers: .*out\.jsonl cannot be written: .*Choose another place"):
        main(["pope", str(answers), str(questions), "--out", str(tmp_path / "file" / "out.jsonl")])


def test_half_a_character_in_an_answer_can_be_written(tmp_path: Path) -> None:
    answers = answered(tmp_path, ["Yes \ud800", *ANSWERS[1:]])
    main(["pope", str(answers), str(asked(tmp_path)), "--out", str(tmp_path / "out.jsonl")])
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["answer"] == "Yes ?"
