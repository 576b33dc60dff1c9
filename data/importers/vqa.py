"""VQAv2 (Goyal et al. 2017), or files in its format (VQA, OK-VQA): questions and the answers of ten annotators each."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from data.importers.questions import Asked, write_questions
from data.importers.write import read_text
from data.sample import Question
from data.shards import DataError

FILE = "COCO_{subset}_{id:012d}.jpg"


def import_vqa(
    *,
    questions: Path,
    annotations: Path,
    out: Path,
    split: str,
    images: Path | None = None,
    onto: Path | None = None,
    file: str = FILE,
    size: int | None = None,
) -> None:
    """VQAv2's question and annotation json.

    Args:
        questions: such as v2_OpenEnded_mscoco_val2014_questions.json.
        annotations: such as v2_mscoco_val2014_annotations.json.
        out: data set folder to write, such as .data/vqa.
        split: name of the split to write: train, val or test.
        images: folder of the pictures.
        onto: instead of images, a data set that was imported with COCO's captions: its split of the same name.
        file: how the pictures are called; subset is the questions' data_subtype, id their image_id. {id:012d}.jpg for COCO 2017.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    asked = questions_of(_read(questions, "questions"), annotations, file, dropped)
    write_questions(asked, images=images, onto=onto, out=out, split=split, size=size, dropped=dropped)


def questions_of(content: dict[str, Any], annotations: Path, file: str, dropped: Counter[str]) -> list[Asked]:
    """The questions of each image with the answers in the file `annotations`."""
    return list(_asked(content, _read(annotations, "annotations")["annotations"], file, dropped).values())


def _asked(content: dict[str, Any], annotations: list[Any], file: str, dropped: Counter[str]) -> dict[int, Asked]:
    """By image, in the order of the questions. Those without annotated answers (as of the test sets) are left out."""
    answered = _answered(annotations, dropped)
    asked: dict[int, Asked] = {}
    for entry in content["questions"]:
        entry = entry if isinstance(entry, dict) else {}
        number, image, text = entry.get("question_id"), entry.get("image_id"), entry.get("question")
        if not isinstance(number, int) or not isinstance(image, int) or not isinstance(text, str) or not text.strip():
            dropped["question without question_id, image_id or question"] += 1
        elif number not in answered:
            dropped["question without annotated answers"] += 1
        else:
            kind, most, answers = answered.pop(number)
            named = _named(file, subset=content.get("data_subtype", ""), id=image)
            asked.setdefault(image, Asked(named, image)).questions.append(Question(text, most, kind, answers))
    if answered:
        dropped["annotation of an unknown question"] += len(answered)
    return asked


def _named(file: str, **fields: Any) -> str:
    try:
        return file.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"--file {file!r} ({error!r}): expected a name with {{id}}, and {{subset}} where it has one, such as {FILE}"
        ) from error


def _answered(annotations: list[Any], dropped: Counter[str]) -> dict[int, tuple[str, str, tuple[str, ...]]]:
    """By question: the type of the answer ("yes/no", "number", "other"), what most annotators say, and what each says."""
    found: dict[int, tuple[str, str, tuple[str, ...]]] = {}
    for entry in annotations:
        entry = entry if isinstance(entry, dict) else {}
        number, listed = entry.get("question_id"), entry.get("answers")
        given = [each.get("answer") if isinstance(each, dict) else each for each in listed] if isinstance(listed, list) else []
        answers = tuple(answer for answer in given if isinstance(answer, str))
        if not isinstance(number, int) or not answers:
            dropped["annotation without question_id or answers"] += 1
        elif number in found:
            dropped["annotation of a question annotated before"] += 1
        else:
            most = entry.get("multiple_choice_answer")
            kind = entry.get("answer_type")
            usual = most if isinstance(most, str) else Counter(answers).most_common(1)[0][0]
            found[number] = (kind if isinstance(kind, str) else "open", usual, answers)
    return found


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
        if not isinstance(content[name], list):
            raise TypeError(f"{name!r} is not a list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{path} is not a {name} file of VQA ({error!r}): expected {{"{name}": [...]}}') from error
    return dict(content)
