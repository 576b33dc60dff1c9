"""VQA's answers (Goyal et al. 2017, arXiv:1612.00837), in the files of its evaluation server (github.com/GT-Vision-Lab/VQA).

results      [{"question_id": 1, "answer": "red"}, ...]
annotations  {"annotations": [{"question_id": 1, "image_id": 9, "question_type": "what color", "answer_type": "other",
              "answers": [{"answer": "red", "answer_id": 1, ...}, ...]}, ...]}

The accuracy is that of PythonEvaluationTools/vqaEvaluation/vqaEval.py: `published_accuracy` in eval/base/answers.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval import EvalError
from eval.base.answers import published_accuracy
from eval.base.given import content_of, expect
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.ask import summarise

Json = dict[str, Any]


def score(results: Path, annotations: Path, *, subset: bool = False, question_types: bool = False) -> tuple[list[Record], list[Record]]:
    """Cells (overall, per type of answer and, if asked for, of question), and one record per question. Every annotated question must
    have its answer, unless `subset`. Raises EvalError for files that are not in these formats or do not belong together."""
    said, annotated = read_results(results), read_annotations(annotations)
    if unknown := [name for name in said if name not in annotated]:
        raise EvalError(f"{results}: question_id {unknown[0]} and {len(unknown) - 1} more are not annotated in {annotations}")
    if (missing := [name for name in annotated if name not in said]) and not subset:
        raise EvalError(
            f"{results}: {len(missing)} of {len(annotated)} questions have no answer, the first is question_id {missing[0]}; "
            "add them, or score those that have one with --subset"
        )
    images: dict[str, int] = {}
    records = []
    for name, about in annotated.items():
        if name in said:
            image = str(about.get("image_id", name))
            records.append(_record(about, said[name], image, images.setdefault(image, len(images))))
    kinds = sorted({str(about["answer_type"]) for about in annotated.values() if "answer_type" in about})
    measures = [Measure("accuracy", f"{len(records)} questions"), *(Measure(kind, "answer type") for kind in kinds)]
    if question_types:
        asked = sorted({str(about["question_type"]) for about in annotated.values() if "question_type" in about})
        measures += [Measure(_question_type(kind), "question type") for kind in asked]
    return summarise(measures, records), records


def read_results(path: Path) -> dict[str, str]:
    """question_id -> answer."""
    entries = content_of(path)
    expect(isinstance(entries, list) and bool(entries), path, 'a list of {"question_id": ..., "answer": ...}', entries)
    found: dict[str, str] = {}
    for entry in entries:
        good = isinstance(entry, dict) and isinstance(entry.get("question_id"), int | str) and isinstance(entry.get("answer"), str)
        expect(good, path, 'entries {"question_id": number, "answer": string}', entry)
        name = str(entry["question_id"])
        if name in found:
            raise EvalError(f"{path}: question_id {name} has two answers, expected one for each question")
        found[name] = entry["answer"]
    return found


def read_annotations(path: Path) -> dict[str, Json]:
    """question_id -> its annotation, with "answers" as strings."""
    content = content_of(path)
    entries = content.get("annotations") if isinstance(content, dict) else None
    expect(isinstance(entries, list) and bool(entries), path, 'an object with a list "annotations"', content)
    found: dict[str, Json] = {}
    for entry in entries or []:
        expect(isinstance(entry, dict) and isinstance(entry.get("question_id"), int | str), path, 'annotations with a "question_id"', entry)
        listed = entry.get("answers")
        given = [each.get("answer") if isinstance(each, dict) else each for each in listed] if isinstance(listed, list) else []
        expect(
            bool(given) and all(isinstance(each, str) for each in given), path, 'annotations with "answers": [{"answer": ...}, ...]', entry
        )
        name = str(entry["question_id"])
        if name in found:
            raise EvalError(f"{path}: question_id {name} is annotated twice, expected once")
        found[name] = entry | {"answers": given}
    return found


def _record(about: Json, said: str, image: str, number: int) -> Record:
    right = published_accuracy(said, about["answers"])
    record: Record = {"i": number, "key": image, "question_id": about["question_id"], "said": said, "truth": about["answers"]}
    kinds = [str(about["answer_type"])] if "answer_type" in about else []
    kinds += [_question_type(str(about["question_type"]))] if "question_type" in about else []
    return record | dict.fromkeys(["accuracy", *kinds], right)


def _question_type(kind: str) -> str:
    """A name of its own: "other" is also a type of answers."""
    return f'"{kind} ..."'
