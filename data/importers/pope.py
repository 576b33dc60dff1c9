"""POPE (Li et al. 2023), or files in its format: questions about present and absent objects. Used by the task "pope"."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data.importers.entries import read_entries, strings
from data.importers.questions import Asked, write_questions
from data.sample import Question

FIELDS = ("image", "text", "label")
KINDS = ("random", "popular", "adversarial")


def import_pope(
    *,
    questions: tuple[Path, ...],
    out: Path,
    split: str = "test",
    images: Path | None = None,
    onto: Path | None = None,
    size: int | None = None,
) -> None:
    """All of POPE's files, one sample per picture.

    Args:
        questions: files such as coco_pope_random.json with lines of {"question_id", "image", "text", "label"}; the kind of
            its questions is the end of a file's name.
        out: data set folder to write, such as .data/pope.
        split: name of the split to write.
        images: folder of the pictures: COCO's val2014.
        onto: instead of images, a data set imported before: its split of the same name.
        size: shrink images so that the shorter side has this many pixels.
    """
    dropped: Counter[str] = Counter()
    asked: dict[str, Asked] = {}
    for path in questions:
        kind = next((kind for kind in KINDS if path.stem.endswith(kind)), path.stem)
        for entry in read_entries(path, dropped):
            texts = strings(entry, FIELDS)
            label = texts[2].strip().lower() if texts else ""
            if not texts:
                dropped[f"entry without {', '.join(FIELDS)}"] += 1
            elif label not in ("yes", "no"):
                dropped["label that is neither yes nor no"] += 1
            else:
                file, text, _ = texts
                asked.setdefault(file, Asked(file)).questions.append(Question(text, label, f"pope-{kind}"))
    write_questions(list(asked.values()), images=images, onto=onto, out=out, split=split, size=size, dropped=dropped)
