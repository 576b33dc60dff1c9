"""POPE's answers (Li et al. 2023, arXiv:2305.10355), in the files of its repository (github.com/AoiDragon/POPE).

questions  {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?", "label": "yes"}
answers    {"question": "is there a person in the image?", "answer": "Yes, there is."}

Both have one object per line. Answers belong to the questions of the same line, or by "question_id" where they have it; the answer can also
be called "text". POPE has three files of questions (random, popular, adversarial), and the ids of each begin at 1. The answers to all three
can be in one file, each with the "category" of its questions, or with their text ("question" or "prompt"): in blocks, in any order of
the files. `accuracy`, `precision`, `recall`, `F1` and `yes ratio` are those of the repository's evaluate.py, which takes an answer
for no if its first sentence has one of the words "No", "no" and "not", and for yes otherwise. The measures called "parsed" read the same
answers by eval/base/yesno.py: one that is neither yes nor no is wrong, and no yes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.importers.entries import strings
from data.importers.pope import KINDS
from data.importers.write import read_text
from eval import EvalError
from eval.base.records import Record
from eval.base.task import Measure
from eval.base.yesno import yes_or_no
from eval.harness.ask import summarise

Json = dict[str, Any]
ANSWER = ("answer", "text")
SEVERAL = "For answers to several of POPE's files, whose ids all begin at 1, name all of these files"


@dataclass(frozen=True)
class Asked:
    id: str
    image: str
    text: str
    truth: bool


def score(answers: Path, *questions: Path, subset: bool = False) -> tuple[list[Record], list[Record]]:
    """Cells, and one record per question; of several files of questions, apart. Every question must have its answer, unless `subset`.
    Raises EvalError for files that are not in these formats or do not belong together."""
    asked = dict(zip(_names(questions), map(read_questions, questions), strict=True))
    entries = _entries(answers)
    parts = _parts(answers, entries, asked) if len(questions) > 1 else dict.fromkeys(asked, entries)
    cells: list[Record] = []
    records: list[Record] = []
    for (name, each_file), path in zip(asked.items(), questions, strict=True):
        found = _scored_file(answers, parts[name], each_file, path, subset=subset)
        summary = summarise(MEASURES, found)
        records += [{"questions": name} | record for record in found] if len(questions) > 1 else found
        cells += [cell | {"metric": f"{name}: {cell['metric']}"} for cell in summary] if len(questions) > 1 else summary
    return cells, records


def _scored_file(answers: Path, entries: Sequence[Json], asked: Sequence[Asked], path: Path, *, subset: bool) -> list[Record]:
    found = _matched(answers, entries, asked, path)
    if (missing := [each for each in asked if each.id not in found]) and not subset:
        raise EvalError(
            f"{answers}: {len(missing)} of {len(asked)} questions have no answer, the first is question_id {missing[0].id}; "
            f"add them, or score those that have one with --subset. The questions are those of {path}"
        )
    images: dict[str, int] = {}
    return [_record(each, found[each.id], images.setdefault(each.image, len(images))) for each in asked if each.id in found]


def _names(questions: Sequence[Path]) -> list[str]:
    """coco_pope_random.json -> random, unless two files are called so."""
    kinds = [next((kind for kind in KINDS if path.stem.endswith(kind)), path.stem) for path in questions]
    names = kinds if len(set(kinds)) == len(kinds) else [path.stem for path in questions]
    if len(set(names)) < len(names):
        raise EvalError(f"{', '.join(map(str, questions))}: expected files of questions with different names")
    return names


def _parts(answers: Path, entries: Sequence[Json], asked: Mapping[str, Sequence[Asked]]) -> Mapping[str, Sequence[Json]]:
    """The answers to each file of questions: by their category; by ids, if none is in two files; or block by block, by their text."""
    parts: dict[str, list[Json]] = {name: [] for name in asked}
    if all("category" in entry for entry in entries):
        for number, entry in enumerate(entries, 1):
            if entry["category"] not in parts:
                raise EvalError(f"{answers}: answer {number} is of category {entry['category']!r}, expected one of {', '.join(parts)}")
            parts[entry["category"]].append(entry)
        return parts
    homes = [[name for name in asked if str(entry.get("question_id")) in {each.id for each in asked[name]}] for entry in entries]
    if all(len(home) == 1 for home in homes):
        for entry, (name,) in zip(entries, homes, strict=True):
            parts[name].append(entry)
        return parts
    found: dict[str, Sequence[Json]] = {}
    begin = 0
    while begin < len(entries):
        blocks = {name: _block(entries[begin:], len(asked[name])) for name in asked if name not in found}
        fits = [name for name, block in blocks.items() if _fits(block, asked[name])]
        if len(fits) != 1:
            raise EvalError(
                f"{answers}: it is not clear which questions ({', '.join(asked)}) the answers from number {begin + 1} on belong to. "
                'Expected the answers to each file in one block, with the text of the questions ("question"), or each with "category": '
                f"{' or '.join(map(repr, asked))}. Or score each file of questions with a file of its answers"
            )
        found[fits[0]] = blocks[fits[0]]
        begin += len(blocks[fits[0]])
    return {name: found.get(name, []) for name in asked}


def _block(entries: Sequence[Json], size: int) -> Sequence[Json]:
    """The next answers: until an id comes again; of answers without ids the first `size`."""
    if "question_id" not in entries[0]:
        return entries[:size]
    seen: set[str] = set()
    for place, entry in enumerate(entries):
        if (name := str(entry.get("question_id"))) in seen:
            return entries[:place]
        seen.add(name)
    return entries


def _fits(block: Sequence[Json], asked: Sequence[Asked]) -> bool:
    by_id = {each.id: each for each in asked}
    by_place = dict(enumerate(asked))
    for place, entry in enumerate(block):
        each = by_id.get(str(entry["question_id"])) if "question_id" in entry else by_place.get(place)
        if each is None or not _same_question(entry, each):
            return False
    return True


def _same_question(entry: Json, asked: Asked) -> bool | None:
    """None if the answer does not include its question. A prompt can continue after the question."""
    text = asked.text.strip().lower()
    if isinstance(question := entry.get("question"), str):
        return question.strip().lower() == text
    return text in prompt.lower() if isinstance(prompt := entry.get("prompt"), str) else None


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


def _matched(answers: Path, entries: Sequence[Json], asked: Sequence[Asked], questions: Path) -> dict[str, str]:
    """question_id -> answer."""
    by_id = bool(entries) and "question_id" in entries[0]
    if entries and not by_id and len(entries) != len(asked):
        raise EvalError(
            f"{answers} has {len(entries)} answers without question_id, {questions} has {len(asked)} questions: expected as many, in "
            f"the same order. Is it the file of these questions? Else give each answer its question_id. {SEVERAL}"
        )
    known = {each.id: each for each in asked}
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        said = next((entry[name] for name in ANSWER if isinstance(entry.get(name), str)), None)
        if said is None or ("question_id" in entry) != by_id:
            expected = '{"question_id": ..., "answer": ...}' if by_id else '{"question": ..., "answer": ...}'
            raise EvalError(f"{answers}: expected lines {expected}; answer {number} is {entry!s:.80}")
        name = str(entry["question_id"]) if by_id else asked[number - 1].id
        if name not in known:
            raise EvalError(
                f"{answers}: question_id {name} is not among the questions of {questions}; without question_id, answers belong to the "
                "questions of the same line"
            )
        if name in found:
            raise EvalError(f"{answers}: question_id {name} has two answers, expected one for each question. {SEVERAL}")
        if _same_question(entry, known[name]) is False:
            told = entry.get("question", entry.get("prompt"))
            raise EvalError(f"{answers}: answer {number} is to {told!r}, where {questions} asks {known[name].text!r}")
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


MEASURES = [
    *_measures("", 'published rule: without "no" or "not" an answer is a yes'),
    *_measures(" (parsed)", ""),
    Measure("unparsed", "answers that are neither yes nor no", better="lower"),
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
                raise EvalError(f"{path}: line {number} is not a JSON object ({error}); expected one object per line") from error
    if not found or not all(isinstance(entry, dict) for entry in found):
        raise EvalError(f"{path}: expected one JSON object per line; found {text!s:.80}")
    return found
