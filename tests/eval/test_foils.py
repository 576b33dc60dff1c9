from __future__ import annotations

from pathlib import Path

import pytest

from data.sample import Foil, Sample
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
