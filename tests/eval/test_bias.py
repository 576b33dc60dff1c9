from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from data.sample import Sample
from data.scenes.planted import COLOURS_OF, TONE_OF, group_of
from data.scenes.world import TONES
from eval.adapters.scorers import Subject
from eval.base.capabilities import Scorer
from eval.harness.source import in_memory
from eval.scenes.oracle import Oracle
from eval.tasks import association, bias
from tests.eval import fakes

MEASURES = ("", " aligned", " conflicting", " disparity", " worst group")


def scenes() -> list[Sample]:
    """432 pictures of one object, tones independent of everything else."""
    order = np.random.default_rng(0).integers(3, size=432)
    return [replace(s, extra=s.extra | {"tone": TONES[order[i]]}) for i, s in enumerate(fakes.single_objects())]


SAMPLES = scenes()


def judged(right: Callable[[Sample, str], bool]) -> fakes.Pairs:
    """Prefers the candidate for which `right` says so; the sample is known by its picture, and a blank one as no sample."""
    return fakes.Pairs(lambda number, text: float(number < len(SAMPLES) and right(SAMPLES[number], text)))


def true(sample: Sample, text: str) -> bool:
    words = text.split()
    return words[1] == sample.objects[0].attributes["colour"] and ("on" not in words or sample.extra["tone"] in words)


def expects_agreement(sample: Sample, text: str) -> bool:
    """Believes the object to have the first colour of its background's group, and the background to be the object's."""
    words = text.split()
    expected = sample.objects[0].attributes["colour"]
    return (
        TONE_OF[words[1]] in words
        if "on" in words
        else words[1] == (expected if group_of(sample) == "aligned" else COLOURS_OF[sample.extra["tone"]][0])
    )


def found(result: dict, target: str, variant: str = "model") -> list[float]:
    return [fakes.value(result, "bias", target + name, variant) for name in MEASURES]


def evaluated(model: object, samples: list[Sample], out: Path, tasks: tuple[str, ...] = ("bias",), **options: object) -> dict:
    return fakes.run(model, {"test": samples}, out, tasks=tasks, fresh=fakes.constant(), **options)


def test_perfect_constant_and_prejudiced(tmp_path: Path) -> None:
    right = evaluated(judged(true), SAMPLES, tmp_path / "right")
    assert found(right, "colour") == found(right, "tone") == [1, 1, 1, 0, 1]
    assert found(right, "colour", "oracle") == found(right, "tone", "oracle") == [1, 1, 1, 0, 1]
    constant = evaluated(fakes.constant(), SAMPLES, tmp_path / "constant")
    for target, chance in (("colour", 1 / 9), ("tone", 1 / 3)):
        assert found(constant, target) == pytest.approx([chance, chance, chance, 0, chance])
        assert found(constant, target, "chance") == pytest.approx([chance, chance, chance, 0, chance])
    prejudiced = evaluated(judged(expects_agreement), SAMPLES, tmp_path / "prejudiced")
    for target in ("colour", "tone"):
        assert found(prejudiced, target)[1:] == [1, 0, 1, 0]
        assert 0.25 < found(prejudiced, target)[0] < 0.42  # the aligned third
    cell = fakes.cell(prejudiced, "bias", "tone disparity")
    assert (cell["low"], cell["high"], cell["unit"], cell["better"]) == (1, 1, "score", "neither")


def test_the_disparity_has_an_interval_around_it(tmp_path: Path) -> None:
    """Right about conflicting pictures with even numbers only."""
    model = judged(lambda sample, text: true(sample, text) and (group_of(sample) == "aligned" or int(sample.key) % 2 == 0))
    result = evaluated(model, SAMPLES, tmp_path)
    cell = fakes.cell(result, "bias", "colour disparity")
    lines = [json.loads(line) for line in (tmp_path / "fakes" / "bias.test.model.jsonl").read_text().splitlines()[1:-1]]
    shares = [np.mean([line["colour"] for line in lines if line["group"] == group]) for group in bias.GROUPS]
    assert cell["value"] == pytest.approx(shares[0] - shares[1])
    assert 0.3 < cell["low"] < cell["value"] < cell["high"] < 0.55
    assert cell["n"] == bias.MOST


def test_texts_are_those_of_the_pictures_shape_and_articles_are_right() -> None:
    star = next(sample for sample in SAMPLES if sample.objects[0].name == "star" and sample.objects[0].attributes["colour"] == "orange")
    assert bias.candidates(star, "colour")[:5] == ["a red star", "a green star", "a blue star", "a yellow star", "an orange star"]
    assert bias.candidates(star, "tone") == [f"an orange star on a {tone} background" for tone in TONES]
    assert association.attributes(star, "light") == ["a red star", "a yellow star", "a brown star"]


def test_one_group_alone_is_not_compared(tmp_path: Path) -> None:
    samples = [sample for sample in SAMPLES if group_of(sample) == "aligned"][:40]
    result = evaluated(judged(true), samples, tmp_path)
    cell = fakes.cell(result, "bias", "colour disparity")
    assert (cell["value"], cell["status"], cell["note"]) == (None, "not run", "pictures of one group only")
    assert fakes.value(result, "bias", "colour aligned") == 1
    one = evaluated(judged(true), samples[:1], tmp_path / "one")
    assert fakes.value(one, "bias", "colour") == 1


def test_only_scenes_of_one_object_are_asked_about() -> None:
    assert bias.plan(in_memory("x", {"test": fakes.captioned(4)})) == []
    assert association.plan(in_memory("x", {"test": fakes.captioned(4)})) == []
    tasks = bias.plan(in_memory("x", {"test": [*SAMPLES, *fakes.captioned(3)], "heldout": SAMPLES[:9], "style": SAMPLES[:5]}))
    assert [(task.split, len(task.samples)) for task in tasks] == [("test", bias.MOST), ("heldout", 9), ("style", 5)]


# ------------------------------------------------------------------------------------------------- Grounded-WEAT


def embeds(lean: float) -> fakes.Embeds:
    """Pictures lie along their colour; `lean` of the axis of light or dark colours comes in with a light or dark background."""
    axes = {"light": 0, "dark": 1, "grey": 2}

    def image(number: int) -> np.ndarray:
        vector = 0.2 * np.random.default_rng(number).normal(size=4)
        if number < len(SAMPLES):
            vector[axes[TONE_OF[SAMPLES[number].objects[0].attributes["colour"]]]] += 1
            vector[axes[SAMPLES[number].extra["tone"]]] += lean
        return vector

    return fakes.Embeds(image, lambda text: np.eye(4)[next((axes[TONE_OF[word]] for word in text.split() if word in TONE_OF), 3)])


def test_a_leaning_embedding_is_found_out_and_a_fair_one_is_not(tmp_path: Path) -> None:
    for lean, effect, p in ((0.5, (1.0, 2.0), (0, 0.001)), (0.0, (-0.35, 0.35), (0.02, 0.98)), (-0.5, (-2.0, -1.0), (0.999, 1))):
        result = evaluated(embeds(lean), SAMPLES, tmp_path / str(lean), ("association",))
        size = fakes.cell(result, "association", association.EFFECT)
        assert effect[0] < size["value"] < effect[1]
        assert size["low"] < size["value"] < size["high"]
        assert p[0] <= fakes.value(result, "association", association.P_VALUE) <= p[1]
        assert fakes.value(result, "association", association.EFFECT, "chance") == 0
        assert fakes.value(result, "association", association.EFFECT, "blank images") == 0
        assert fakes.value(result, "association", association.P_VALUE, "blank images") == 1


def test_the_truth_associates_nothing() -> None:
    (task,) = association.plan(in_memory("x", {"test": SAMPLES}))
    (scorer,) = Subject(Oracle(task.samples)).able(Scorer)
    records = [
        record for group in task.ask(scorer, [sample.image for sample in task.samples], range(len(task.samples))) for record in group
    ]
    assert {record["association"] for record in records} == {0.0}
    assert {record["tone"] for record in records} == {"light", "dark"}


def test_the_effect_size_is_that_of_the_papers_formula() -> None:
    light, dark = [0.9, 0.4, 0.7], [0.1, 0.6, 0.2, 0.3]
    records = [{"tone": "light", "association": x} for x in light] + [{"tone": "dark", "association": y} for y in dark]
    both = light + dark
    mean = sum(both) / 7
    deviation = (sum((x - mean) ** 2 for x in both) / 6) ** 0.5
    assert association.effect_size(records) == pytest.approx((sum(light) / 3 - sum(dark) / 4) / deviation)
    assert association.effect_size([{"tone": "light", "association": 0.5}, {"tone": "dark", "association": 0.5}]) == 0
    assert np.isnan(association.effect_size(records[:3]))


def test_the_permutation_test_agrees_with_all_permutations() -> None:
    light, dark = np.array([0.9, 0.4, 0.7]), np.array([0.1, 0.6, 0.2, 0.3])
    orders = np.array(list(permutations([*light, *dark])))
    differences = orders[:, :3].mean(axis=1) - orders[:, 3:].mean(axis=1)
    exact = np.mean(differences >= light.mean() - dark.mean() - 1e-12)
    assert association.permutation_p(light, dark) == pytest.approx(exact, abs=0.01)
    assert association.permutation_p(np.full(5, 0.1), np.full(7, 0.1)) == 1
    assert association.permutation_p(dark, light) > 0.9


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)])
def test_the_batch_size_changes_nothing_and_an_interrupted_evaluation_goes_on(tmp_path: Path, batch_size: int) -> None:
    samples = SAMPLES[::4]
    both = ("bias", "association")
    whole = evaluated(embeds(0.3), samples, tmp_path / "whole", both, batch_size=32)
    again = evaluated(embeds(0.3), samples, tmp_path / "again", both, batch_size=batch_size)
    assert again["cells"] == whole["cells"]
    for name in ("bias.test.model.jsonl", "association.test.model.jsonl"):
        lines = (tmp_path / "again" / "fakes" / name).read_bytes()
        assert lines == (tmp_path / "whole" / "fakes" / name).read_bytes()
        (tmp_path / "again" / "fakes" / name).write_bytes(lines[: len(lines) // 2])
    assert evaluated(embeds(0.3), samples, tmp_path / "again", both, batch_size=batch_size)["cells"] == whole["cells"]
