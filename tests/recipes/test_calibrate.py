"""What `make calibrate` measures of pages, several pictures and reasoning, with detections by hand: the truth, nothing, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from data.dialogues import turns_of
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.pages import infer, page, pairs_of, views_of
from data.scenes.several import several
from data.scenes.world import PRESETS
from eval.tasks.pages import Prior
from models.shared.instructions import reasoning
from recipes.tools.calibrate import Detected, measure_pages, measure_reasoning, measure_several

TINY = PRESETS["tiny"]


@cache
def scenes(split: str) -> list[Sample]:
    return [make_sample(TINY, split, index) for index in range(150)]


@cache
def some_pages() -> list[Sample]:
    return [page(TINY, "pages", index) for index in range(80)]


@cache
def some_several() -> list[Sample]:
    return [several(TINY, "several", index) for index in range(120)]


def centres(sample_objects: Sequence[Any]) -> list[Any]:
    """As the recogniser gives them: without a size, and in any order."""
    found = [replace(each, box=((each.box[0] + each.box[2]) / 2, (each.box[1] + each.box[3]) / 2) * 2) for each in reversed(sample_objects)]
    return found


def true_of(sample: Sample) -> list[Detected]:
    return [(centres(view.objects), {"tone": view.tone, "texture": "plain"}) for view in views_of(sample)]


def by_skill(rows: list[dict[str, object]]) -> dict[str, dict[str, Any]]:
    return {str(row["skill"]): dict(row) for row in rows}


def test_pages_by_place_with_the_truth_the_baseline_and_what_was_found() -> None:
    prior = Prior.of_samples([page(TINY, "train", index) for index in range(200)])
    pages = some_pages()
    rows = by_skill(measure_pages("pages", pages, [true_of(each) for each in pages], prior))
    assert list(rows) == [f"pages: place {place}" for place in range(5)]
    for place, row in enumerate(rows.values()):
        texts = [[text for _, text in pairs_of(sample)] for sample in pages]
        followed = [infer(views_of(sample)[: place + 1], told[:place]) == told[place] for sample, told in zip(pages, texts, strict=True)]
        guessed = [prior.guess(told[place - 1] if place else "") == told[place] for told in texts]
        assert row["truth"] == pytest.approx(sum(followed) / len(pages))
        assert row["chance"] == pytest.approx(sum(guessed) / len(pages))
        assert row["n"] == len(pages)
    first, last = rows["pages: place 0"], rows["pages: place 4"]
    assert first["truth"] < 0.2
    assert last["truth"] > 0.8
    assert last["chance"] < 0.5
    nothing: list[list[Detected]] = [[([], {"tone": "dark", "texture": "plain"}) for _ in sample.images] for sample in pages]
    blind = by_skill(measure_pages("pages", pages, nothing, prior))
    assert blind["pages: place 4"]["accuracy"] < 0.3
    assert blind["pages: place 4"]["truth"] == rows["pages: place 4"]["truth"]


def test_several_pictures_by_kind() -> None:
    training = [several(TINY, "train", index) for index in range(150)] + scenes("train")
    rows = by_skill(measure_several(some_several(), [true_of(each) for each in some_several()], training))
    assert set(rows) == {f"several: {kind}" for kind in ("difference", "in a word", "which", "odd")}
    assert all(row["truth"] == 1 for row in rows.values())
    assert min(row["accuracy"] for row in rows.values()) > 0.97  # centres of boxes, in place of boxes
    assert rows["several: which"]["chance"] == pytest.approx(0.5, abs=0.15)
    assert rows["several: in a word"]["chance"] == pytest.approx(0.25, abs=0.12)
    assert rows["several: difference"]["chance"] < 0.1
    assert rows["several: odd"]["n"] == sum(len(turns_of(sample)) == 1 for sample in some_several())
    exchanged = [list(reversed(true_of(each))) for each in some_several()]  # the pictures in the other order
    other = by_skill(measure_several(some_several(), exchanged, training))
    assert other["several: which"]["accuracy"] == 0
    assert other["several: in a word"]["accuracy"] > 0.97


def test_reasoning_by_kind() -> None:
    seen: list[Detected] = [(centres(sample.objects), {}) for sample in scenes("test")]
    rows = by_skill(measure_reasoning(scenes("test"), seen, scenes("train")))
    assert set(rows) == {"dialogue: colour of the object beside", "dialogue: which is larger"}
    assert min(row["accuracy"] for row in rows.values()) > 0.97
    assert sum(row["n"] for row in rows.values()) == sum(len(reasoning(sample)) for sample in scenes("test"))
    assert rows["dialogue: colour of the object beside"]["chance"] < 0.3
    assert rows["dialogue: which is larger"]["chance"] < 0.75
    nothing: list[Detected] = [([], {}) for _ in scenes("test")]
    assert all(row["accuracy"] == 0 for row in measure_reasoning(scenes("test"), nothing, scenes("train")))
