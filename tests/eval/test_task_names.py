"""A task is chosen by the name of its file, and a name that no file has is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.fields import FieldError
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.harness.source import in_memory
from eval.run import evaluate_run
from eval.tasks import headlines, plan


def test_tasks_have_the_names_of_their_files() -> None:
    splits = {"train": 60, "val": 40, "test": 60, "heldout": 40, "style": 40, "pairs": 8}
    samples = {split: [make_sample(PRESETS["tiny"], split, index) for index in range(count)] for split, count in splits.items()}
    found = {(task.name, type(task).__module__.rpartition(".")[2]) for task in plan(in_memory("scenes", samples))}
    assert len(found) > 10
    assert [pair for pair in found if pair[0] != pair[1]] == []
    assert {name for name, _ in found} <= set(headlines())


@pytest.mark.parametrize("name", ["nosuch", "", " foils x", "Foils"])
def test_an_unknown_task_is_refused_before_the_run_is_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=f"--tasks is '{name}', expected some of zeroshot, .*association"):
        evaluate_run(tmp_path / "no run here", tasks=("foils", name))


@pytest.mark.parametrize(("field", "value"), [("limit", 0), ("limit", -5), ("batch_size", 0), ("batch_size", -1)])
def test_a_size_below_one_is_refused_before_the_run_is_looked_at(field: str, value: int, tmp_path: Path) -> None:
    options: dict[str, int] = {field: value}
    with pytest.raises(FieldError, match=rf"--{field.replace('_', '-')} is {value}, expected 1 or more"):
        evaluate_run(tmp_path / "no run here", **options)  # type: ignore[arg-type]
