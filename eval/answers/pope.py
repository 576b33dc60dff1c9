"""POPE's answers (Li et al. 2023, arXiv:2305.10355), in the files of its repository (github.com/AoiDragon/POPE).

questions  {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?", "label": "yes"}
answers    {"question": "is there a person in the image?", "answer": "Yes, there is."}

Both have one object a line. Answers belong to the questions of the same line, or by "question_id" where they have it; the answer can also
be called "text". `accuracy`, `precision`, `recall`, `F1` and `yes ratio` are those of the repository's evaluate.py, which takes an answer
for no if its first sentence has one of the words "No", "no" and "not", and for yes otherwise. The measures called "parsed" read the same
answers by eval/base/yesno.py: one that is neither yes nor no is wrong, and no yes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.importers.entries import strings
from data.importers.write import read_text
from eval import EvalError
from eval.base.records import Record
from eval.base.task import Measure
from eval.base.yesno import yes_or_no
from eval.harness.ask import summarise

Json = dict[str, Any]
ANSWER = ("answer", "text")


@dataclass(frozen=True)
class Asked:
    id: str
    image: str
    text: str
    truth: bool


def score(answers: Path, questions: Path, *, subset: bool = False) -> tuple[list[Record], list[Record]]:
    """Cells, and one record per question. Every question must have its answer, unless `subset`. Raises EvalError for files that are
    not in these formats or do not belong together."""
    asked = read_questions(questions)
    found = read_answers(answers, asked, questions)
    if (missing := [each for each in asked if each.id not in found]) and not subset:
        raise EvalError(
            f"{answers}: {len(missing)} of {len(asked)} questions have no answer, the first is question_id {missing[0].id}; "
            "add them, or score those that have one with --subset"
        )
    images: dict[str, int] = {}
    records = [_record(each, found[each.id], images.setdefault(each.image, len(images))) for each in asked if each.id in found]
    published = _measures("", 'published rule: without "no" or "not" an answer is a yes')
    parsed = [*_measures(" (parsed)", ""), Measure("unparsed", "answers that are neither yes nor no", better="lower")]
    return summarise([*published, *parsed], records), records


def says_no(answer: str) -> bool:
    """The decision of POPE's evaluate.py."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"}.isdisjoint(words)


def read_questions(path: Path) -> list[Asked]:
    found: dict[str, Asked] = {}
    for number, entry in enumerate(_entries(path), 1):
        texts = strings(entry, ("image", "text", "label"))
        label = texts[2].strip().lower() if texts else ""
        if not texts or label not in ("yes", "no"):
            raise EvalError(f'{path}: expected questions {{"question_id", "image", "text", "label": "yes" or "no"}}; found {entry!s:.80}')
        name = str(entry.get("question_id", number))
        if name in found:
            raise EvalError(f"{path}: question_id {name} is given twice, expected one question for each")
        found[name] = Asked(name, texts[0], texts[1], label == "yes")
    return list(found.values())


def read_answers(path: Path, asked: Sequence[Asked], questions: Path) -> dict[str, str]:
    """question_id -> answer."""
    entries = _entries(path)
    by_id = "question_id" in entries[0]
    if not by_id and len(entries) != len(asked):
        raise EvalError(
            f"{path} has {len(entries)} answers without question_id, {questions} has {len(asked)} questions: expected as many, in the same "
            "order. Is it the file of these questions? Else give each answer its question_id"
        )
    known = {each.id: each for each in asked}
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        said = next((entry[name] for name in ANSWER if isinstance(entry.get(name), str)), None)
        if said is None or ("question_id" in entry) != by_id:
            expected = '{"question_id": ..., "answer": ...}' if by_id else '{"question": ..., "answer": ...}'
            raise EvalError(f"{path}: expected lines {expected}; answer {number} is {entry!s:.80}")
        name = str(entry["question_id"]) if by_id else asked[number - 1].id
        if name not in known:
            raise EvalError(f"{path}: question_id {name} is not among the questions of {questions}")
        if name in found:
            raise EvalError(f"{path}: question_id {name} has two answers, expected one for each question")
        question = entry.get("question")
        if isinstance(question, str) and question.strip().lower() != known[name].text.strip().lower():
            raise EvalError(f"{path}: answer {number} is to {question!r}, where {questions} asks {known[name].text!r}")
        found[name] = said
    return found


def _record(asked: Asked, answer: str, image: int) -> Record:
    said = yes_or_no(answer, asked.text)
    record: Record = {"i": image, "key": asked.image, "question_id": asked.id, "question": asked.text, "answer": answer}
    record |= {"truth": int(asked.truth), "said": None if said is None else int(said), "unparsed": float(said is None)}
    return record | _scored("", not says_no(answer), asked.truth) | _scored(" (parsed)", said, asked.truth)


def _scored(rule: str, said: bool | None, truth: bool) -> Record:
    yes = float(said is True)
    hit = yes * truth
    record: Record = {f"accuracy{rule}": float(said is truth), f"precision{rule}": hit, f"recall{rule}": hit, f"F1{rule}": 2 * hit}
    return record | {f"yes ratio{rule}": yes, f"yes{rule}": yes, f"yes + truth{rule}": yes + truth}


def _measures(rule: str, note: str) -> list[Measure]:
    return [
        Measure(f"accuracy{rule}", note),
        Measure(f"precision{rule}", "true among yes", weight=f"yes{rule}", missing="no answer is yes"),
        Measure(f"recall{rule}", "yes among true", weight="truth", missing="no question has the answer yes"),
        Measure(f"F1{rule}", "of yes", weight=f"yes + truth{rule}", missing="neither question nor answer is yes"),
        Measure(f"yes ratio{rule}", "answers that are yes", better="neither"),
    ]


def _entries(path: Path) -> list[Json]:
    """The objects of a file: one a line, or in a list."""
    text = read_text(path)
    found: list[Any] = []
    try:
        whole = json.loads(text)
        found = whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        for number, line in enumerate(text.split("\n"), 1):
            try:
                found += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise EvalError(f"{path}: line {number} is no JSON object ({error}); expected one object a line") from error
    if not found or not all(isinstance(entry, dict) for entry in found):
        raise EvalError(f"{path}: expected one JSON object a line; found {text!s:.80}")
    return found
