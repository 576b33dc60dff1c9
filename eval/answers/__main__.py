"""Score answers written elsewhere: `python -m eval.answers pope answers.jsonl coco_pope_random.json`,
`python -m eval.answers vqa results.json v2_mscoco_val2014_annotations.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from data.files import write_text
from data.shards import DataError
from eval import EvalError
from eval.answers import pope as pope_files
from eval.answers import vqa as vqa_files
from eval.base.records import Record
from eval.harness.screen import show


def pope(
    answers: Annotated[Path, tyro.conf.Positional],
    questions: Annotated[tuple[Path, ...], tyro.conf.Positional],
    subset: bool = False,
    out: Path | None = None,
) -> None:
    """Score answers to POPE's questions as its evaluate.py does, and with every answer parsed.

    Args:
        answers: a line {"question": ..., "answer": ...} for each question, in the same order or with its question_id.
        questions: such as coco_pope_random.json; or all three files, if the answers to them are in one file, with "category" or
            "question" in each.
        subset: score the questions that have an answer, though others have none (answers with a question_id).
        out: also write every question with its answer and verdicts here, one JSON line each.
    """
    if not questions:
        raise EvalError("expected one or more files of POPE's questions after the answers, such as coco_pope_random.json")
    cells, records = pope_files.score(answers, *questions, subset=subset)
    _report(cells, records, out)


def vqa(
    results: Annotated[Path, tyro.conf.Positional],
    annotations: Annotated[Path, tyro.conf.Positional],
    question_types: bool = False,
    subset: bool = False,
    out: Path | None = None,
) -> None:
    """Score a VQA results file as the official evaluation does: overall and for each type of answer.

    Args:
        results: [{"question_id": 1, "answer": "red"}, ...].
        annotations: such as v2_mscoco_val2014_annotations.json.
        question_types: also for each type of question.
        subset: score the questions that have an answer, though others have none.
        out: also write every question with its answers and accuracy here, one JSON line each.
    """
    cells, records = vqa_files.score(results, annotations, subset=subset, question_types=question_types)
    _report(cells, records, out)


def _report(cells: Sequence[Record], records: Sequence[Record], out: Path | None) -> None:
    show(cells)
    if out:
        write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def main(args: Sequence[str] | None = None) -> None:
    try:
        tyro.extras.subcommand_cli_from_dict({"pope": pope, "vqa": vqa}, prog="python -m eval.answers", description=__doc__, args=args)
    except (EvalError, DataError, OSError) as error:
        sys.exit(f"answers: {error}")


if __name__ == "__main__":
    main()
