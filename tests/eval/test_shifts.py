"""Robustness is read off every task: what is asked of the test split is asked of both shifts, in the same measures."""

from __future__ import annotations

from collections import defaultdict

import pytest

from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.base.task import Task
from eval.harness.source import Source, in_memory
from eval.tasks import plan

# Tasks that are not asked of a shift, and why.
EXCEPTIONS = {
    ("winoground", ""): {"pairs"},  # a split of its own
    ("drawing", ""): {"test", "heldout"},  # prompts come from captions, and those of another style of drawing are the same
    ("drawing_scores", ""): {"test", "heldout"},  # the same prompts
    ("retrieval", "full"): {"test"},  # the first 500 show a shift; to encode all captions takes as long as all other tasks together
    ("dialogue_form", ""): {"test"},  # the form of a reply does not depend on the style of the picture
    ("association", ""): {"test"},  # what training has tied together does not depend on the pictures asked about
}
SIZES = {"train": 200, "val": 100, "test": 120, "heldout": 120, "style": 120, "pairs": 12}


@pytest.fixture(scope="module")
def source() -> Source:
    return in_memory(
        "scenes", {split: [make_sample(PRESETS["tiny"], split, index) for index in range(count)] for split, count in SIZES.items()}
    )


@pytest.fixture(scope="module")
def tasks(source: Source) -> dict[tuple[str, str], list[Task]]:
    found = defaultdict(list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.tasks.retrieval.GALLERY", 100)
        for task in plan(source):
            found[task.name, task.part].append(task)
    return found


def test_every_task_is_asked_of_both_shifts_or_says_why_not(tasks: dict[tuple[str, str], list[Task]]) -> None:
    splits = {name: {task.split for task in found} for name, found in tasks.items()}
    assert splits == {name: EXCEPTIONS.get(name, {"test", "heldout", "style"}) for name in splits}
    assert set(EXCEPTIONS) <= set(splits)


def test_shifts_have_the_measures_of_the_test_split(tasks: dict[tuple[str, str], list[Task]]) -> None:
    """The gallery's size is part of a measure's name, and the galleries are of one size."""
    for name, found in tasks.items():
        names = {tuple(measure.name for measure in task.measures) for task in found}
        assert len(names) == 1, name


def test_shifts_are_other_samples(source: Source) -> None:
    pictures = {split: {sample.image.tobytes() for sample in source.samples(split)} for split in ("test", "heldout", "style")}
    assert not pictures["test"] & pictures["heldout"]
    assert not pictures["test"] & pictures["style"]
