"""Published benchmarks of compositionality, entry by entry in their own formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.importers.aro import import_aro
from data.importers.sugarcrepe import import_sugarcrepe
from data.importers.winoground import import_winoground
from data.sample import Foil
from data.shards import DataError
from eval.harness.source import from_shards
from eval.tasks import foils, winoground
from tests.data.kit import encode, picture
from tests.data.test_importers import dropped, read


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("ex_0_img_0.png", "ex_0_img_1.png", "ex_1_img_0.png", "000000000139.jpg", "2370799.jpg")):
        (folder / name).write_bytes(encode(picture(number), "PNG" if name.endswith("png") else "JPEG"))
    return folder


def lines(path: Path, entries: list) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


WINOGROUND = [
    {
        "id": 0,
        "image_0": "ex_0_img_0",
        "image_1": "ex_0_img_1",
        "caption_0": "the cat carries the mouse",
        "caption_1": "the mouse carries the cat",
        "tag": "Noun",
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "Object",
    },
    {
        "id": 1,
        "image_0": "ex_1_img_0",
        "image_1": "ex_1_img_1",
        "caption_0": "tall trees and a small house",
        "caption_1": "small trees and a tall house",
        "tag": "Adjective-Size",
        "secondary_tag": "Morpheme-Level",
        "num_main_preds": 1,
        "collapsed_tag": "Object",
    },
]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_winoground_becomes_pairs_that_name_each_other(tmp_path: Path, images: Path, ending: str) -> None:
    examples = tmp_path / f"examples.{ending}"
    lines(examples, WINOGROUND) if ending == "jsonl" else examples.write_text(json.dumps(WINOGROUND))
    import_winoground(examples=examples, images=images, out=tmp_path / "out")
    first, second, third = read(tmp_path / "out", "test")
    assert (first.key, first.captions, first.extra["pair"]) == ("000000-0", ("the cat carries the mouse",), "000000-1")
    assert (second.key, second.captions, second.extra["pair"]) == ("000000-1", ("the mouse carries the cat",), "000000-0")
    about = {"file": "ex_0_img_0.png", "id": 0, "tag": "Noun", "num_main_preds": 1, "collapsed_tag": "Object"}
    assert first.extra == about | {"kind": "Object", "pair": "000000-1"}
    assert (second.image == picture(1)).all()
    assert third.extra["pair"] == "000001-1"
    assert dropped(tmp_path / "out", "test") == {"no image file": 1}
    (task,) = winoground.plan(from_shards(tmp_path / "out"))
    assert [measure.name for measure in task.measures] == ["text", "image", "group"]
    assert task.measures[0].note == "1 pairs; 1 samples without their partner left out"


def test_winoground_counts_what_is_no_pair(tmp_path: Path, images: Path) -> None:
    examples = lines(
        tmp_path / "x.jsonl", [WINOGROUND[0], {"image_0": "ex_0_img_0", "caption_0": "alone"}, 5, WINOGROUND[0] | {"caption_1": " "}]
    )
    with examples.open("a") as file:
        file.write('{"torn": ')
    import_winoground(examples=examples, images=images, out=tmp_path / "out")
    assert len(read(tmp_path / "out", "test")) == 2
    assert dropped(tmp_path / "out", "test") == {
        "entry that is not an object": 2,
        "entry without image_0, image_1, caption_0, caption_1": 2,
    }


def sugarcrepe(path: Path, *pairs: tuple[str, str]) -> Path:
    entries = {
        str(i): {"filename": "000000000139.jpg", "caption": true, "negative_caption": false} for i, (true, false) in enumerate(pairs)
    }
    path.write_text(json.dumps(entries, indent=4))
    return path


def test_sugarcrepe_gathers_the_foils_of_a_picture_by_file(tmp_path: Path, images: Path) -> None:
    one = sugarcrepe(
        tmp_path / "swap_att.json", ("A white chair by a red table.", "A red chair by a white table."), ("A lamp. ", "No lamp.")
    )
    two = sugarcrepe(tmp_path / "add_obj.json", ("A lamp. ", "A lamp and a dog."))
    import_sugarcrepe(foils=(one, two), images=images, out=tmp_path / "out")
    (sample,) = read(tmp_path / "out", "test")
    assert sample.captions == ("A white chair by a red table.", "A lamp. ")
    assert sample.foils == (
        Foil("A white chair by a red table.", "A red chair by a white table.", "swap_att"),
        Foil("A lamp. ", "No lamp.", "swap_att"),
        Foil("A lamp. ", "A lamp and a dog.", "add_obj"),
    )
    (task,) = foils.plan(from_shards(tmp_path / "out"))
    assert {measure.name: measure.note for measure in task.measures} == {"add_obj": "1 foils", "swap_att": "2 foils"}


def test_aro_cuts_out_the_box_and_keeps_the_relation(tmp_path: Path, images: Path) -> None:
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)).save(images / "2370799.jpg", quality=100)
    swap = {"image_id": 2370799, "image_path": "2370799.jpg", "bbox_x": 10, "bbox_y": 5, "bbox_w": 20, "bbox_h": 15}
    relation = swap | {
        "relation_name": "behind",
        "true_caption": "the wall is behind the cup",
        "false_caption": "the cup is behind the wall",
    }
    attribution = swap | {
        "attributes": ["white", "open"],
        "bbox_w": 1000,  # boxes reach beyond some photos
        "true_caption": "the white cup and the open door",
        "false_caption": "the open cup and the white door",
    }
    useless = [relation | {"bbox_x": 60}, relation | {"bbox_x": None}, relation | {"false_caption": ""}, {"image": "2370799.jpg"}]
    files = [tmp_path / "visual_genome_relation.json", tmp_path / "visual_genome_attribution.json"]
    files[0].write_text(json.dumps([relation, *useless]))
    files[1].write_text(json.dumps([attribution]))
    import_aro(cases=tuple(files), images=images, out=tmp_path / "out")
    first, second = read(tmp_path / "out", "test")
    assert first.foils == (Foil("the wall is behind the cup", "the cup is behind the wall", "relation"),)
    assert first.extra == {"file": "2370799.jpg", "image_id": 2370799, "relation_name": "behind"}
    assert first.image.shape == (15, 20, 3)
    assert second.image.shape == (15, 50, 3)
    assert (second.foils[0].kind, second.extra["attributes"]) == ("attribution", ["white", "open"])
    whole = np.asarray(Image.open(images / "2370799.jpg"))
    assert np.abs(first.image.astype(int) - whole[5:20, 10:30]).mean() < 12  # written as a JPEG once more
    assert dropped(tmp_path / "out", "test") == {"box outside the image": 1, "entry that is neither a swap nor an order": 3}


def test_aro_orders_have_a_foil_for_every_shuffle_that_changed_something(tmp_path: Path, images: Path) -> None:
    true = "a man with a red helmet"
    shuffled = ["a helmet with a red man", true, "man a with red a helmet", "red helmet a man with a"]
    entries = [{"image": "000000000139.jpg", "caption_options": options} for options in ([true, *shuffled], [true], [], [true, 5], "text")]
    cases = lines(tmp_path / "coco_order.jsonl", entries)
    import_aro(cases=(cases,), images=images, out=tmp_path / "out")
    (sample,) = read(tmp_path / "out", "test")
    assert [(foil.foil, foil.kind) for foil in sample.foils] == [(text, "order") for text in shuffled if text != true]
    assert dropped(tmp_path / "out", "test") == {"entry that is neither a swap nor an order": 3, "no foils": 1}


@pytest.mark.parametrize(
    ("name", "content"), [("x.json", "{"), ("x.json", "5"), ("x.json", "[]"), ("x.json", '{"a": 1}'), ("x.jsonl", "text\n")]
)
def test_a_file_without_entries_is_named(tmp_path: Path, images: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    for importer in (
        lambda path: import_winoground(examples=path, images=images, out=tmp_path / "out"),
        lambda path: import_sugarcrepe(foils=(path,), images=images, out=tmp_path / "out"),
        lambda path: import_aro(cases=(path,), images=images, out=tmp_path / "out"),
    ):
        with pytest.raises(DataError, match=rf"{name} .*Expected an array or an object of objects"):
            importer(tmp_path / name)
    assert not (tmp_path / "out").exists()
