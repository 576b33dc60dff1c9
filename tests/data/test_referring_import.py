"""Phrases with boxes: RefCOCO as the REFER toolkit, MDETR, Shikra, Qwen-VL and others pass it on, each in its layout; and bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.importers.auto import import_auto
from data.loader import in_order
from data.objects import referring
from data.sample import Object, Sample
from data.shards import DataError, find, splits
from tests.data.kit import encode

WIDTH, HEIGHT = 80, 40


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for number, name in enumerate(("COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg", "deep/3.jpg")):
        path = tmp_path / "home" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)))
    return tmp_path / "home"


FIRST, SECOND = "COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg"


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(records: list[Any]) -> str:
    return "\n".join(map(json.dumps, records))


def imported(path: Path, split: str | None = "train", **options: Any) -> dict[str, dict[str, Sample]]:
    out = path.parent / f"out of {path.name}"
    import_auto(path, out=out, split=split, **options)
    return {
        name: {Path(str(each.extra["file"])).name: each for batch in in_order(find(out, name), batch_size=100) for each in batch}
        for name in splits(out)
    }


def dropped(path: Path, split: str = "train") -> dict[str, int]:
    return json.loads((path.parent / f"out of {path.name}" / split / "index.json").read_text())["dropped"]


def named(sample: Sample) -> list[tuple[str, tuple[float, ...]]]:
    return [(phrase, thing.box) for phrase, thing in referring(sample)]


INSTANCES = {
    "images": [{"id": 1, "file_name": FIRST, "width": WIDTH, "height": HEIGHT}, {"id": 2, "file_name": SECOND}],
    "annotations": [
        {"id": 11, "image_id": 1, "category_id": 1, "bbox": [10.0, 5.0, 20.0, 30.5], "iscrowd": 0, "area": 1},
        {"id": 12, "image_id": 1, "category_id": 18, "bbox": [40, 0, 40, 40]},
        {"id": 13, "image_id": 2, "category_id": 1, "bbox": [0, 0, 8, 8]},
        {"id": 14, "image_id": 2, "category_id": 1, "bbox": [0, 0, 0, 8]},
        {"id": 15, "image_id": 2, "category_id": 1, "bbox": "none"},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
}


def ref(ann: int, image: int, split: str, *sentences: Any) -> dict[str, Any]:
    """As in refs(unc).p, where the file's name has the number of the annotation behind it."""
    said = [{"raw": text, "sent": text, "tokens": str(text).split(), "sent_id": 7} if text else {"sent_id": 8} for text in sentences]
    name = f"COCO_train2014_{image:012d}_{ann}.jpg"
    return {"ref_id": ann * 2, "ann_id": ann, "image_id": image, "file_name": name, "split": split, "category_id": 1, "sentences": said}


def test_refer_with_its_instances(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(home / "instances.json", INSTANCES)
    refs = [
        ref(11, 1, "train", "the man on the left", "man in blue", "man in blue"),
        ref(12, 1, "train", "the dog"),
        ref(13, 2, "testA", "a man"),
        ref(14, 2, "testA", "nothing"),
        ref(15, 2, "testB", "no numbers"),
        ref(99, 2, "val", "who?", "and who?"),
        ref(11, 1, "train", "", "him"),
        "not an object",
    ]
    path = write(home / "refs(unc).json", refs)
    found = imported(path, split=None)
    assert {split: list(samples) for split, samples in found.items()} == {"train": [FIRST], "testA": [SECOND]}
    sample = found["train"][FIRST]
    man, dog = (10, 5, 30, 35.5), (40, 0, 80, 40)
    assert named(sample) == [("the man on the left", man), ("man in blue", man), ("the dog", dog), ("him", man)]
    assert [(each.name, each.box) for each in sample.objects] == [("person", man), ("dog", dog)]
    assert dropped(path) == {
        "box that is not four numbers": 1,
        "box without an area": 1,
        "entry that is not an object": 1,
        "phrase of an unknown object": 2,
        "phrase that is not a text": 1,
    }
    assert "RefCOCO's phrases, with instances.json" in capsys.readouterr().out


def test_refer_without_instances_and_as_a_pickle_says_what_to_do(home: Path) -> None:
    with pytest.raises(DataError, match=r"Their boxes are in instances\.json: put it beside"):
        imported(write(home / "refs(google).json", [ref(11, 1, "train", "him")]))
    path = write(home / "refs(unc).p", "not read at all")
    for place in (path, home):
        with pytest.raises(DataError, match=r"(?s)refs\(unc\)\.p is a pickle: reading one can run any code.*write it as json.*python -c"):
            import_auto(place, out=home / "out", split="train")


def mdetr(number: int, name: str, caption: Any, dataset: str) -> dict[str, Any]:
    about = {"file_name": name, "height": HEIGHT, "width": WIDTH, "id": number, "original_id": number + 100}
    return about | {"caption": caption, "dataset_name": dataset, "tokens_negative": [[0, 9]]}


def test_mdetrs_json_of_refcoco_and_of_flickr(home: Path) -> None:
    """RefCOCO's caption is the phrase; of Flickr30k parts of it are, and the caption is one. A phrase of two boxes names no one object."""
    caption = "a man with a dog and two cats"
    content = {
        "info": [],
        "licenses": [],
        "images": [
            mdetr(0, FIRST, "the lady with the blue shirt", "refcoco"),
            mdetr(1, FIRST, "lady with back to us", "refcoco"),
            mdetr(2, SECOND, caption, "flickr"),
            mdetr(3, SECOND, None, "flickr"),
            {"id": 4},
        ],
        "annotations": [
            {"image_id": 0, "bbox": [1, 2, 10, 20], "tokens_positive": [[0, 28]], "category_id": 1, "id": 0, "area": 3, "iscrowd": 0},
            {"image_id": 1, "bbox": [1, 2, 10, 20], "tokens_positive": [[0, 4]], "id": 1},
            {"image_id": 2, "bbox": [0, 0, 5, 5], "tokens_positive": [[0, 5]], "id": 2},
            {"image_id": 2, "bbox": [5, 5, 5, 5], "tokens_positive": [[11, 16]], "id": 3},
            {"image_id": 2, "bbox": [20, 5, 5, 5], "tokens_positive": [[21, 29]], "id": 4},
            {"image_id": 2, "bbox": [40, 5, 5, 5], "tokens_positive": [[21, 29]], "id": 5},
            {"image_id": 2, "bbox": [40, 5, -5, 5], "tokens_positive": [[0, 5]], "id": 6},
            {"image_id": 2, "bbox": [40, 5, 5], "tokens_positive": [[0, 5]], "id": 7},
            {"image_id": 2, "bbox": [40, 5, 5, 5], "tokens_positive": [], "id": 8},
            {"image_id": 77, "bbox": [40, 5, 5, 5], "tokens_positive": [[0, 5]], "id": 9},
            "none",
        ],
        "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
    }
    path = write(home / "finetune_refcoco_val.json", content)
    found = imported(path, split=None)["val"]
    assert named(found[FIRST]) == [("the lady with the blue shirt", (1, 2, 11, 22)), ("lady with back to us", (1, 2, 11, 22))]
    assert [each.name for each in found[FIRST].objects] == ["the lady with the blue shirt"]
    assert found[FIRST].captions == ()
    assert named(found[SECOND]) == [("a man", (0, 0, 5, 5)), ("a dog", (5, 5, 10, 10))]
    assert found[SECOND].captions == (caption,)
    assert dropped(path, "val") == {
        "annotation of an unknown image": 2,
        "box that is not four numbers": 1,
        "box without an area": 1,
        "image entry without id or file_name": 1,
        "phrase of several boxes": 1,
        "phrase that is not a text": 2,
    }


SIZE = {"width": WIDTH, "height": HEIGHT}
BOX = (50.0, 10.0, 70.0, 36.0)
# Each says the same of the same picture.
RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "Shikra's": ({"img_path": FIRST, "expression": "the dog", "bbox": [50.0, 10.0, 70.0, 36.0], "dataset_name": "refcoco", **SIZE}, "xyxy"),
    "Qwen-VL's": ({"image": f"data/coco/train2014/{FIRST}", "sent": "the dog", "bbox": [50, 10, 70, 36], "id": 4, **SIZE}, "xyxy"),
    "X-VLM's": ({"image": FIRST, "text": "the dog", "bbox": [50, 10, 20, 26], "ref_id": 3, **SIZE}, "xywh"),
    "named xywh": ({"file_name": FIRST, "phrase": "the dog", "bbox_xywh": [50, 10, 20, 26]}, "xywh"),
    "named xyxy": ({"file_name": FIRST, "phrase": "the dog", "bbox_xyxy": [50, 10, 70, 36]}, "xyxy"),
    "normalised": ({"image": FIRST, "caption": "the dog", "box": [50 / 80, 10 / 40, 70 / 80, 36 / 40]}, "xyxy in shares"),
    "normalised xywh": ({"image": FIRST, "caption": "the dog", "box": [70 / 80, 30 / 40, 0.1, 0.1]}, "xywh in shares"),
    "several phrases": ({"image": FIRST, "sentences": ["the dog", "dog"], "bbox": [[50, 10, 70, 36]], **SIZE}, "xyxy"),
    "as texts": ({"image": FIRST, "refexp": "the dog", "bbox": "[50, 10, 70, 36]", "width": "80", "height": "40"}, "xyxy"),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_records_with_a_phrase_and_a_box(home: Path, name: str, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    record, form = RECORDS[name]
    path = write(home / f"refcoco_train{ending}", lines([record]) if ending == ".jsonl" else [record])
    (sample,) = imported(path, split=None)["train"].values()
    box = BOX if name != "normalised xywh" else (70, 30, 78, 34)
    assert named(sample)[0] == ("the dog", pytest.approx(box))
    assert len(sample.objects) == 1
    assert [phrase for phrase, _ in named(sample)] == (["the dog", "dog"] if name == "several phrases" else ["the dog"])
    assert f"{form.split(' in ')[0]} in {'shares of the sides' if 'shares' in form else 'pixels'}" in capsys.readouterr().out


def test_a_table_with_boxes(home: Path) -> None:
    path = write(home / "train.csv", f'image,expression,bbox_xyxy\n{FIRST},the dog,"[50, 10, 70, 36]"\n{FIRST},the cat,"[0, 0, 5, 5]"\n')
    (sample,) = imported(path, split=None)["train"].values()
    assert named(sample) == [("the dog", BOX), ("the cat", (0, 0, 5, 5))]


def test_what_a_box_is_follows_from_all_of_them(home: Path) -> None:
    """One bad box among many right ones does not turn the form round; it is counted."""
    corners = [[left, 5, left + 9, 20] for left in range(20)]
    for form, boxes in (("xyxy", corners), ("xywh", [[30 + a, 25, 9, 15] for a, *_ in corners])):
        records = [{"image": SECOND, "expression": f"number {number}", "bbox": box} for number, box in enumerate(boxes)]
        bad = [9, 9, 3, 30] if form == "xyxy" else [3, 2, 9, 0]
        path = write(home / f"{form}_train.json", [*records, {"image": SECOND, "expression": "bad", "bbox": bad}])
        (sample,) = imported(path, split=None)["train"].values()
        assert len(sample.objects) == 20
        assert sample.objects[1].box == ((1, 5, 10, 20) if form == "xyxy" else (31, 25, 40, 40))
        assert dropped(path) == {"box without an area": 1}


def test_a_form_that_is_not_clear_is_asked_for(home: Path) -> None:
    path = write(home / "refs_train.json", [{"image": FIRST, "expression": "the dog", "bbox": [10, 10, 20, 20], **SIZE}])
    with pytest.raises(DataError, match=r"left, top, width, height, or left, top, right, bottom: \[10.0, .*--boxes xywh or --boxes xyxy"):
        imported(path, split=None)
    assert named(imported(path, split=None, boxes="xywh")["train"][FIRST]) == [("the dog", (10, 10, 30, 30))]
    other = write(home / "more_train.json", [{"image": FIRST, "expression": "the dog", "bbox": [10, 10, 20, 20]}])
    assert named(imported(other, split=None, boxes="xyxy")["train"][FIRST]) == [("the dog", (10, 10, 20, 20))]


def test_bad_records_are_counted_by_kind(home: Path) -> None:
    good = {"image": FIRST, "expression": "the dog", "bbox_xyxy": [50, 10, 70, 36], **SIZE}
    bad = [
        good | {"bbox_xyxy": [1, 2, 3]},
        good | {"bbox_xyxy": [1, 2, 3, "far"]},
        good | {"bbox_xyxy": [1, 2, float("inf"), 4]},
        good | {"bbox_xyxy": None},
        good | {"bbox_xyxy": [30, 10, 30, 36]},
        good | {"bbox_xyxy": [90, 10, 95, 36]},
        good | {"bbox_xyxy": [-9, -9, -1, -1]},
        good | {"expression": 7},
        good | {"expression": " "},
        {name: value for name, value in good.items() if name != "image"},
        good | {"image": "missing.jpg"},
    ]
    path = write(home / "refs_train.json", [good, *bad])
    (sample,) = imported(path, split=None)["train"].values()
    assert named(sample) == [("the dog", BOX)]
    assert dropped(path) == {
        "box outside the image": 2,
        "box that is not four numbers": 4,
        "box without an area": 1,
        "no image file": 1,
        "phrase that is not a text": 2,
        "record without a picture": 1,
    }


def test_boxes_shrink_with_their_image(home: Path) -> None:
    for number, (name, box) in enumerate({"bbox_xyxy": [50, 10, 70, 36], "box": [50 / 80, 10 / 40, 70 / 80, 36 / 40]}.items()):
        path = write(home / f"train{number}.json", [{"image": FIRST, "expression": "the dog", name: box}])
        (sample,) = imported(path, size=20)["train"].values()
        assert sample.image.shape == (20, 40, 3)
        assert named(sample) == [("the dog", pytest.approx((25, 5, 35, 18)))]


def test_splits_and_captions_are_still_what_they_were(home: Path) -> None:
    """A split in each record; and a box of a whole list, or a caption without any, is no phrase."""
    records = [{"image": FIRST, "split": split, "expression": split, "bbox_xyxy": [1, 2, 3, 4]} for split in ("train", "testA", "testB")]
    found = imported(write(home / "refs.json", records), split=None)
    assert {split: named(samples[FIRST])[0][0] for split, samples in found.items()} == {name: name for name in ("train", "testA", "testB")}
    path = write(home / "captions_train.json", [{"image": FIRST, "caption": "two dogs", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}])
    sample = imported(path, split=None)["train"][FIRST]
    assert (sample.captions, sample.objects) == (("two dogs",), ())


def test_phrases_of_a_sample() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    star, moon = Object("star", (0, 0, 1, 1), {"colour": "red"}), Object("moon", (1, 1, 2, 2))
    plain = Sample("a", image, objects=(star, moon, moon))
    assert referring(plain) == [("the red star", star)]
    written = Sample("a", image, objects=(star, moon), extra={"referring": [["it", 1], ["the left one", 0], ["it again", 1]]})
    assert referring(written) == [("it", moon), ("the left one", star), ("it again", moon)]
    broken: list[Any] = [["it", 9], [3, 1], "it", ["it"], ["it", "1"], ["it", -1]]
    assert referring(Sample("a", image, objects=(star, moon), extra={"referring": broken})) == []
