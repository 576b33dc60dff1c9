from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sample import Foil, Sample
from eval.base import aro
from eval.tasks import foils
from tests.eval import fakes


def test_perfect_constant_and_inverted(tmp_path: Path) -> None:
    samples = fakes.captioned(9)
    for name, model, right in (
        ("perfect", fakes.knowing(samples), 1.0),
        ("constant", fakes.constant(), 0.5),
        ("inverted", fakes.knowing(samples, sign=-1), 0.0),
    ):
        result = fakes.run(model, {"test": samples}, tmp_path / name)
        for metric in (
            "replace_attribute",
            "replace_attribute_colour",
            "replace_attribute_shape",
            "swap_attribute",
            "swap_attribute_colour",
            "swap_relation",
        ):
            assert fakes.value(result, "foils", metric) == right
            assert fakes.value(result, "foils", metric, "chance") == 0.5
        assert fakes.cell(result, "foils", "replace_attribute")["note"] == "18 foils"


def test_families_are_means_over_foils_and_unknown_kinds_stand_alone(tmp_path: Path) -> None:
    """Two right colour foils and one wrong shape foil: replace is 2/3, not the mean of its kinds."""
    sample = Sample(
        key="0",
        image=fakes.picture(0),
        foils=(
            Foil("true", "a", "replace_attribute_colour"),
            Foil("true", "b", "replace_attribute_colour"),
            Foil("true", "c", "replace_attribute_shape"),
            Foil("true", "d", "odd"),
        ),
    )
    model = fakes.Pairs(lambda number, text: {"true": 0.5, "a": 0.1, "b": 0.2, "c": 0.9, "d": 0.5}.get(text, 0.0))
    result = fakes.run(model, {"test": [sample]}, tmp_path, fresh=model)
    assert fakes.value(result, "foils", "replace_attribute") == pytest.approx(2 / 3)
    assert fakes.value(result, "foils", "replace_attribute_shape") == 0
    assert fakes.value(result, "foils", "odd") == 0.5
    assert fakes.cell(result, "foils", "replace_attribute")["n"] == 1  # one image, however many foils


def test_scores_a_hair_apart_are_not_a_tie(tmp_path: Path) -> None:
    sample = Sample(key="0", image=fakes.picture(0), foils=(Foil("true", "false", "replace_attribute_colour"),))
    model = fakes.Pairs(lambda number, text: 1.0 if text == "true" else 1.0 - 1e-7)
    assert fakes.value(fakes.run(model, {"test": [sample]}, tmp_path, fresh=model), "foils", "replace_attribute") == 1


# ------------------------------------------------------------------------------------------------------------- ARO


def aro_case(number: int, kind: str, **about: Any) -> Sample:
    return Sample(key=f"{number:05d}", image=fakes.picture(number), captions=("true",), foils=(Foil("true", "false", kind),), extra=about)


def order_case(number: int, *shuffles: str) -> Sample:
    return Sample(
        key=f"{number:05d}", image=fakes.picture(number), captions=("true",), foils=tuple(Foil("true", each, "order") for each in shuffles)
    )


def test_order_is_precision_at_one_of_five(tmp_path: Path) -> None:
    """The caption beats four, three and two of its shuffles: pairwise 9/12, first in one of three."""
    samples = [order_case(i, "a", "b", "c", "d") for i in range(3)]
    beaten = {0: "abcd", 1: "abc", 2: "ab"}
    model = fakes.Pairs(lambda number, text: 0.5 if text == "true" else 0.1 if text in beaten.get(number, "") else 0.9)
    result = fakes.run(model, {"test": samples}, tmp_path, fresh=model)
    assert fakes.value(result, "foils", "Precision@1 (order)") == pytest.approx(1 / 3)
    assert fakes.value(result, "foils", "order (pairwise)") == pytest.approx(9 / 12)
    assert fakes.value(result, "foils", "Precision@1 (order)", "chance") == pytest.approx(1 / 5)
    assert fakes.value(result, "foils", "order (pairwise)", "chance") == 0.5
    assert fakes.cell(result, "foils", "Precision@1 (order)")["n"] == 3
    assert not [cell for cell in result["cells"] if cell["task"] == "foils" and cell["metric"] == "order"]


def test_order_equals_argmax_of_five(tmp_path: Path) -> None:
    """Against the published rule, on scores without ties; the importer leaves out shuffles that are equal to the caption."""
    rng = np.random.default_rng(0)
    scores = rng.random((60, 5))
    samples = [order_case(i, "1", "2", "3", "4") for i in range(60)]
    model = fakes.Pairs(lambda number, text: float(scores[number % 60, 0 if text == "true" else int(text)]))
    result = fakes.run(model, {"test": samples}, tmp_path, fresh=model)
    assert fakes.value(result, "foils", "Precision@1 (order)") == pytest.approx(np.mean(scores.argmax(axis=1) == 0))
    assert fakes.value(result, "foils", "order (pairwise)") == pytest.approx(np.mean(scores[:, :1] > scores[:, 1:]))


def test_one_score_for_all_orders_is_at_chance(tmp_path: Path) -> None:
    """Equal shuffles are one text; two captions of one picture are two questions."""
    two = Sample(
        key="00000",
        image=fakes.picture(0),
        foils=(Foil("true", "a", "order"), Foil("true", "a", "order"), Foil("also true", "b", "order"), Foil("also true", "c", "order")),
    )
    result = fakes.run(fakes.constant(), {"test": [two]}, tmp_path)
    for variant in ("model", "chance"):
        assert fakes.value(result, "foils", "Precision@1 (order)", variant) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_relations_are_averaged_over_relations(tmp_path: Path) -> None:
    """behind: 3 of 4, wearing: 0 of 1; "next to" holds both ways and does not count."""
    relations = ["behind"] * 4 + ["wearing"] + ["next to"] * 3
    samples = [aro_case(i, "relation", relation_name=name) for i, name in enumerate(relations)]
    right = {0, 1, 2, 5, 6, 7}
    model = fakes.Pairs(lambda number, text: float((text == "true") == (number in right)))
    result = fakes.run(model, {"test": samples}, tmp_path, fresh=model)
    assert fakes.value(result, "foils", "VG-Relation") == pytest.approx((3 / 4 + 0) / 2)
    assert fakes.value(result, "foils", "relation (pairwise)") == pytest.approx(6 / 8)
    assert fakes.value(result, "foils", "VG-Relation", "chance") == 0.5
    assert fakes.cell(result, "foils", "VG-Relation")["note"] == "macro average over 2 relations"


def test_attributes_need_25_cases(tmp_path: Path) -> None:
    pairs = [["white", "open"]] * 25 + [["red", "small"]] * 24 + [["blue", "round"]] * 26
    samples = [aro_case(i, "attribution", attributes=pair) for i, pair in enumerate(pairs)]
    model = fakes.Pairs(lambda number, text: float((text == "true") == (number < 10 or 25 <= number < 49)))
    result = fakes.run(model, {"test": samples}, tmp_path / "many", fresh=model)
    assert fakes.value(result, "foils", "VG-Attribution") == pytest.approx((10 / 25 + 0) / 2)
    assert fakes.value(result, "foils", "attribution (pairwise)") == pytest.approx(34 / 75)
    few = fakes.run(model, {"test": samples[:24]}, tmp_path / "few", fresh=model)
    cell = fakes.cell(few, "foils", "VG-Attribution")
    assert (cell["value"], cell["status"], cell["note"]) == (None, "not run", "no pair of attributes has 25 cases")


def test_the_relations_left_out_are_the_notebooks() -> None:
    assert len(aro.SYMMETRIC) == 157
    assert {"next to", "between", "on the side of", "sitting next to", "adjusting"} <= aro.SYMMETRIC
    assert not {"behind", "on", "to the left of", "wearing", "riding", "under"} & aro.SYMMETRIC


def test_scenes_are_asked_as_before() -> None:
    task = foils.Foils("test", fakes.captioned(2))
    assert task.settings() == {"version": 1}
