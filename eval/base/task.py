"""Tasks: questions put to any model that has the capability they need. One file each; `plan` lists what a data set allows.

A task is bound to the samples of one split. It answers in records, flat dicts with one line per question, in which every
measure is a number; a cell of the table is the mean of its measure over the records. So a new task writes `ask` and `chance`,
and gets resuming, intervals, controls and paired tests from the harness. What can only be computed when all answers are
there (a caption metric whose weights depend on all references) is added by `grade`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from data.sample import Sample
from eval.base.capabilities import Images
from eval.base.records import Record


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the table, named like the field of the records that it averages.

    With `weight` it is a ratio: the sum of its field over the sum of the field `weight`. With `whole` it is that function
    of all records that have its field (corpus BLEU, the area under a curve); `whole` must not depend on their order.
    """

    name: str
    note: str = ""
    weight: str | None = None
    whole: Callable[[Sequence[Record]], float] | None = None
    unit: str = "share"  # "share": between 0 and 1; "score": on a scale of its own
    better: str = "higher"  # "lower", or "neither": a yes-rate is no merit
    missing: str = ""  # why there is no number, where none of the records has the field


class Task(Protocol):
    name: ClassVar[str]  # rows of the table are grouped by it
    part: str  # "" or what tells apart two tasks of one name on one split
    split: str
    samples: Sequence[Sample]  # those there is something to ask about, in key order
    measures: Sequence[Measure]
    needs: ClassVar[type]  # one of the second half of eval.base.capabilities
    needed_method: ClassVar[str]  # how a user would call what is missing
    gallery: ClassVar[bool]  # whether every image meets every text, so that embeddings are preferred to pairwise scores

    def settings(self) -> dict[str, Any]:
        """Everything besides the samples that the answers depend on (prompts, classes, version): stored and hashed."""

    def texts(self) -> list[str]:
        """All texts that will be scored."""

    def ask(self, subject: Any, images: Images, rows: Sequence[int], /) -> list[list[Record]]:
        """Records for `samples[row]` of each row, whose picture is `images[row]`; `subject` is of type `needs`."""

    def chance(self) -> list[list[Record]]:
        """The expected records of one who cannot see: their mean is exactly chance. [] where there is no such thing."""


@runtime_checkable
class Graded(Protocol):
    """A task whose measures are computed from all answers together."""

    def grade(self, records: list[Record], /) -> list[Record]:
        """The same records with the fields of the measures added. Each still has its sample's number "i" and "key"."""
