from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from data.scenes.language import agreement
from data.scenes.world import COLOURS, SHAPES
from eval.adapters.scorers import Subject
from eval.base.capabilities import Scorer
from eval.harness.source import from_shards, in_memory
from eval.tasks.zeroshot import CLASS_TEMPLATES, SCENE_AXES, SCENE_TEMPLATES, marginal, plan
from tests.data.kit import encode, picture, write_tar
from tests.eval import fakes

ATTRIBUTES = ("shape", "colour", "size", "fill")


def knows(*attributes: str) -> fakes.Embeds:
    """Embeds pictures of `fakes.single_objects` and prompts by these attributes only."""
    truths = [{**sample.objects[0].attributes, "shape": sample.objects[0].name} for sample in fakes.single_objects()]

    def image(number: int) -> list[float]:
        return [float(value == truths[number % len(truths)][name]) for name in attributes for value in SCENE_AXES[name]] or [1.0]

    def text(prompt: str) -> list[float]:
        return [float(value in prompt.split()) for name in attributes for value in SCENE_AXES[name]] or [1.0]

    return fakes.Embeds(image, text)


def test_a_model_that_knows_some_attributes_is_right_about_those_and_at_chance_about_the_others(tmp_path: Path) -> None:
    result = fakes.run(knows("colour", "size"), {"test": fakes.single_objects()}, tmp_path, tasks=["zeroshot"])
    values = {name: fakes.value(result, "zeroshot", name) for name in (*ATTRIBUTES, "colour+shape")}
    assert values == pytest.approx({"colour": 1, "size": 1, "shape": 1 / 8, "fill": 1 / 3, "colour+shape": 1 / 8})
    chance = {name: fakes.value(result, "zeroshot", name, "chance") for name in (*ATTRIBUTES, "colour+shape")}
    assert chance == pytest.approx({"shape": 1 / 8, "colour": 1 / 9, "size": 1 / 2, "fill": 1 / 3, "colour+shape": 1 / 72})


def test_perfect_constant_oracle_and_shuffled(tmp_path: Path) -> None:
    samples = fakes.single_objects()
    result = fakes.run(knows(*ATTRIBUTES), {"test": samples}, tmp_path / "a", tasks=["zeroshot"])
    blind = fakes.run(fakes.constant(), {"test": samples}, tmp_path / "b", tasks=["zeroshot"])
    for name in (*ATTRIBUTES, "colour+shape"):
        assert fakes.value(result, "zeroshot", name) == 1
        assert fakes.value(result, "zeroshot", name, "oracle") == 1
        assert fakes.value(blind, "zeroshot", name) == pytest.approx(fakes.value(blind, "zeroshot", name, "chance"))
    assert fakes.value(result, "zeroshot", "shape", "shuffled images") < 0.25
    assert fakes.cell(result, "zeroshot", "shape", "oracle")["n"] == 100


def test_marginals_by_a_slow_second_derivation() -> None:
    """Add up, class by class, the probabilities of the combinations that have the attribute's value."""
    probabilities = softmax(np.random.default_rng(0).normal(size=(5, 432)), axis=1)
    combinations = [dict(zip(SCENE_AXES, values, strict=True)) for values in product(*SCENE_AXES.values())]
    for kept in (("shape",), ("size",), ("colour", "shape"), ("shape", "fill")):
        found = marginal(probabilities, SCENE_AXES, kept)
        for column, values in enumerate(product(*(SCENE_AXES[name] for name in kept))):
            mine = [i for i, each in enumerate(combinations) if all(each[name] == value for name, value in zip(kept, values, strict=True))]
            for row in range(5):
                assert found[row, column] == pytest.approx(sum(probabilities[row, i] for i in mine), abs=1e-6)


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    model = fakes.noisy()
    images, prompts = [fakes.picture(i) for i in range(3)], [["a", "b"], ["c", "d"]]
    (scorer,) = Subject(model).able(Scorer)
    logits = scorer.classes(images, prompts)
    for i, image in enumerate(images):
        for c, (first, second) in enumerate(prompts):
            mean = (model.encode_text([first])[0] + model.encode_text([second])[0]) / 2
            expected = np.exp(2.0) * float(model.encode_image([image])[0] @ (mean / mean.norm()))
            assert logits[i, c] == pytest.approx(expected, rel=1e-5)


def test_a_scorer_of_pairs_reads_one_prompt_of_a_class() -> None:
    model = fakes.Pairs(lambda number, text: float(text == f"a photo of {number}"))
    images, prompts = [fakes.picture(i) for i in range(3)], [[f"a photo of {c}", f"a picture of {c}"] for c in range(3)]
    (scorer,) = Subject(model).able(Scorer)
    np.testing.assert_array_equal(scorer.classes(images, prompts), np.eye(3))
    assert model.asked == 9


def test_the_same_pair_is_asked_about_once_and_answered_wherever_it_stands() -> None:
    model = fakes.Pairs(lambda number, text: number + float(text))
    one, two = fakes.picture(1), fakes.picture(2)
    (scorer,) = Subject(model, batch_size=2).able(Scorer)
    assert scorer.pairs([two, one, two, one], [".5", ".25", ".5", ".75"]).tolist() == [2.5, 1.25, 2.5, 1.75]
    assert model.asked == 3


def test_every_prompt_is_a_caption_the_language_can_read() -> None:
    sample = fakes.single_objects()[17]
    task = plan(in_memory("fakes", {"test": [sample]}))[0]
    assert [agreement(text, sample) for text in task.prompts[17]] == [1.0] * len(SCENE_TEMPLATES)
    assert len(task.texts()) == len(set(task.texts())) == 432 * len(SCENE_TEMPLATES)


def test_pictures_of_several_objects_are_not_asked_about(tmp_path: Path) -> None:
    one, other = fakes.single_objects()[:2]
    crowd = fakes.Sample(key="z", image=fakes.picture(500), captions=("x",), objects=(*one.objects, *other.objects), extra=one.extra)
    assert [task.samples for task in plan(in_memory("fakes", {"test": [one, crowd]}))] == [[one]]


def test_classes_of_a_folder(tmp_path: Path) -> None:
    classes = ("cat", "dog", "fire_truck")
    samples = [*fakes.labelled(6, classes), *[fakes.Sample(key=f"x{i}", image=fakes.picture(100 + i), label="cat") for i in range(4)]]
    labels = {fakes.number_of(sample.image): str(sample.label) for sample in samples}
    axes = {"cat": 0, "dog": 1, "truck.": 2}

    def image(number: int) -> np.ndarray:
        return np.eye(3)[0 if labels.get(number, "dog") == "dog" else classes.index(labels[number])]  # takes dogs for cats

    model = fakes.Embeds(image, lambda text: np.eye(3)[next(i for word, i in axes.items() if word in text)])
    result = fakes.run(model, {"test": samples}, tmp_path, tasks=["zeroshot"], classes=classes)
    assert fakes.value(result, "zeroshot", "top-1") == pytest.approx(8 / 10)
    assert fakes.value(result, "zeroshot", "mean per class") == pytest.approx(2 / 3)
    assert fakes.value(result, "zeroshot", "mean per class", "chance") == pytest.approx(1 / 3)
    assert fakes.cell(result, "zeroshot", "top-1", "oracle")["status"] == "n/a"
    assert "top-5" not in {cell["metric"] for cell in result["cells"]}
    texts = plan(in_memory("fakes", {"test": samples}, classes))[0].texts()
    assert CLASS_TEMPLATES[0].format_map({"class": "fire truck"}) in texts


def test_top_5_from_ten_classes_on(tmp_path: Path) -> None:
    classes = [f"class{i}" for i in range(10)]
    samples = fakes.labelled(20, classes)
    result = fakes.run(fakes.constant(), {"test": samples}, tmp_path, tasks=["zeroshot"])
    assert fakes.value(result, "zeroshot", "top-5") == pytest.approx(0.5)
    assert fakes.value(result, "zeroshot", "top-1") == pytest.approx(0.1)


def test_unseen_pairs_are_among_the_classes() -> None:
    task = plan(in_memory("fakes", {"test": fakes.single_objects()[:3]}))[0]
    assert all(any(f" {colour} {shape}" in text for text in task.texts()) for colour, shape in product(COLOURS, SHAPES))


@pytest.mark.parametrize("templates", [None, "a photo of a {c}.\na toy {c}.\n"])
def test_a_data_set_brings_its_own_templates(templates: str | None, tmp_path: Path) -> None:
    members = [(f"s{i}.{name}", content) for i in range(3) for name, content in (("png", encode(picture(i))), ("cls", str(i).encode()))]
    write_tar(tmp_path / "pets" / "test" / "0.tar", members)
    (tmp_path / "pets" / "classnames.txt").write_text("tabby_cat\ndog\nfish\n")
    if templates:
        (tmp_path / "pets" / "zeroshot_classification_templates.txt").write_text(templates)
    [task] = plan(from_shards(tmp_path / "pets"))
    expected = (
        ["a photo of a tabby cat.", "a toy tabby cat."] if templates else [each.replace("{class}", "tabby cat") for each in CLASS_TEMPLATES]
    )
    assert task.prompts[0] == expected
    assert task.settings()["templates"] == ([each.replace("tabby cat", "{class}") for each in expected])
    assert task.measures[0].note == f"3 classes, 3 prompts x {len(expected)} templates"


def test_class_numbers_without_names_are_noted(tmp_path: Path) -> None:
    write_tar(tmp_path / "test" / "0.tar", [("s0.png", encode(picture(0))), ("s0.cls", b"7")])
    [task] = plan(from_shards(tmp_path))
    assert task.measures[0].note.endswith("; classes are numbers, not names")
