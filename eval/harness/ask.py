"""Run a task on a model and its controls, and turn the records into table cells.

A `Variant` is a row of the table. Records stream to `<task>.<split>.<variant>.jsonl`; an interrupted evaluation resumes from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.adapters.naming import PromptedNames
from eval.adapters.rerank import SHORTLIST, ReRanked
from eval.adapters.scorers import Completions, Drawings, GeneratedAnswers, PairScorer, RankedAnswers, Subject
from eval.base.capabilities import Drawer
from eval.base.metrics import estimate, estimate_whole
from eval.base.records import Record, RecordFile
from eval.base.task import Compared, Fitted, Graded, Measure, Task
from eval.harness.controls import exchanged
from eval.harness.source import Source, spread, together
from eval.scenes.oracle import Oracle, has_truth

Json = dict[str, Any]
CONTROL_SAMPLES = 100  # enough to detect use of the image: a share of .3 has an interval of +-.09 (less with several questions per image)
# Samples of the main split and of each shift that a costly adapter is asked about.
PAIRED = 600, 200  # scores one image-text pair at a time: intervals of at most +-.04 and +-.07, less with several pairs per image
WRITTEN = 300, 150  # writes every answer: intervals of at most +-.06 and +-.08, less with several questions per image
PROMPTED = 100, 30  # reads several images per prompt: intervals of at most +-.10 and +-.18
CONTROL_PROMPTS = 30  # of the same: intervals of at most +-.18
CONTROL_DRAWINGS = 30  # images that an untrained model draws: its scores are near chance, where intervals are narrow
CONTROL_PAIRS = 14_000  # for controls and shifts: with the 432 classes of scenes, 32 images
OTHER_PAIRS = 8_000  # for the other adapter
ORACLE_SAMPLES = 100  # the oracle parses captions in Python, which is slow
RERANKED_PAIRS = 5_000  # pairs in all shortlists: 156 image queries and a caption of each, intervals of at most +-.08
PAIRS = 25_000  # maximum number of pairs in a gallery for models that score one pair at a time
ORACLE_PAIRS = 125_000
RANKED_SAMPLES = 100  # for models that need one forward pass per candidate answer
UNKNOWN = "the truth is known for the embedded data set only"
FEWEST = 30  # samples; with fewer the interval is meaningless


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is evaluated, and on which images: the model or a control. `subject` is None if it does not apply, for the reason `why_not`."""

    name: str
    subject: Subject | None
    identity: str  # identifies the subject, such as a hash of the weights; its change invalidates earlier records
    why_not: str = ""
    pictures: Literal["own", "shuffled", "blank"] = "own"
    other_adapter: bool = False  # use the model's second adapter, if it has one
    most: int | None = None  # maximum number of samples, evenly spaced
    most_pairs: int = PAIRS
    primary_only: bool = False  # skip the shifts
    beside: Subject | None = None  # the model that this control is compared with

    @property
    def slug(self) -> str:
        return self.name.split()[0]


def variants(model: Any, fresh: Any, source: Source, splits: Iterable[str], weights: str, batch_size: int) -> list[Variant]:
    """The variants for tasks on these splits: the model, the model through its other adapter, and the controls."""
    subject, beginner = Subject(model, batch_size), Subject(fresh, batch_size)
    samples = [sample for split in splits for sample in source.samples(split)]
    controls: Json = {"most": CONTROL_SAMPLES, "most_pairs": CONTROL_PAIRS, "primary_only": True}
    return [
        Variant(name="model", subject=subject, identity=weights),
        Variant(name="other adapter", subject=subject, identity=weights, other_adapter=True, most_pairs=OTHER_PAIRS),
        Variant(name="untrained", subject=beginner, identity=f"untrained {weights}", **controls),
        Variant(name="shuffled images", subject=subject, identity=weights, pictures="shuffled", **controls),
        Variant(name="blank images", subject=subject, identity=weights, pictures="blank", **controls),
        Variant(
            name="oracle",
            subject=Subject(Oracle(samples), batch_size=4096),
            identity="truth 3",
            most=ORACLE_SAMPLES,
            most_pairs=ORACLE_PAIRS,
            primary_only=True,
            beside=subject,
        )
        if has_truth(samples)
        else Variant(name="oracle", subject=None, identity="", why_not=UNKNOWN, primary_only=True),
    ]


def cells_of(
    task: Task,
    variant: Variant,
    source: Source,
    out: Path,
    data: str,
    batch_size: int,
    advance: Callable[[float], None],
    *,
    resample: bool = True,
) -> list[Json]:
    """One cell per measure of the task; none if the variant is not evaluated on it. Without `resample`, cells have no intervals."""
    if variant.primary_only and task.split in source.shifts:
        return []
    if variant.primary_only and task.gallery and task.part and not variant.beside:  # controls need one gallery
        return []
    able = variant.subject.able(task.needs, gallery=task.gallery) if variant.subject else []
    # It shows how much the adapter matters, for which one gallery of the main split is enough.
    if variant.other_adapter and (len(able) < 2 or task.part or task.split in source.shifts):
        return []
    adapter: Any = able[variant.other_adapter] if able else None
    name = f"by {adapter.adapter}" if variant.other_adapter else variant.name
    common = {"task": task.name, "split": task.split, "variant": name}
    rows = _rows(task, variant, adapter, shifted=task.split in source.shifts)
    status, reason = _obstacle(task, variant, adapter, rows)
    if status:
        blank = {"value": None, "status": status, "note": reason}
        return [common | {"metric": measure.name, "unit": measure.unit, "better": measure.better} | blank for measure in task.measures]
    path = out / f"{title(task)}.{task.split}.{variant.slug}.jsonl"
    records = answer(task, variant, adapter, rows, source, path, data, batch_size, advance)
    where = "" if task.split != source.primary or task.split == "test" else f"no test split: this is {task.split}; "
    about = {"adapter": adapter.adapter, "records": path.name}
    return [common | about | cell | {"note": where + cell["note"]} for cell in summarise(task.measures, records, resample=resample)]


def parts_of(tasks: Sequence[Task], everyone: Sequence[Variant], primary: str) -> list[list[tuple[Task, Variant]]]:
    """All tasks on all variants, in parts that share encodings, captions and drawings: those of one subject and its pictures on one split.
    The largest comes first: the model on the main split."""
    parts: dict[tuple[str, str, int], list[tuple[Task, Variant]]] = {}
    for variant in everyone:
        for task in sorted(tasks, key=lambda task: task.split != primary):
            key = (task.split, variant.pictures) if not isinstance(task, Fitted) else (primary, "own")
            parts.setdefault((*key, id(variant.subject)), []).append((task, variant))
    return list(parts.values())


def chance_cells(task: Task) -> list[Json]:
    """Cells of the chance control, which is computed exactly and has no interval."""
    records = [{"i": i} | record for i, group in enumerate(task.chance()) for record in group]
    measures = [measure for measure in task.measures if any(measure.name in record for record in records)]
    cells = summarise(measures, records, resample=False)
    return [{"task": task.name, "split": task.split, "variant": "chance", "adapter": "none"} | cell for cell in cells]


def control_cells(task: Task, source: Source) -> list[Json]:
    """Cells of the controls that a task has of its own, whichever model is evaluated."""
    made = task.controls(source) if isinstance(task, Compared) else {}
    common = {"task": task.name, "split": task.split, "adapter": "none"}
    cells: list[Json] = []
    for name, records in made.items():
        found, missing = ([], {"status": "not run", "note": records}) if isinstance(records, str) else (list(records), {})
        cells += [common | {"variant": name} | cell | missing for cell in summarise(task.measures, found)]
    return cells


def answer(
    task: Task,
    variant: Variant,
    adapter: Any,
    asked: Sequence[int],
    source: Source,
    path: Path,
    data: str,
    batch_size: int,
    advance: Callable[[float], None],
) -> list[Record]:
    """All records of one variant on one task. Missing records are computed in the same batches as without an interruption."""
    header = {"task": title(task), "split": task.split, "variant": variant.name, "samples": len(asked), "data": data}
    header |= {"settings": hashed(task.settings()), "subject": variant.identity, "adapter": adapter.adapter}
    file = RecordFile(path, header, [task.samples[row].key for row in asked], batch_size)
    advance(file.answered)
    if file.finished:
        return file.done
    images = [sample.image for sample in task.samples]
    if variant.pictures == "shuffled":
        images = [images[other] for other in exchanged(task.samples)]
    if variant.pictures == "blank":
        images = [np.full_like(images[0], 127)] * len(images)
    # All images and texts, whichever are asked: in other batches, and so after an interruption, numbers would be rounded differently.
    # Drawing prompts are the first captions; only those of the selected samples are drawn.
    texts = [task.samples[row].captions[0] for row in asked] if task.needs is Drawer else task.texts()
    adapter.prepare(images if variant.pictures == "blank" else [sample.image for sample in source.samples(task.split)], texts)
    for first in range(file.answered, len(asked), batch_size):
        rows = asked[first : first + batch_size]
        answers = task.ask(adapter, images, rows)
        file.append(
            [
                {"i": first + offset, "key": task.samples[row].key} | record
                for offset, (row, records) in enumerate(zip(rows, answers, strict=True))
                for record in records
            ]
        )
        advance(len(rows))
    file.finish(task.grade(file.done) if isinstance(task, Graded) else None)
    return file.done


def summarise(measures: Sequence[Measure], records: Sequence[Record], *, resample: bool = True) -> list[Json]:
    """One cell per measure: the mean of its field with a bootstrap interval over samples (records of a sample stay together)."""
    return [{"metric": each.name, "unit": each.unit, "better": each.better} | _summary(each, records, resample) for each in measures]


def _summary(measure: Measure, records: Sequence[Record], resample: bool) -> Json:
    having = [record for record in records if measure.name in record]
    if not having:
        return {"value": None, "status": "not run", "note": measure.missing or "none of the samples asked has one"}
    if measure.whole:
        found = estimate_whole(measure.whole, having, resample=resample)
        return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "note": measure.note, "field": ""}
    totals: dict[int, float] = {}
    counts: dict[int, float] = {}
    for record in having:
        totals[record["i"]] = totals.get(record["i"], 0.0) + record[measure.name]
        counts[record["i"]] = counts.get(record["i"], 0.0) + (record[measure.weight] if measure.weight else 1.0)
    if not any(counts.values()):
        return {"value": None, "status": "not run", "note": measure.missing or "none of the samples asked has one"}
    found = estimate(list(totals.values()), list(counts.values()), resample=resample)
    cell = {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "note": measure.note}
    return cell | {"weight": measure.weight} if measure.weight else cell


def _rows(task: Task, variant: Variant, adapter: Any, *, shifted: bool) -> list[int]:
    """Indices of the samples to evaluate: fewer for controls and for models that score one pair at a time."""
    most = variant.most
    limits = ((PairScorer, PAIRED), (GeneratedAnswers, WRITTEN), (Completions | PromptedNames, PROMPTED))
    for kind, (main, shift) in () if task.gallery else limits:
        if isinstance(adapter, kind):
            most = min(most or len(task.samples), shift if shifted else main)
    if task.gallery and isinstance(adapter, PairScorer):
        texts = getattr(task, "prompts", None) or task.texts()  # one prompt per class is scored
        most = min(most or len(task.samples), (CONTROL_PAIRS if shifted else variant.most_pairs) // max(1, len(texts)))
    if isinstance(adapter, ReRanked):
        most = min(most or len(task.samples), RERANKED_PAIRS // (2 * SHORTLIST))
    if isinstance(adapter, Completions | PromptedNames) and variant.primary_only:
        most = min(most or len(task.samples), CONTROL_PROMPTS)
    if isinstance(adapter, Drawings) and variant.primary_only and not variant.beside:
        most = min(most or len(task.samples), CONTROL_DRAWINGS)
    if isinstance(adapter, RankedAnswers) and adapter.costly:
        most = min(most or len(task.samples), RANKED_SAMPLES)
    return spread(list(range(len(task.samples))), most)


def _obstacle(task: Task, variant: Variant, adapter: Any, rows: Sequence[int]) -> tuple[str, str]:
    """The status and reason if the task cannot be evaluated; otherwise ("", "")."""
    if variant.subject is None:
        return "n/a", variant.why_not
    if adapter is None:
        return "n/a", f"needs {task.needed_method}"
    if variant.pictures != "own" and task.needs is Drawer:
        return "n/a", "the task shows the model no picture"
    if variant.beside and not variant.beside.able(task.needs):
        return "not run", f"no number of the model to compare with ({task.needed_method} is missing)"
    if len(rows) < min(FEWEST, len(task.samples)):
        return "not run", f"{len(task.samples)} images x {len(task.texts())} texts are too many to score pair by pair"
    if variant.pictures == "shuffled" and len(together(task.samples)) < 2:
        return "n/a", "a single picture cannot be shuffled"
    return "", ""


def title(task: Task) -> str:
    return "-".join(part for part in (task.name, task.part) if part)


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
