from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.sample import Object, Sample
from data.scenes.language import parse
from data.scenes.world import COLOURS, HELD_OUT, RELATIONS, SHAPES
from eval.base.records import RecordFile
from eval.harness.source import in_memory, spread
from eval.report.sheet import COLUMNS, FRAME, GREEN, RED, ROWS
from eval.tasks import drawing
from eval.tasks.drawing import Drawing, held_out_prompts, judge, plan, seen_prompts
from tests.eval import fakes

SPLITS = {name: fakes.single_objects()[:40] for name in ("train", "test", "heldout", "style")}


class Draws:
    """Draws, instead of each prompt, the one that `change` makes of it, as a picture that says its number in `drawn`."""

    def __init__(self, change: Callable[[str], str] = lambda text: text) -> None:
        self.change = change
        self.drawn: list[str] = []

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> list[np.ndarray]:
        self.drawn += [self.change(text) for text in texts]
        return [fakes.picture(DRAWN.setdefault(self.change(text), len(DRAWN))) for text in texts]


DRAWN: dict[str, int] = {}


def read(images: Sequence[np.ndarray]) -> list[tuple[list[Object], dict[str, str]]]:
    """A perfect recogniser of what `Draws` drew, and blind for real scenes."""
    texts = {number: text for text, number in DRAWN.items()}
    return [(things(texts[fakes.number_of(image)]) if image.shape[0] == 2 else [], {}) for image in images]


def things(text: str) -> list[Object]:
    """Objects in a row or a column, as the text has them; nothing for a text without objects."""
    claims, found, x, y = parse(text), [], 32, 32
    steps = {"left": (20, 0), "right": (-20, 0), "above": (0, 20), "below": (0, -20)}
    for number, said in enumerate(claims.objects):
        looks = {"size": "large", "fill": "solid"} | said
        found.append(Object(looks.pop("shape"), (x, y, x, y), looks))
        dx, dy = next((steps[name] for i, name, _ in claims.relations if i == number), (20, 20))
        x, y = x + dx, y + dy
    return found


@pytest.fixture(autouse=True)
def _recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_reader", lambda source: read)


def ask(model: Any, out: Path, **options: Any) -> dict[str, Any]:
    return fakes.run(model, SPLITS, out, tasks=["drawing"], fresh=Draws(lambda text: ""), **options)


def test_who_draws_what_is_asked_gets_everything_right(tmp_path: Path) -> None:
    result = ask(Draws(), tmp_path)
    for split in ("test", "heldout"):
        for metric in ("shape", "colour", "size", "fill", "colour+shape", "two objects", "relation", "count"):
            assert fakes.value(result, "drawing", metric, split=split) == 1
        assert fakes.value(result, "drawing", "blank", split=split) == 0
    assert fakes.value(result, "drawing", "blank", "untrained") == 1
    assert fakes.value(result, "drawing", "shape", "untrained") == 0
    assert fakes.cell(result, "drawing", "shape", "shuffled images")["status"] == "n/a"
    assert {cell["split"] for cell in result["cells"]} == {"test", "heldout"}


def test_one_drawing_for_every_prompt_is_chance(tmp_path: Path) -> None:
    result = ask(Draws(lambda text: "a large solid red star"), tmp_path)
    for metric in ("shape", "colour", "size", "fill"):
        chance = fakes.value(result, "drawing", metric, "chance")
        assert fakes.value(result, "drawing", metric) == pytest.approx(chance, abs=0.06), metric
    assert fakes.value(result, "drawing", "colour+shape", "chance") == pytest.approx(1 / 72)
    assert fakes.value(result, "drawing", "two objects") == 0


def test_exchanged_roles_cost_the_relation_alone(tmp_path: Path) -> None:
    def exchange(text: str) -> str:
        return text if "small" in text or "large" in text else text.replace("left", "?").replace("right", "left").replace("?", "right")

    result = ask(Draws(exchange), tmp_path)
    assert fakes.value(result, "drawing", "two objects") == 1
    assert fakes.value(result, "drawing", "relation") == pytest.approx(0.5, abs=0.02)


def _object(text: str, x: float = 0, y: float = 0) -> Object:
    size, fill, colour, shape = text.split()
    return Object(shape, (x, y, x, y), {"size": size, "fill": fill, "colour": colour})


def test_of_several_objects_the_most_certain_is_judged_and_the_others_count() -> None:
    sample = Sample("0", fakes.picture(0), ("a large solid red star",), objects=(_object("large solid red star"),))
    record = judge(sample, [_object("large hollow red star"), _object("large solid red star")])
    assert (record["colour+shape"], record["fill"], record["count"], record["blank"]) == (1, 0, 0, 0)
    assert judge(sample, [])["shape"] == 0
    assert judge(sample, [])["blank"] == 1


def test_a_relation_needs_both_objects_where_they_were_asked_for() -> None:
    objects = (_object("large solid red star"), _object("large solid blue moon"))
    sample = Sample("0", fakes.picture(0), ("a red star above a blue moon",), objects=objects)
    star, moon = _object("small hollow red star", 30, 10), _object("small solid blue moon", 30, 50)
    assert judge(sample, [moon, star]) == {"count": 1, "blank": 0, "two objects": 1, "relation": 1}
    assert judge(sample, [replace(moon, box=(30, 0, 30, 0)), star])["relation"] == 0
    assert judge(sample, [replace(moon, box=(60, 40, 60, 40)), star])["relation"] == 0  # too diagonal to call
    assert judge(sample, [star, _object("large solid red moon", 30, 50)])["two objects"] == 0


def test_prompts_cover_every_pair_and_no_prompt_of_test_has_a_held_out_one() -> None:
    seen, held = [[parse(text) for text in make()] for make in (seen_prompts, held_out_prompts)]
    pairs = [{(said["colour"], said["shape"]) for said in claims.objects} for claims in seen]
    assert set().union(*pairs) == {(colour, shape) for colour in COLOURS for shape in SHAPES} - HELD_OUT
    assert all({(said["colour"], said["shape"]) for said in claims.objects} & HELD_OUT for claims in held)
    for prompts in (seen, held):
        relations = [name for claims in prompts for _, name, _ in claims.relations]
        assert [relations.count(name) for name in RELATIONS] == [len(relations) / 4] * 4
    assert seen_prompts() == seen_prompts()
    assert len(set(seen_prompts())) == len(seen_prompts()) == 182


def test_the_real_picture_of_each_prompt_is_what_it_says() -> None:
    for task in plan(in_memory("fakes", SPLITS)):
        for sample in task.samples:
            said = parse(sample.captions[0]).objects
            assert [(each["colour"], each["shape"]) for each in said] == [(t.attributes["colour"], t.name) for t in sample.objects]


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_the_batch_size_changes_nothing_and_what_was_killed_is_completed(tmp_path: Path, batch_size: int) -> None:
    whole = ask(Draws(), tmp_path / "whole", batch_size=64)
    assert ask(Draws(), tmp_path / "other", batch_size=batch_size)["cells"] == whole["cells"]
    path = tmp_path / "other" / "fakes" / "drawing.test.model.jsonl"
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    model = Draws()
    assert ask(model, tmp_path / "other", batch_size=batch_size)["cells"] == whole["cells"]
    assert path.read_text() == content
    assert [model.drawn.count(prompt) for prompt in seen_prompts()] == [1] * 182


def test_drawings_are_stored_and_named_by_their_records(tmp_path: Path) -> None:
    ask(Draws(), tmp_path)
    folder = tmp_path / "fakes"
    lines = [json.loads(line) for line in (folder / "drawing.test.model.jsonl").read_text().splitlines()[1:-1]]
    assert len({line["drawing"] for line in lines}) == 182
    for line in lines[::40]:
        with Image.open(folder / line["drawing"]) as picture:
            assert fakes.number_of(np.asarray(picture)) == DRAWN[line["prompt"]]


def test_the_sheet_frames_what_is_right_in_green_and_what_is_wrong_in_red(tmp_path: Path) -> None:
    ask(Draws(lambda text: text.replace("blue", "red")), tmp_path)
    folder = tmp_path / "fakes"
    lines = [json.loads(line) for line in (folder / "drawing.test.model.jsonl").read_text().splitlines()[1:-1]]
    sheet = np.asarray(Image.open(folder / "drawings.png"))
    frames = sheet[FRAME :: sheet.shape[0] // ROWS, FRAME :: sheet.shape[1] // COLUMNS].reshape(-1, 3)
    assert [tuple(colour) for colour in frames] == [RED if "blue" in line["prompt"] else GREEN for line in spread(lines, COLUMNS * ROWS)]


def test_a_model_that_cannot_draw_costs_no_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_reader", lambda source: None)
    result = fakes.run(fakes.noisy(), SPLITS, tmp_path, tasks=["drawing"])
    assert fakes.cell(result, "drawing", "shape")["note"] == "needs draw"
    assert fakes.cell(result, "drawing", "shape", "oracle")["status"] == "not run"


def test_other_data_and_data_without_a_train_split_plan_nothing() -> None:
    assert plan(in_memory("fakes", {"test": fakes.single_objects()})) == []
    assert plan(in_memory("fakes", {"train": fakes.captioned(3), "test": fakes.captioned(3)})) == []


def test_a_limit_asks_for_fewer() -> None:
    tasks = plan(in_memory("fakes", SPLITS, limit=10))
    assert [(task.split, len(task.samples)) for task in tasks] == [("test", 10), ("heldout", 10)]
    assert all(isinstance(task, Drawing) for task in tasks)


def test_pictures_of_records_are_written_before_their_lines(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "task.test.model.jsonl", {}, ["a/b"], 4)
    file.append([{"i": 0, "key": "a/b", "drawing": fakes.picture(3), "x": 1.0}])
    assert file.done == [{"i": 0, "key": "a/b", "drawing": "task.test.model/00000-drawing.png", "x": 1.0}]
    assert (tmp_path / file.done[0]["drawing"]).exists()
