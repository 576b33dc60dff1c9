from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data.sample import Object, Sample
from eval.adapters.scorers import Subject
from eval.captions.baselines import TrainingCaptions
from eval.captions.scores import Corpus
from eval.harness.source import in_memory
from eval.judges.clipscore import NamedCLIP
from eval.run import evaluate
from eval.scenes.content import content
from eval.tasks import captioning
from tests.eval import fakes


class Writes:
    """Captions by hand."""

    def __init__(self, write: Callable[[int], str]) -> None:
        self.write, self.written = write, 0

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        self.written += len(images)
        return [self.write(fakes.number_of(image)) for image in images]


def writes(captions: Sequence[str]) -> Writes:
    """Caption i of picture i; of any other picture (a blank one) "nothing"."""
    return Writes(lambda number: captions[number] if number < len(captions) else "nothing")


def scene(number: int, captions: Sequence[str], objects: Sequence[str], relations: Sequence[Any] = ()) -> Sample:
    """`objects` as "large solid red star"."""
    words = [each.split() for each in objects]
    things = tuple(Object(d, (0, 0, 1, 1), {"size": a, "fill": b, "colour": c, "place": "middle"}) for a, b, c, d in words)
    extra = {"relations": list(relations), "tone": "grey", "texture": "plain"}
    return Sample(key=f"{number:05d}", image=fakes.picture(number), captions=tuple(captions), objects=things, extra=extra)


STAR, MOON = "large solid red star", "small hollow blue moon"
TWO = scene(0, [f"a {STAR} and a {MOON}", "a red star above a blue moon"], [STAR, MOON], [[0, "above", 1], [1, "below", 0]])


def evaluated(model: Any, samples: list[Sample], out: Path, **options: Any) -> dict[str, Any]:
    return fakes.run(model, {"test": samples}, out, tasks=["captioning"], fresh=Writes(lambda number: "a"), **options)


def value(result: dict[str, Any], metric: str, variant: str = "model", split: str = "test") -> float:
    return fakes.value(result, "captioning", metric, variant, split)


def test_the_oracle_is_right_about_everything(tmp_path: Path) -> None:
    samples = fakes.single_objects()[:40]
    result = evaluated(writes([sample.captions[0] for sample in samples]), samples, tmp_path)
    right = [f"{thing} {rate}" for thing in ("object", "colour", "shape", "size", "fill") for rate in ("precision", "recall", "F1")]
    right += ["count", "all objects", "all details", "all true", "BLEU-1", "BLEU-4", "ROUGE-L", "unique captions"]
    for metric in right:
        assert value(result, metric) == pytest.approx(1, abs=1e-6), metric
        assert value(result, metric, "oracle") == pytest.approx(1, abs=1e-6), metric
    assert value(result, "CIDEr-D") == pytest.approx(10)
    assert value(result, "words") == 5
    assert fakes.cell(result, "captioning", "relation precision")["status"] == "not run"
    assert fakes.cell(result, "captioning", "METEOR")["note"].startswith("needs Java")
    assert fakes.cell(result, "captioning", "SPICE")["status"] == "not run"


def test_the_oracle_states_relations_where_a_reference_does(tmp_path: Path) -> None:
    said = replace(TWO, captions=(*TWO.captions, f"a {STAR} above a {MOON}"))
    result = evaluated(Writes(lambda number: "a"), [said], tmp_path)
    for metric in ("relation precision", "says a relation", "all details", "all true", "BLEU-4"):
        assert value(result, metric, "oracle") == pytest.approx(1, abs=1e-6), metric


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (f"a {MOON} and a {STAR}", {"all details": 1, "all true": 1, "object F1": 4, "says a relation": 0}),
        ("a red star and a blue moon", {"all details": 0, "all objects": 1, "all true": 1, "size recall": 0, "sizes said": 0}),
        ("a red star above a blue moon", {"relation precision": 1, "relations said": 1, "says a relation": 1, "all true": 1}),
        ("a blue moon above a red star", {"relation precision": 0, "relations said": 1, "all objects": 1, "all true": 0}),
        # Colours exchanged: both colours and both shapes are there, but neither object is.
        ("a blue star and a red moon", {"object F1": 0, "colour precision": 2, "shape recall": 2, "all objects": 0, "count": 1}),
        ("a small red star", {"object recall": 1, "objects said": 1, "size precision": 1, "sizes said": 1, "count": 0, "all true": 0}),
        # Both are small: one of them is.
        ("a small red star and a small blue moon", {"size precision": 1, "sizes said": 2, "all objects": 1, "all details": 0}),
        # The same object said twice is there once.
        ("a red star and a red star", {"object precision": 1, "objects said": 2, "colour recall": 1}),
        ("three objects: a red star and a blue moon", {"count": 0, "all objects": 1, "all true": 0}),
        ("a man on a bicycle", {"objects said": 0, "object F1": 0, "objects said and there": 2, "count": 0, "all true": 0}),
        ("", {"objects said": 0, "object recall": 0, "all true": 0}),
    ],
)
def test_what_a_caption_says(caption: str, expected: dict[str, float]) -> None:
    found = content(caption, TWO)
    assert {name: found[name] for name in expected} == expected


def test_ratios_are_of_all_captions_together(tmp_path: Path) -> None:
    """One caption names three objects of which one is there, the other one of one: precision is 2/4, recall 2/3."""
    samples = [TWO, scene(1, [f"a {STAR}"], [STAR])]
    captions = ["a red star, a pink heart and a cyan cross", "a red star"]
    result = evaluated(writes(captions), samples, tmp_path)
    assert value(result, "object precision") == pytest.approx(2 / 4)
    assert value(result, "object recall") == pytest.approx(2 / 3)
    assert value(result, "object F1") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_one_caption_for_everything(tmp_path: Path) -> None:
    samples = fakes.single_objects()[:40]
    result = evaluated(Writes(lambda number: "a large solid red circle"), samples, tmp_path)
    assert value(result, "unique captions") == pytest.approx(1 / 40)
    assert value(result, "all details") == pytest.approx(sum("large solid red circle" in s.captions[0] for s in samples) / 40)
    assert value(result, "all objects", "shuffled images") == pytest.approx(value(result, "all objects"))


def test_repetition_and_length(tmp_path: Path) -> None:
    result = evaluated(Writes(lambda number: "a red star, a red star, a red star."), fakes.captioned(3), tmp_path)
    assert value(result, "words") == 9
    assert value(result, "repeated 4-grams") == pytest.approx(3 / 6)  # six 4-grams, three of them different


def test_captions_without_words_are_zero_not_an_error(tmp_path: Path) -> None:
    result = evaluated(Writes(lambda number: " . "), fakes.captioned(3), tmp_path)
    for metric in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D", "words"):
        assert value(result, metric) == pytest.approx(0, abs=1e-6)
    assert fakes.cell(result, "captioning", "repeated 4-grams")["note"] == "no caption has four words"


def test_one_picture_has_no_cider(tmp_path: Path) -> None:
    samples = fakes.captioned(1)
    result = evaluated(writes([samples[0].captions[1]]), samples, tmp_path)
    assert value(result, "ROUGE-L") == 1
    assert fakes.cell(result, "captioning", "CIDEr-D")["status"] == "not run"
    assert "at least two" in fakes.cell(result, "captioning", "CIDEr-D")["note"]


def test_what_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without captions are left out, shifts have fewer, and pictures without known truth have only the standard metrics."""
    monkeypatch.setattr(captioning, "PRIMARY", 6)
    monkeypatch.setattr(captioning, "SHIFTED", 3)
    mute = [replace(sample, key=f"x{sample.key}", captions=(), label="thing") for sample in fakes.captioned(4)]
    splits = {"test": [*fakes.captioned(8), *mute], "style": fakes.captioned(8)}
    result = fakes.run(Writes(lambda number: f"caption {number}"), splits, tmp_path, tasks=["captioning"])
    assert fakes.cell(result, "captioning", "ROUGE-L")["n"] == 6
    assert fakes.cell(result, "captioning", "ROUGE-L", split="style")["n"] == 3
    assert not {"object F1", "all true"} & {cell["metric"] for cell in result["cells"]}
    assert "needs caption" in fakes.cell(result, "captioning", "CIDEr-D", "untrained")["note"]  # a dual encoder
    assert captioning.plan(fakes.in_memory("mute", {"test": mute})) == []


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_batches_and_interruptions_change_nothing(tmp_path: Path, batch_size: int) -> None:
    samples = fakes.single_objects()[:90]
    captions = [sample.captions[0] for sample in reversed(samples)]
    whole = evaluated(writes(captions), samples, tmp_path / "whole", batch_size=64)
    parts = evaluated(writes(captions), samples, tmp_path / "parts", batch_size=batch_size)
    assert parts["cells"] == whole["cells"]
    (path,) = (tmp_path / "parts" / "fakes").glob("captioning.test.model.jsonl")
    text = path.read_text()
    assert text == (tmp_path / "whole" / "fakes" / path.name).read_text()
    path.write_text(text[: len(text) // 2])
    again = writes(captions)
    assert evaluated(again, samples, tmp_path / "parts", batch_size=batch_size)["cells"] == whole["cells"]
    assert path.read_text() == text
    assert json.loads(text.splitlines()[1])["caption"] == captions[0]


# ----------------------------------------------------------------------------- controls of data whose truth is unknown


KINDS = ("a dog runs over the grass", "a white boat floats on the sea", "two children play with their ball", "an old man sits by a road")


def photos(count: int, start: int = 0) -> list[Sample]:
    """Pictures of four kinds in turns, without a known truth, each with its own place."""
    said = [KINDS[i % 4] for i in range(count)]
    captions = [(f"{kind} in place {i}", kind, f"{kind} quickly") for i, kind in enumerate(said)]
    return [Sample(key=f"{i:05d}", image=fakes.picture(start + i), captions=given) for i, given in enumerate(captions)]


def knows_kinds() -> NamedCLIP:
    """A dual encoder that tells the kinds of pictures and texts apart, and of a kind likes the longest text best."""

    def text(said: str) -> list[float]:
        return [float(kind in said) * len(said) for kind in KINDS] + [10.0]

    scorer = Subject(fakes.Embeds(lambda number: [float(number % 4 == kind) for kind in range(4)] + [0.0], text), 64).embeddings
    assert scorer
    return NamedCLIP("by hand", "w", "", scorer)


def compared(out: Path, *, train: list[Sample] | None = None, test: list[Sample] | None = None, clip: bool = True) -> dict[str, Any]:
    test = photos(20) if test is None else test
    source = in_memory("fakes", {"test": test} | ({"train": photos(40, 100)} if train is None else {"train": train} if train else {}))
    source.clip = knows_kinds() if clip else None
    quiet: dict[str, Any] = {"about": fakes.ABOUT, "weights": "w", "console": Console(quiet=True), "tasks": ["captioning"]}
    return evaluate(Writes(lambda number: "nothing"), Writes(lambda number: "a"), source, out, **quiet)


def named(result: dict[str, Any]) -> set[str]:
    return {cell["variant"] for cell in result["cells"] if cell["task"] == "captioning" and cell["value"] is not None}


OWN = {"constant sentence", "nearest training caption", "consensus of 30", "one annotator"}


def test_controls_of_real_pictures_come_in_their_order(tmp_path: Path) -> None:
    result = compared(tmp_path)
    assert named(result) >= OWN
    names = ("constant sentence", "nearest training caption", "consensus of 30")
    constant, nearest, consensus = (value(result, "CIDEr-D", variant) for variant in names)
    assert value(result, "CIDEr-D") == pytest.approx(0, abs=1e-6)
    assert 0 < constant < nearest < consensus
    assert value(result, "unique captions", "constant sentence") == pytest.approx(1 / 20)
    cell = fakes.cell(result, "captioning", "CIDEr-D", "constant sentence")
    assert cell["n"] == 20
    assert cell["low"] < cell["value"] < cell["high"]


def test_one_annotator_is_measured_against_the_others_alone(tmp_path: Path) -> None:
    """By hand: the last caption against the first two, with document frequencies of those."""
    samples = photos(20)
    expected = Corpus([sample.captions[:-1] for sample in samples]).score([sample.captions[-1] for sample in samples])
    result = compared(tmp_path, test=samples)
    found = value(result, "CIDEr-D", "one annotator")
    assert found == pytest.approx(np.mean([record["CIDEr-D"] for record in expected]))
    again = [replace(sample, captions=(*sample.captions, sample.captions[-1])) for sample in samples]
    assert found < value(compared(tmp_path / "same", test=again), "CIDEr-D", "one annotator")


def test_what_the_data_do_not_allow_is_left_out(tmp_path: Path) -> None:
    assert named(compared(tmp_path / "no clip", clip=False)) & OWN == {"constant sentence", "one annotator"}
    notes = {
        cell["variant"]: cell["note"] for cell in compared(tmp_path / "no clip", clip=False)["cells"] if cell.get("status") == "not run"
    }
    assert "make train-clip" in notes["nearest training caption"]
    assert "make train-clip" in notes["consensus of 30"]
    assert named(compared(tmp_path / "no train", train=[])) & OWN == {"one annotator"}
    single = [replace(sample, captions=sample.captions[:1]) for sample in photos(20)]
    assert named(compared(tmp_path / "one caption", test=single)) & OWN == OWN - {"one annotator"}
    assert not named(evaluated(Writes(lambda number: "a"), fakes.single_objects()[:40], tmp_path / "scenes")) & OWN  # the truth is known


def test_a_model_without_captions_has_none_of_them(tmp_path: Path) -> None:
    result = fakes.run(fakes.noisy(), {"test": photos(20), "train": photos(20, 100)}, tmp_path, tasks=["captioning"])
    assert not named(result)


def test_the_constant_sentence_is_the_training_caption_with_the_highest_cider() -> None:
    """By pycocoevalcap: each caption against all others, the references of one picture each. No word is repeated, so none is clipped."""
    rng = np.random.default_rng(0)
    nouns, verbs, places = ("dog", "cat", "girl", "boy"), ("runs", "jumps", "sits"), ("on grass", "in the snow", "near some old water", "")
    drawn = [" ".join(rng.choice(each) for each in (("a", "one"), nouns, verbs, places)) for _ in range(60)]
    texts = list(dict.fromkeys(text.strip() for text in drawn))
    corpus = Corpus([[text] for text in texts])
    scores = np.array([[record["CIDEr-D"] for record in corpus.score([text] * len(texts))] for text in texts])  # [caption, reference]
    assert len(texts) > 30
    assert TrainingCaptions(texts).constant() == texts[int(np.argmax(scores.sum(axis=1) - scores.diagonal()))]


def test_captions_repeated_empty_or_without_words_change_nothing() -> None:
    texts = ["a dog runs", "a dog runs fast", "the dog runs", "an airport at night", ""]
    assert TrainingCaptions(texts).constant() == "a dog runs"
    assert TrainingCaptions([*texts, *["an airport at night"] * 9]).captions.count("an airport at night") == 1  # repeated words count once
    assert TrainingCaptions(["?", "!"]).constant() in {"?", "!"}
    assert TrainingCaptions(["dog"]).constant() == "dog"
    assert not TrainingCaptions([""]).captions
