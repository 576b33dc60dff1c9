"""The contract of a task: questions for any model with the required capability. One file each in eval/tasks/.

A task is bound to the samples of one split. It returns records, flat dicts with one line per question, in which every
measure is a number; a cell of the table is the mean of its measure over the records. So a new task writes `ask` and `chance`,
and gets resuming, intervals, controls and paired tests from the harness. Metrics that need all answers at once (a caption
metric whose weights depend on all references) are added by `grade`.
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
    better: str = "higher"  # "lower", or "neither", as for a yes-rate
    missing: str = ""  # why there is no number when no record has the field


class Task(Protocol):
    name: ClassVar[str]  # rows of the table are grouped by it
    part: str  # distinguishes two tasks of one name on one split; "" otherwise
    split: str
    samples: Sequence[Sample]  # only samples that the task can use, in key order
    measures: Sequence[Measure]
    needs: ClassVar[type]  # one of the second half of eval.base.capabilities
    needed_method: ClassVar[str]  # names the missing methods in "n/a" notes
    gallery: ClassVar[bool]  # every image is compared with every text, so embeddings are preferred to pairwise scores

    def settings(self) -> dict[str, Any]:
        """Everything except the samples that the answers depend on (prompts, classes, version): stored and hashed."""

    def texts(self) -> list[str]:
        """All texts that will be scored."""

    def ask(self, subject: Any, images: Images, rows: Sequence[int], /) -> list[list[Record]]:
        """A list of records for each row: `samples[row]`, shown `images[row]`; `subject` is of type `needs`."""

    def chance(self) -> list[list[Record]]:
        """The expected records of a model that cannot see the image: their mean is exactly chance. [] where chance is undefined."""


@runtime_checkable
class FallsBelowChance(Protocol):
    """A task in which a working model can score below chance. Reports show this reason with the number, unless `Model.notes` has one."""

    below_chance: ClassVar[str]


@runtime_checkable
class Graded(Protocol):
    """A task whose measures are computed from all answers together."""

    def grade(self, records: list[Record], /) -> list[Record]:
        """The same records with the measures' fields added. Each keeps its sample's number "i" and "key"."""


@runtime_checkable
class Shared(Protocol):
    """A task that needs something that all processes of an evaluation can share, such as a program that takes long to load."""

    def begin(self) -> None:
        """Start it. Called before the work is shared, if the model can do the task."""


@runtime_checkable
class Fitted(Protocol):
    """A task that fits something to training samples, once for all splits: the same process answers them all."""

    fits: Any


@runtime_checkable
class Compared(Protocol):
    """A task with controls of its own, which answer without the evaluated model."""

    def controls(self, source: Any, /) -> dict[str, list[Record] | str]:
        """Name -> graded records, by an `eval.harness.source.Source`, or the reason why the data allow none. Empty where the task has no
        controls for these data."""
