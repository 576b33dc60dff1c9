from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.adapters.scorers import Subject
from eval.base.capabilities import Scorer
from eval.harness.controls import exchanged
from eval.harness.source import in_memory, together
from eval.scenes.oracle import Oracle
from eval.tasks.winoground import CHANCE, Winoground, bound, plan
from tests.eval import fakes

KINDS = ("object", "relation")


def paired(count: int) -> list[Sample]:
    """`count` pairs; picture and caption of one number belong together."""
    return [
        Sample(
            key=f"{i:05d}",
            image=fakes.picture(i),
            captions=(f"caption {i}",),
            extra={"pair": f"{i ^ 1:05d}", "kind": KINDS[i // 2 % 2]},
        )
        for i in range(2 * count)
    ]


def of(text: str) -> int:
    return int(text.split()[-1])


def scores(result: dict, variant: str = "model", kind: str = "") -> list[float]:
    return [fakes.value(result, "winoground", f"{name} {kind}".strip(), variant, "pairs") for name in CHANCE]


def evaluated(model: object, samples: list[Sample], out: Path, **options: object) -> dict:
    splits = {"test": fakes.captioned(2), "pairs": samples}
    return fakes.run(model, splits, out, tasks=["winoground"], **options)


def test_perfect_inverted_and_constant(tmp_path: Path) -> None:
    samples = paired(20)
    for name, model, expected in (
        ("perfect", fakes.knowing(samples), 1.0),
        ("inverted", fakes.knowing(samples, sign=-1), 0.0),
        ("constant", fakes.constant(), 0.0),  # unlike a foil, a tie is wrong
        ("tied pairwise", fakes.Pairs(lambda number, text: 0.5), 0.0),
    ):
        result = evaluated(model, samples, tmp_path / name, fresh=fakes.constant())
        assert scores(result) == [expected] * 3, name
        assert scores(result, kind="relation") == [expected] * 3
        assert scores(result, "chance") == pytest.approx([1 / 4, 1 / 4, 1 / 6])
        assert fakes.cell(result, "winoground", "group", split="pairs")["n"] == 20
        assert fakes.cell(result, "winoground", "group relation", split="pairs")["note"] == "10 pairs"


def test_chance_is_that_of_four_scores_in_random_order() -> None:
    (task,) = plan(in_memory("fakes", {"test": paired(1)}))
    images = [sample.image for sample in task.samples]
    found = []
    for order in permutations(range(4)):
        (scorer,) = Subject(fakes.Pairs(lambda number, text, order=order: order[2 * number + of(text)])).able(Scorer)
        found.append(task.ask(scorer, images, [0])[0][0])
    assert {name: np.mean([record[name] for record in found]) for name in CHANCE} == pytest.approx(CHANCE)
    assert {name: task.chance()[0][0][name] for name in CHANCE} == CHANCE


@pytest.mark.parametrize(("right", "expected"), [("text", [1, 0, 0]), ("image", [0, 1, 0])])
def test_text_and_image_scores_are_told_apart(tmp_path: Path, right: str, expected: list[int]) -> None:
    """A bonus for one picture (or one caption) of each pair larger than that for belonging together."""

    def judge(number: int, text: str) -> float:
        return float(number == of(text)) + 2.0 * ((number if right == "text" else of(text)) % 2)

    result = evaluated(fakes.Pairs(judge), paired(6), tmp_path, fresh=fakes.constant())
    assert scores(result) == expected


def test_both_members_have_to_be_right(tmp_path: Path) -> None:
    """The first picture prefers its caption, the second is indifferent."""
    model = fakes.Pairs(lambda number, text: float(number == of(text) and number % 2 == 0))
    result = evaluated(model, paired(4), tmp_path, fresh=model)
    assert scores(result) == [0, 0, 0]
    assert "misses the swap" in result["notes"]["winoground"]  # what reports say beside a number below chance


def test_blank_pictures_tie_and_shuffled_ones_are_of_another_pair(tmp_path: Path) -> None:
    samples = paired(40)
    result = evaluated(fakes.noisy(), samples, tmp_path)
    assert scores(result, "blank images") == [0, 0, 0]
    assert 0 < scores(result, "shuffled images")[0] < 0.6
    knowing = evaluated(
        fakes.Pairs(lambda number, text: float(number // 2 == of(text) // 2)), samples, tmp_path / "other", fresh=fakes.constant()
    )
    assert scores(knowing, "shuffled images") == [0, 0, 0]
    other = exchanged(samples)
    assert sorted(other) == list(range(80))
    assert all(row // 2 != number // 2 for row, number in enumerate(other))
    assert all(other[row] // 2 == other[row + 1] // 2 for row in range(0, 80, 2))


def test_one_pair_cannot_be_shown_other_pictures_and_no_pair_plans_nothing(tmp_path: Path) -> None:
    samples = paired(1)
    result = evaluated(fakes.knowing(samples), samples, tmp_path)
    assert scores(result) == [1, 1, 1]
    assert fakes.cell(result, "winoground", "group", "shuffled images", "pairs")["status"] == "n/a"
    for none in ([], samples[:1], [replace(sample, captions=()) for sample in samples]):
        assert bound("test", none) is None


def test_partners_must_name_each_other() -> None:
    samples = paired(4)
    broken = [samples[0], *samples[2:4], replace(samples[4], extra={"pair": "00002"}), replace(samples[6], extra={"pair": ["a", "list"]})]
    assert together(broken) == [[0], [1, 2], [3], [4]]
    task = bound("test", broken)
    assert task is not None
    assert [sample.key for sample in task.samples] == ["00002", "00003"]
    assert {measure.note for measure in task.measures} == {"1 pairs; 3 samples without their partner left out"}
    assert [measure.name for measure in task.measures] == list(CHANCE)  # one kind needs no rows of its own


def test_a_limit_keeps_partners_together() -> None:
    source = in_memory("fakes", {"test": paired(50)}, limit=10)
    assert [sample.key for sample in source.samples("test")][:4] == ["00000", "00001", "00010", "00011"]
    assert len(source.samples("test")) == 20
    (task,) = plan(source)
    assert len(task.partner) == 10


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)])
def test_the_batch_size_changes_nothing_and_an_interrupted_evaluation_goes_on(tmp_path: Path, batch_size: int) -> None:
    samples = paired(30)
    judge = fakes.noisy()

    def pairs() -> fakes.Pairs:
        return fakes.Pairs(lambda number, text: float(judge.encode_image([fakes.picture(number)])[0] @ judge.encode_text([text])[0]))

    whole = evaluated(pairs(), samples, tmp_path / "whole", batch_size=16)
    path = Path("fakes") / "winoground.pairs.model.jsonl"
    again = evaluated(pairs(), samples, tmp_path / "again", batch_size=batch_size)
    assert again["cells"] == whole["cells"]
    lines = (tmp_path / "again" / path).read_bytes()
    assert lines == (tmp_path / "whole" / path).read_bytes()
    (tmp_path / "again" / path).write_bytes(lines[: len(lines) // 2])
    assert evaluated(pairs(), samples, tmp_path / "again", batch_size=batch_size)["cells"] == whole["cells"]
    assert (tmp_path / "again" / path).read_bytes() == lines
    record = json.loads(lines.splitlines()[1])
    assert (record["key"], record["partner"], record["captions"]) == ("00000", "00001", ["caption 0", "caption 1"])
    (s00, s01), (s10, s11) = record["scores"]
    assert record["text"] == float(s00 > s10 and s11 > s01)
    assert record["image"] == float(s00 > s01 and s11 > s10)


def test_the_truth_tells_every_pair_of_scenes_apart_and_a_bag_of_words_none() -> None:
    samples = [make_sample(PRESETS["tiny"], "pairs", index) for index in range(80)]
    task = bound("pairs", samples)
    assert isinstance(task, Winoground)
    images, rows = [sample.image for sample in samples], range(80)
    for model, expected in ((Oracle(samples), 1.0), (BagOfWords(), 0.0)):
        (scorer,) = Subject(model).able(Scorer)
        records = [record for group in task.ask(scorer, images, rows) for record in group]
        assert len(records) == 40
        assert {record[name] for record in records for name in CHANCE if name != "image"} == {expected}


class BagOfWords:
    """Looks at the brightness of the picture and the words of the caption, whatever their order."""

    score_kind = "bag of words"

    def score(self, images: list[np.ndarray], texts: list[str]) -> list[float]:
        words = [sorted(text.replace(",", "").split()) for text in texts]
        return [float(image.mean()) * len("".join(each)) for image, each in zip(images, words, strict=True)]
