"""Importers: what comes in is what comes out, and every row that cannot be used is counted by its reason."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.importers.__main__ import IMPORTERS, main
from data.importers.coco import import_coco
from data.importers.folder import import_folder
from data.importers.table import import_table
from data.loader import in_order
from data.sample import Sample
from data.shards import DataError, find
from tests.data.kit import encode, picture


def read(folder: Path, split: str) -> list[Sample]:
    return [sample for batch in in_order(find(folder, split), batch_size=100) for sample in batch]


def dropped(folder: Path, split: str) -> dict[str, int]:
    return json.loads((folder / split / "index.json").read_text())["dropped"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        (folder / name).write_bytes(encode(picture(number)))
    return folder


def coco_json(path: Path, images: list, annotations: list) -> Path:
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return path


def test_coco_keeps_captions_bytes_and_extra_fields(tmp_path: Path, images: Path) -> None:
    captions = coco_json(
        tmp_path / "captions.json",
        [{"id": 7, "file_name": "b.png", "width": 8, "height": 8, "group": "food"}, {"id": 3, "file_name": "a.png", "group": "animals"}],
        [{"image_id": 3, "caption": "an a"}, {"image_id": 7, "caption": "a b"}, {"image_id": 3, "caption": "letter ä"}],
    )
    import_coco(captions=captions, images=images, out=tmp_path / "out", split="train", label="group")
    first, second = read(tmp_path / "out", "train")
    assert (first.key, first.captions, first.label) == ("00000000", ("a b",), "food")
    assert first.extra == {"file": "b.png", "id": 7, "group": "food"}
    assert (second.captions, second.label) == (("an a", "letter ä"), "animals")
    assert (second.image == picture(0)).all()
    split = find(tmp_path / "out", "train")
    assert (split.name, split.samples, split.classes) == ("out", 2, ("animals", "food"))
    assert (images / "b.png").read_bytes() in Path(split.urls[0]).read_bytes()


def test_coco_counts_what_it_cannot_use(tmp_path: Path, images: Path) -> None:
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    names = ["a.png", "missing.png", "broken.jpg", "c.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0b"]
    (tmp_path / "secret.png").write_bytes(encode(picture(9)))
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    captions = coco_json(
        tmp_path / "captions.json",
        [*({"id": number, "file_name": name} for number, name in enumerate(names)), {"id": 0, "file_name": "b.png"}, {"id": 9}, "text"],
        [
            *({"image_id": number, "caption": "a caption"} for number in range(len(names)) if names[number] != "c.png"),
            {"image_id": 99, "caption": "nobody"},
            {"image_id": [1], "caption": "nobody"},
            {"image_id": 0, "caption": 5},
            {"image_id": 0},
            "text",
        ],
    )
    import_coco(captions=captions, images=images, out=tmp_path / "out", split="train")
    (sample,) = read(tmp_path / "out", "train")
    assert sample.captions == ("a caption",)
    assert dropped(tmp_path / "out", "train") == {
        "annotation of an unknown image": 2,
        "annotation whose caption is not a string": 3,
        "image entry with a used id": 1,
        "image entry without id or file_name": 2,
        "no captions": 1,
        "no image file": 1,
        "path outside the images folder": 3,
        "undecodable image": 1,
        "unreadable file": 1,
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": 5, "annotations": []}', "\xff"])
def test_coco_says_what_is_expected(tmp_path: Path, images: Path, content: str) -> None:
    (tmp_path / "captions.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"captions\.json is not"):
        import_coco(captions=tmp_path / "captions.json", images=images, out=tmp_path / "out", split="train")


def test_class_folders_with_and_without_names(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for folder, name in (("n01", "y.png"), ("n01", "x.png"), ("n02_dog", "sub/z.png"), ("n02_dog", "notes.txt")):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(encode(picture(4)))
    import_folder(images=root, out=tmp_path / "plain", split="test")
    samples = read(tmp_path / "plain", "test")
    assert [(sample.label, sample.extra["file"]) for sample in samples] == [
        ("n01", "n01/x.png"),
        ("n01", "n01/y.png"),
        ("n02 dog", "n02_dog/sub/z.png"),
    ]
    (root / "classes.json").write_text(
        json.dumps({"classes": [{"folder": "n02_dog", "name": "dog"}, {"folder": "n01", "name": "tabby cat"}]})
    )
    import_folder(images=root, out=tmp_path / "named", split="test")
    assert find(tmp_path / "named", "test").classes == ("dog", "tabby cat")
    assert [sample.label for sample in read(tmp_path / "named", "test")] == ["dog", "tabby cat", "tabby cat"]
    (root / "classes.json").write_text('{"classes": [{"folder": "n03", "name": "fish"}]}')
    with pytest.raises(FileNotFoundError, match="'n03'"):
        import_folder(images=root, out=tmp_path / "wrong", split="test")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables_group_the_captions_of_an_image(tmp_path: Path, images: Path, ending: str) -> None:
    rows = [("a.png", 'one, "quoted"', "x"), ("b.png", "two", ""), ("a.png", "another", "y"), ("c.png", " ", "z"), ("", "lost", "z")]
    table = tmp_path / f"table.{ending}"
    if ending == "jsonl":
        lines = [json.dumps({"image": path, "text": text, "source": source}) for path, text, source in rows]
        table.write_text("\ufeff" + "\n".join([*lines, "", "not json", "[1]"]), encoding="utf-8")
    else:
        import csv

        with table.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="," if ending == "csv" else "\t")
            writer.writerows([("image", "text", "source"), *rows])
    import_table(
        table=table, images=images, out=tmp_path / "out", split="val", path_column="image", caption_column="text", label_column="source"
    )
    first, second = read(tmp_path / "out", "val")
    assert (first.captions, first.label, first.extra) == (('one, "quoted"', "another"), "x", {"file": "a.png"})
    assert (second.captions, second.label) == (("two",), None)
    lost = {
        "row without a caption": 1,
        "row without a path": 1,
        "row without a label": 1,
        "label unlike that of the picture's first row": 1,
    }
    lines_lost = {"line that is not a json object": 2} if ending == "jsonl" else {}
    assert dropped(tmp_path / "out", "val") == lost | lines_lost


def test_a_table_without_the_columns_names_those_it_has(tmp_path: Path, images: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,text\na.png,x\n")
    with pytest.raises(DataError, match="no column 'path', only 'file', 'text'"):
        import_table(table=table, images=images, out=tmp_path / "out", split="val")
    with pytest.raises(DataError, match="name ending in"):
        import_table(table=images / "a.png", images=images, out=tmp_path / "out", split="val")


def test_images_are_shrunk_or_rewritten_where_needed(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "x").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(root / "x" / "0.jpg")
    Image.new("RGB", (30, 50), "red").save(root / "x" / "1.png")
    Image.new("RGB", (10, 12), "red").save(root / "x" / "2.bmp")
    Image.new("P", (10, 12)).save(root / "x" / "3.gif")
    Image.new("RGB", (10, 12), "red").save(root / "x" / "4.webp")
    import_folder(images=root, out=tmp_path / "out", split="train", size=20)
    split = find(tmp_path / "out", "train")
    assert [sample.image.shape[:2] for sample in read(tmp_path / "out", "train")] == [(20, 30), (33, 20), (12, 10), (12, 10), (12, 10)]
    assert split.decoded_bytes == 3 * (20 * 30 + 33 * 20 + 3 * 12 * 10)


def test_an_import_is_whole_or_not_there(tmp_path: Path, images: Path) -> None:
    captions = coco_json(tmp_path / "captions.json", [{"id": 1, "file_name": "nope.png"}], [{"image_id": 1, "caption": "x"}])
    with pytest.raises(DataError, match="none of 1 images could be used: no image file 1"):
        import_coco(captions=captions, images=images, out=tmp_path / "out", split="train")
    assert not (tmp_path / "out" / "train").exists()
    captions = coco_json(tmp_path / "captions.json", [{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "caption": "x"}])
    import_coco(captions=captions, images=images, out=tmp_path / "out", split="train")
    with pytest.raises(DataError, match="already there"):
        import_coco(captions=captions, images=images, out=tmp_path / "out", split="train")
    with pytest.raises(DataError, match="plain name"):
        import_coco(captions=captions, images=images, out=tmp_path / "out", split="../train")
    assert os.listdir(tmp_path / "out") == ["train"]


def test_many_rows_are_cut_into_shards(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.importers.write.SAMPLES_PER_SHARD", 2)
    rows = [{"id": number, "file_name": "a.png"} for number in range(5)]
    captions = coco_json(tmp_path / "c.json", rows, [{"image_id": number, "caption": str(number)} for number in range(5)])
    import_coco(captions=captions, images=images, out=tmp_path / "out", split="train")
    assert len(find(tmp_path / "out", "train").urls) == 3
    assert [sample.captions for sample in read(tmp_path / "out", "train")] == [(str(number),) for number in range(5)]


@pytest.mark.parametrize("importer", sorted(IMPORTERS))
def test_the_help_names_a_command_that_can_be_typed(importer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["importers", importer, "--help"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.startswith(f"usage: python -m data.importers {importer} [")
