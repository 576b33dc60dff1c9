"""Tasks: questions put to any model that has the capability they need. One file each; `plan` lists what a data set allows.

A task is bound to the samples of one split. It answers in records, flat dicts with one line per question, in which every
measure is a number; a cell of the table is the mean of its measure over the records. So a new task writes `ask` and `blind`,
and gets resuming, intervals, controls and paired tests from the harness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from data.sample import Sample
from eval.capabilities import Images
from eval.records import Record


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the table, named like the field of the records that it averages, weighted by the field `weight` if any."""

    name: str
    note: str = ""
    weight: str | None = None


class Task(Protocol):
    name: ClassVar[str]  # rows of the table are grouped by it
    part: str  # "" or what tells apart two tasks of one name on one split
    split: str
    samples: Sequence[Sample]  # those there is something to ask about, in key order
    measures: Sequence[Measure]
    needs: ClassVar[type]  # Scorer or Features
    needed_method: ClassVar[str]  # how a user would call what is missing
    pairwise: bool  # whether it is affordable for a scorer that must look at every pair

    def settings(self) -> dict[str, Any]:
        """Everything besides the samples that the answers depend on (prompts, classes, version): stored and hashed."""

    def texts(self) -> list[str]:
        """All texts that will be scored."""

    def ask(self, subject: Any, images: Images, rows: Sequence[int], /) -> list[list[Record]]:
        """Records for `samples[row]` of each row, whose picture is `images[row]`; `subject` is of type `needs`."""

    def blind(self) -> list[list[Record]]:
        """The expected records of one who cannot see: their mean is exactly chance."""


def plan(source: Any) -> list[Task]:
    """Every task that the data of a `Source` allows."""
    from eval.tasks import foils, probe, retrieval, zeroshot

    return [*zeroshot.plan(source), *retrieval.plan(source), *foils.plan(source), *probe.plan(source)]
