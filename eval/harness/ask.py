"""Putting a task to a model and to its controls: who answers, about which pictures, with what came out of it.

A `Variant` is a row of the table. Answers stream to `<task>.<split>.<variant>.jsonl`; an interrupted evaluation goes on there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.adapters.rerank import SHORTLIST, ReRanked
from eval.adapters.scorers import PairScorer, RankedAnswers, Subject
from eval.base.capabilities import Drawer
from eval.base.metrics import estimate, estimate_whole
from eval.base.records import Record, RecordFile
from eval.base.task import Graded, Measure, Task
from eval.harness.controls import exchanged
from eval.harness.source import Source, spread, together
from eval.scenes.oracle import Oracle, has_truth

Json = dict[str, Any]
CONTROL_SAMPLES = 100  # a share of .3 has an interval of +-.09, narrower where a picture has several questions: it tells chance from sight
PAIRED_SAMPLES, PAIRED_SHIFTED_SAMPLES = (
    1000,
    500,
)  # by a score of pairs, which looks at every text with every picture: +-.03, +-.04 at most
CONTROL_PAIRS = 14_000
ORACLE_SAMPLES = 100  # reads captions in Python
RERANKED_PAIRS = 25_000  # of shortlists: some 260 pictures as queries, and all of their captions
PAIRS = 25_000  # in a gallery, what a scorer that looks at every pair is asked at most
ORACLE_PAIRS = 125_000
RANKED_SAMPLES = 100  # by a model that has to look at every candidate answer
UNKNOWN = "the whole truth is known for the embedded data set only"
FEWEST = 30  # samples; below, an interval says nothing


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Who answers, and about which pictures. `subject` None: nobody can, and `why_not` says so."""

    name: str
    subject: Subject | None
    identity: str  # changes when the answers would: a hash of the weights, say
    why_not: str = ""
    pictures: Literal["own", "shuffled", "blank"] = "own"
    other_adapter: bool = False  # ask through the model's second adapter, where it has one
    most: int | None = None  # ask about at most this many samples, evenly spread
    most_pairs: int = PAIRS
    primary_only: bool = False  # the shifts do without
    beside: Subject | None = None  # the model that it is shown beside

    @property
    def slug(self) -> str:
        return self.name.split()[0]


def variants(model: Any, fresh: Any, source: Source, splits: Iterable[str], weights: str, batch_size: int) -> list[Variant]:
    """The model, the same through its other adapter, and the controls that keep the table honest, for tasks on these splits."""
    subject, beginner = Subject(model, batch_size), Subject(fresh, batch_size)
    samples = [sample for split in splits for sample in source.samples(split)]
    controls: Json = {"most": CONTROL_SAMPLES, "most_pairs": CONTROL_PAIRS, "primary_only": True}
    return [
        Variant(name="model", subject=subject, identity=weights),
        Variant(name="other adapter", subject=subject, identity=weights, other_adapter=True),
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
    task: Task, variant: Variant, source: Source, out: Path, data: str, batch_size: int, advance: Callable[[float], None]
) -> list[Json]:
    """A cell for each measure of the task; none where the variant has nothing to add."""
    if variant.primary_only and task.split in source.shifts:
        return []
    able = variant.subject.able(task.needs, gallery=task.gallery) if variant.subject else []
    if variant.other_adapter and (len(able) < 2 or (task.gallery and task.split in source.shifts)):
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
    return [common | about | cell | {"note": where + cell["note"]} for cell in summarise(task.measures, records)]


def chance_cells(task: Task) -> list[Json]:
    """Exact, so the interval has no width."""
    records = [{"i": i} | record for i, group in enumerate(task.chance()) for record in group]
    measures = [measure for measure in task.measures if any(measure.name in record for record in records)]
    cells = summarise(measures, records, resample=False)
    return [{"task": task.name, "split": task.split, "variant": "chance", "adapter": "none"} | cell for cell in cells]


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
    """All records of one task by one variant: those on disk, and the rest asked now, in batches that do not depend on
    where an earlier attempt was interrupted."""
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
    # A text to be drawn is a sample's first caption; those that nobody is asked about are not drawn.
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
    """A cell per measure: the mean of its field, with a bootstrap over samples (a sample's records stay together)."""
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
    """Which samples are asked about: fewer for controls, and for a scorer that has to look at every pair."""
    most = variant.most
    if isinstance(adapter, PairScorer) and not task.gallery:
        most = min(most or len(task.samples), PAIRED_SHIFTED_SAMPLES if shifted else PAIRED_SAMPLES)
    if task.gallery and isinstance(adapter, PairScorer):
        texts = getattr(task, "prompts", None) or task.texts()  # of a class it reads one
        most = min(most or len(task.samples), variant.most_pairs // max(1, len(texts)))
    if isinstance(adapter, ReRanked):
        most = min(most or len(task.samples), RERANKED_PAIRS // SHORTLIST * len(task.samples) // (len(task.samples) + len(task.texts())))
    if isinstance(adapter, RankedAnswers) and adapter.costly:
        most = min(most or len(task.samples), RANKED_SAMPLES)
    return spread(list(range(len(task.samples))), most)


def _obstacle(task: Task, variant: Variant, adapter: Any, rows: Sequence[int]) -> tuple[str, str]:
    """Why there can be no number: a status and its reason, ("", "") when there can be one."""
    if variant.subject is None:
        return "n/a", variant.why_not
    if adapter is None:
        return "n/a", f"needs {task.needed_method}"
    if variant.pictures != "own" and task.needs is Drawer:
        return "n/a", "the task shows no picture that could be exchanged"
    if variant.beside and not variant.beside.able(task.needs):
        return "not run", f"the model cannot: there is nothing to show this beside ({task.needed_method} is missing)"
    if len(rows) < min(FEWEST, len(task.samples)):
        return "not run", f"{len(task.samples)} images x {len(task.texts())} texts are too many to score pair by pair"
    if variant.pictures == "shuffled" and len(together(task.samples)) < 2:
        return "n/a", "one picture cannot be exchanged for another"
    return "", ""


def title(task: Task) -> str:
    return "-".join(part for part in (task.name, task.part) if part)


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
