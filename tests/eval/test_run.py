from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.sample import Sample
from eval import EvalError
from eval.harness.showcase import PICTURES
from tests.eval import fakes

SPLITS = {
    "train": fakes.single_objects()[::2],
    "val": fakes.single_objects()[:60],
    "test": [replace(sample, foils=fakes.captioned(1)[0].foils, key=f"t{sample.key}") for sample in fakes.single_objects()[::13]],
    "heldout": fakes.captioned(12),
}


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if not name.startswith("seconds")}


@dataclass(frozen=True)
class Evaluated:
    """What `fakes.noisy()` left in `folder`, which no test may change."""

    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("whole")
    return Evaluated(folder, fakes.run(fakes.noisy(), SPLITS, folder, batch_size=64))


@pytest.fixture(scope="module")
def by_seven(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("by_seven")
    return Evaluated(folder, fakes.run(fakes.noisy(), SPLITS, folder, batch_size=7))


def same_records(one: Path, other: Path) -> None:
    for path in sorted((one / "fakes").glob("*.jsonl")):
        assert (other / "fakes" / path.name).read_text() == path.read_text(), path.name


def test_the_batch_size_changes_nothing(whole: Evaluated, by_seven: Evaluated) -> None:
    assert by_seven.result["cells"] == whole.result["cells"]
    same_records(whole.folder, by_seven.folder)


@pytest.mark.slow
def test_one_at_a_time_changes_nothing(tmp_path: Path) -> None:
    few = SPLITS | {"train": SPLITS["train"][::4], "test": SPLITS["test"][::4], "heldout": SPLITS["heldout"][:6]}
    reference = fakes.run(fakes.noisy(), few, tmp_path / "64", batch_size=64)
    other = fakes.run(fakes.noisy(), few, tmp_path / "1", batch_size=1)
    assert other["cells"] == reference["cells"]
    same_records(tmp_path / "64", tmp_path / "1")


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "moment",
    [pytest.param(20, marks=pytest.mark.slow), pytest.param(80, marks=pytest.mark.slow), pytest.param(160, marks=pytest.mark.slow), 250],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, by_seven: Evaluated, moment: int) -> None:
    """Killed while encoding the n-th picture, with a torn last line in every file; resumed with the same batch size."""
    frail = fakes.noisy()
    frail.image = _dying(frail.image, moment)
    with pytest.raises(Killed):
        fakes.run(frail, SPLITS, tmp_path / "killed", batch_size=7)
    for path in (tmp_path / "killed" / "fakes").glob("*.jsonl"):
        text = path.read_text()
        path.write_text(text[: max(len(text) - 9, 0)])
    resumed = fakes.run(fakes.noisy(), SPLITS, tmp_path / "killed", batch_size=7)
    assert without_time(resumed) == without_time(by_seven.result)
    for path in (by_seven.folder / "fakes").iterdir():
        if path.name != "eval.json":
            assert (tmp_path / "killed" / "fakes" / path.name).read_text() == path.read_text(), path.name


@pytest.mark.parametrize("share", [0.0, pytest.param(0.01, marks=pytest.mark.slow), 0.35, pytest.param(0.8, marks=pytest.mark.slow), 0.999])
def test_files_cut_anywhere_are_completed(tmp_path: Path, share: float) -> None:
    judge = fakes.noisy()

    def pairs() -> fakes.Pairs:
        return fakes.Pairs(lambda number, text: float(judge.encode_image([fakes.picture(number)])[0] @ judge.encode_text([text])[0]))

    splits = {"test": fakes.captioned(20)}
    whole = fakes.run(pairs(), splits, tmp_path, batch_size=7)
    contents = {path: path.read_bytes() for path in (tmp_path / "fakes").glob("*.jsonl")}
    for path, content in contents.items():
        path.write_bytes(content[: int(share * len(content))])
    assert without_time(fakes.run(pairs(), splits, tmp_path, batch_size=7)) == without_time(whole)
    assert {path: path.read_bytes() for path in contents} == contents


def _dying(vector: Callable[[int], Any], moment: int) -> Callable[[int], Any]:
    calls = iter(range(moment))

    def image(number: int) -> Any:
        if next(calls, None) is None:
            raise Killed
        return vector(number)

    return image


def test_finished_answers_are_not_asked_again(whole: Evaluated, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    again = fakes.noisy()
    second = fakes.run(again, SPLITS, tmp_path / "run", batch_size=64)
    assert without_time(second) == without_time(whole.result)
    assert again.encoded <= PICTURES + 1  # and one to count FLOPs


def test_other_weights_or_other_data_begin_anew(tmp_path: Path) -> None:
    samples = fakes.captioned(10)
    fakes.run(fakes.knowing(samples), {"test": samples}, tmp_path, weights="one")
    other = fakes.run(fakes.constant(), {"test": samples}, tmp_path, weights="two")
    assert fakes.value(other, "foils", "replace_attribute") == 0.5
    changed = [replace(sample, captions=(f"new {i}",)) for i, sample in enumerate(samples)]
    result = fakes.run(fakes.knowing(changed), {"test": changed}, tmp_path, weights="two")
    assert fakes.value(result, "retrieval", "t2i R@1 (10)") == 1


def test_a_selection_of_tasks_keeps_the_cells_of_the_others(tmp_path: Path) -> None:
    samples = fakes.captioned(10)
    whole = fakes.run(fakes.noisy(), {"test": samples}, tmp_path)
    some = fakes.run(fakes.noisy(), {"test": samples}, tmp_path, tasks=["foils"])
    assert sorted(map(str, some["cells"])) == sorted(map(str, whole["cells"]))
    elsewhere = fakes.run(fakes.noisy(), {"test": samples}, tmp_path, tasks=["foils"], weights="other")
    assert {cell["task"] for cell in elsewhere["cells"]} == {"foils"}
    with pytest.raises(EvalError, match=r"no task 'vqa'.*retrieval, foils"):
        fakes.run(fakes.noisy(), {"test": samples}, tmp_path, tasks=["vqa"])


def test_every_cell_has_its_control_cells_and_a_number_or_a_reason(whole: Evaluated) -> None:
    result, folder = whole.result, whole.folder / "fakes"
    by_key: dict[tuple[str, ...], set[str]] = {}
    for cell in result["cells"]:
        by_key.setdefault((cell["task"], cell["split"], cell["metric"]), set()).add(cell["variant"])
        if cell["value"] is None:
            assert cell["status"] in ("n/a", "not run")
            assert cell["note"]
        else:
            assert cell["low"] <= cell["value"] <= cell["high"]
            assert cell["unit"] != "share" or (cell["low"] >= 0 and cell["high"] <= 1 + 1e-12)
            assert cell["n"] > 0
    controls = {"model", "untrained", "shuffled images", "blank images", "chance", "oracle"}
    for (task, split, _), variants in by_key.items():
        assert variants | {"chance"} == (controls if split == "test" else {"model", "chance"}), (task, split)
        assert "chance" in variants or task not in ("zeroshot", "retrieval", "foils", "probe")  # nobody guesses a caption
    assert {split for _, split, _ in by_key} == {"test", "heldout"}
    assert json.loads((folder / "eval.json").read_text()) == result
    assert set(json.loads((folder / "prompts.json").read_text())) == set(result["prompts"])


def test_records_average_to_the_cell(whole: Evaluated) -> None:
    """What the paired tests of the report rely on: a cell is the mean of the field of that name over its records,
    or the ratio of its sum to that of the weight."""
    for cell in whole.result["cells"]:
        if cell.get("records"):
            lines = [json.loads(line) for line in (whole.folder / "fakes" / cell["records"]).read_text().splitlines()]
            asked = [line for line in lines if cell["metric"] in line]
            weights = [line[cell["weight"]] if "weight" in cell else 1 for line in asked]
            if "field" not in cell:  # or else it is a function of all records together
                assert sum(line[cell["metric"]] for line in asked) / sum(weights) == pytest.approx(cell["value"])
            assert len({line["i"] for line, weight in zip(asked, weights, strict=True) if weight}) == cell["n"]


def test_one_sample(tmp_path: Path) -> None:
    samples = fakes.captioned(1)
    result = fakes.run(fakes.knowing(samples), {"test": samples}, tmp_path)
    assert fakes.value(result, "retrieval", "i2t R@1 (1)") == 1
    assert fakes.cell(result, "retrieval", "i2t R@1 (1)", "shuffled images")["status"] == "n/a"


def test_nothing_to_evaluate_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"'test' has no usable samples.*check-data"):
        fakes.run(fakes.noisy(), {"test": []}, tmp_path)
    with pytest.raises(EvalError, match="nothing to evaluate"):
        fakes.run(fakes.noisy(), {"test": [Sample(key="0", image=fakes.picture(0))]}, tmp_path)
    with pytest.raises(EvalError, match=r"test or val, found \['a', 'b'\]"):
        fakes.run(fakes.noisy(), {"a": fakes.captioned(2), "b": fakes.captioned(2)}, tmp_path)


def test_without_a_test_split_val_is_used_and_said(tmp_path: Path) -> None:
    result = fakes.run(fakes.noisy(), {"train": fakes.captioned(3), "val": fakes.captioned(3)}, tmp_path)
    assert fakes.cell(result, "foils", "replace_attribute", split="val")["note"].startswith("no test split: this is val; ")


def test_what_a_model_cannot_do_is_not_zero(tmp_path: Path) -> None:
    class OnlyImages:
        def encode_image(self, images: Any) -> torch.Tensor:
            return torch.ones(len(images), 2)

    result = fakes.run(OnlyImages(), SPLITS, tmp_path, fresh=OnlyImages())
    cell = fakes.cell(result, "retrieval", "i2t R@1 (34)")
    assert (cell["value"], cell["status"]) == (None, "n/a")
    assert "encode_text" in cell["note"]
    assert fakes.value(result, "probe", "size") > 0.3


def test_nan_is_an_error_that_names_the_method(tmp_path: Path) -> None:
    broken = fakes.Embeds(lambda number: [float("nan"), 1.0], lambda text: [1.0, 1.0])
    with pytest.raises(ValueError, match="encode_image returned NaN for 4 of 4 inputs"):
        fakes.run(broken, {"test": fakes.captioned(4)}, tmp_path)


def test_limit_takes_samples_from_everywhere(tmp_path: Path) -> None:
    samples = fakes.captioned(100)
    result = fakes.run(fakes.knowing(samples), {"test": samples}, tmp_path, limit=10)
    lines = (tmp_path / "fakes" / "foils.test.model.jsonl").read_text().splitlines()[1:-1]
    assert list(dict.fromkeys(json.loads(line)["key"] for line in lines)) == [f"{i:05d}" for i in range(0, 100, 10)]
    assert result["limit"] == 10
