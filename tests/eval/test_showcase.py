"""The pictures that the report shows, and where captions of scenes are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.sample import Object, Question, Sample
from eval.adapters.scorers import Subject
from eval.harness.showcase import LARGEST, PICTURES, data_uri, showcase
from eval.harness.source import in_memory
from eval.report.results import Run, read_result
from eval.scenes.mistakes import marked
from eval.tasks import retrieval, vqa
from tests.eval import fakes

STAR = Object("star", (0, 0, 4, 4), {"colour": "red", "size": "large", "fill": "solid", "place": "left"})
MOON = Object("moon", (9, 9, 12, 12), {"colour": "blue", "size": "small", "fill": "hollow", "place": "right"})
SCENE = Sample(
    key="s",
    image=fakes.picture(0),
    captions=("a large solid red star and a small hollow blue moon",),
    objects=(STAR, MOON),
    extra={"relations": [[0, "left", 1]], "tone": "dark", "texture": "plain"},
)


def wrong(caption: str, sample: Sample = SCENE) -> list[str]:
    pieces = marked(caption, sample)
    assert "".join(text for text, _ in pieces) == caption
    return [text for text, ok in pieces if ok is False]


def test_the_report_reads_what_an_evaluation_writes(tmp_path: Path) -> None:
    """And shows no pictures, without a word, where another version wrote them."""
    fakes.run(fakes.noisy(), {"test": asked(5)}, tmp_path, tasks=["retrieval"])
    folder = tmp_path / "fakes"
    read = read_result(Run("a", tmp_path), folder).showcase
    assert [item["key"] for item in read["items"]] == [sample.key for sample in asked(5)]
    assert all(item["ranked"] for item in read["items"])
    (folder / "showcase.json").write_text(json.dumps(read | {"schema": read["schema"] - 1}))
    assert read_result(Run("a", tmp_path), folder).showcase == {}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (SCENE.captions[0], []),
        ("A red star and a blue moon on a dark background", []),
        ("a red star to the left of a blue moon", []),
        ("two objects: a blue moon and a red star", []),
        ("a large green star and a small blue moon", ["green"]),
        ("a blue star and a red moon", ["blue", "red"]),
        ("a red star above a blue moon", ["above"]),
        ("three objects: a red star and a blue moon", ["three object"]),
        ("a red star on a light background", ["light background"]),
        ("a red star and a yellow cross", ["yellow", "cross"]),
        ("a red star, a red star and a blue moon", ["red", "star"]),
        ("a star at the right", ["the right"]),
        ("nothing of the kind", []),
        ("", []),
    ],
)
def test_what_is_false_is_marked(caption: str, expected: list[str]) -> None:
    assert wrong(caption) == expected


def test_letters_that_change_their_length_are_left_alone() -> None:
    assert marked("İ a green star", SCENE) == [("İ a green star", None)]


class Everything:
    """Captions, answers, scores and draws, each known by hand: everything is a red star."""

    score_kind = "matching head"

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(text.endswith(f"of {fakes.number_of(image)}")) for image, text in zip(images, texts, strict=True)])

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        return ["a red star"] * len(images)

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return ["Red."] * len(questions)

    def unmask(self, images: Sequence[np.ndarray], texts: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.full((4, 4, 3), seed, np.uint8), np.full((4, 4, 3), len(text), np.uint8)) for text in texts]

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> list[np.ndarray]:
        return [np.full((4, 4, 3), 200, np.uint8)] * len(texts)


def asked(count: int) -> list[Sample]:
    colours = ("red", "blue")
    return [
        replace(sample, questions=(Question("what colour is it?", colours[number % 2], "colour"), Question("is it?", "yes", "exist")))
        for number, sample in enumerate(fakes.captioned(count))
    ]


def shown(model: Any, samples: list[Sample]) -> dict[str, Any]:
    source = in_memory("fakes", {"test": samples})
    return showcase(Subject(model), [*retrieval.plan(source), *vqa.plan(source)], source)


class Half:
    """Says what people wrote of every second picture."""

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        numbers = [fakes.number_of(image) for image in images]
        return [f"caption 0 of {number}" if number % 2 else "a red star" for number in numbers]


def test_captions_of_pictures_whose_truth_is_unknown_come_with_their_score(tmp_path: Path) -> None:
    """As in the task's own records."""
    samples = fakes.captioned(40)
    fakes.run(Half(), {"test": samples}, tmp_path, tasks=["captioning"])
    records = map(json.loads, (tmp_path / "fakes" / "captioning.test.model.jsonl").read_text().splitlines())
    graded = {record["key"]: record["CIDEr-D"] for record in records if "CIDEr-D" in record}
    items = read_result(Run("a", tmp_path), tmp_path / "fakes").showcase["items"]
    assert [item["score"] for item in items] == [pytest.approx(graded[item["key"]], abs=1e-4) for item in items]
    assert {item["score"] > 1 for item in items} == {True, False}
    assert "score" not in shown(Everything(), asked(40))["items"][0]  # without the task captioning


def test_every_ability_is_shown_beside_the_same_pictures() -> None:
    found = shown(Everything(), asked(60))
    assert list(found["adapters"]) == ["caption", "answers", "ranked", "drawing", "unmasked"]
    assert [item["key"] for item in found["items"]] == [item["key"] for item in shown(fakes.noisy(), asked(60))["items"]]
    assert len(found["items"]) == PICTURES
    even, odd = found["items"][0], next(item for item in found["items"] if int(item["key"]) % 2)
    assert even["caption"] == [("a red star", None)]  # nothing is known of these pictures
    assert [(each["said"], each["right"]) for each in even["answers"]] == [("Red.", True), ("Red.", False)]
    assert [(each["truth"], each["right"]) for each in odd["answers"]] == [("blue", False), ("yes", False)]
    assert (even["ranked"][0]["text"], even["ranked"][0]["correct"]) == (f"caption 0 of {int(even['key'])}", True)
    assert not any(each["correct"] for each in even["ranked"][1:])
    assert even["drawing"].startswith("data:image/png;base64,")
    grey = [data_uri(np.full((4, 4, 3), level, np.uint8)) for level in (0, len(even["truth"][0]), 0)]
    assert even["unmasked"] == grey  # parts hidden, with the caption's help, without it


class Looks(torch.nn.Module):
    """Its one query attends to the brightest of four patches."""

    def encode_image(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        keys = pixels.float().mean(dim=1).flatten(1)[:, None, :, None]  # [B, 1, 4, 1]
        return torch.nn.functional.scaled_dot_product_attention(torch.ones(len(images), 1, 1, 1), keys, keys).flatten(1)


class Seeing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eye = Looks()

    def encode_image(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        return self.eye(images)


Looks.forward = Looks.encode_image  # type: ignore[method-assign]


def test_where_a_model_looks_is_shown() -> None:
    found = shown(Seeing(), asked(60))
    assert found["adapters"]["look"] == "attention pooler"
    for item in found["items"]:
        bright = fakes.picture(int(item["key"])).mean(axis=2)
        expected = np.exp(bright) / np.exp(bright).sum()
        np.testing.assert_allclose(item["look"]["shares"], expected, atol=1e-5)
        assert item["look"]["area"] == [0, 0, 1, 1]
    json.dumps(found)


class Reasoned(Everything):
    """Says that half of every score is due to a pair with a picture of its own, and half to one whose picture was not kept."""

    def explain(self, images: Sequence[np.ndarray], texts: Sequence[str], *, most: int) -> list[list[Any]]:
        kept = [SimpleNamespace(picture=image[:2, :2], text=f"like {text}", share=0.5) for image, text in zip(images, texts, strict=True)]
        return [[each, SimpleNamespace(picture=np.zeros((0, 0, 3), np.uint8), text="lost", share=0.5)][:most] for each in kept]


def test_what_a_ranking_rests_on_is_shown() -> None:
    found = shown(Reasoned(), asked(60))
    assert "because" in found["adapters"]
    item = found["items"][0]
    (reason,) = item["because"]
    assert (reason["text"], reason["share"]) == (f"like {item['ranked'][0]['text']}", 0.5)
    assert reason["image"].startswith("data:image/png;base64,")


def test_what_a_model_cannot_do_is_left_out() -> None:
    item = shown(fakes.noisy(), asked(5))["items"][0]
    assert {"caption", "drawing", "unmasked", "look"}.isdisjoint(item)
    assert {"answers", "ranked"} < set(item)
    assert set(shown(object(), asked(5))["items"][0]) == {"key", "image", "truth"}


def test_class_folders_show_the_class_that_fits_best(tmp_path: Path) -> None:
    samples = fakes.labelled(12, ("cat", "dog", "owl"))
    model = fakes.Embeds(
        lambda number: np.eye(4)[number % 3], lambda text: np.eye(4)[next((i for i, n in enumerate(("cat", "dog", "owl")) if n in text), 3)]
    )
    fakes.run(model, {"test": samples}, tmp_path, tasks=["zeroshot"])
    item = json.loads((tmp_path / "fakes/showcase.json").read_text())["items"][1]
    assert item["truth"] == ["dog"]
    assert [(each["text"], each["correct"]) for each in item["ranked"][:1]] == [("a photo of a dog.", True)]


def test_large_pictures_are_shown_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 300, 3)).astype(np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg;base64,")
    assert len(data_uri(noise)) < LARGEST * LARGEST
