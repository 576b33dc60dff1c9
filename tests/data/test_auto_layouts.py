"""`auto` on whole folders, laid out as public data sets are when they are unpacked, and on the variants that people make of them."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data.importers.auto import import_auto
from data.sample import Sample
from data.shards import DataError
from tests.data.kit import encode, picture
from tests.data.test_auto_import import captions, dropped, imported, write


def pictures(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number)))


def coco(names: list[str], **more: Any) -> dict[str, Any]:
    return {"images": [{"id": number, "file_name": name} for number, name in enumerate(names, 1)], "annotations": [], **more}


DOG = [{"id": 3, "name": "dog"}]


@pytest.fixture
def coco2017(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for split, name in (("train2017", "000000000009.jpg"), ("val2017", "000000000139.jpg")):
        pictures(root, f"{split}/{name}")
        said = [{"image_id": 1, "caption": f"a dog of {split}"}]
        boxes = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]
        write(root / "annotations" / f"captions_{split}.json", coco([name], annotations=said))
        write(root / "annotations" / f"instances_{split}.json", coco([name], annotations=boxes, categories=DOG))
        keypoints = [{"id": 1, "name": "person", "keypoints": ["nose"]}]
        write(root / "annotations" / f"person_keypoints_{split}.json", coco([name], annotations=boxes, categories=keypoints))
    return root


def test_coco_as_it_is_unpacked(coco2017: Path) -> None:
    """Both splits, captions with objects; the folders of pictures are no classes."""
    found = imported(coco2017, split=None)
    assert {split: (captions(samples), samples[0].objects[0].name) for split, samples in found.items()} == {
        "train": ({"000000000009.jpg": ("a dog of train2017",)}, "dog"),
        "val": ({"000000000139.jpg": ("a dog of val2017",)}, "dog"),
    }


def test_one_split_of_a_folder(coco2017: Path) -> None:
    assert list(imported(coco2017, split="val")) == ["val"]
    with pytest.raises(DataError, match=r"several annotation files: annotations/captions_train2017.json, .*Name one"):
        import_auto(coco2017, out=coco2017 / "out", split="test")


def test_a_file_in_a_folder_of_annotations_finds_the_pictures_beside_it(coco2017: Path) -> None:
    path = coco2017 / "annotations" / "captions_val2017.json"
    assert captions(imported(path, split=None)["val"]) == {"000000000139.jpg": ("a dog of val2017",)}
    with pytest.raises(DataError, match=r"COCO's keypoints.* instances_"):
        imported(coco2017 / "annotations" / "person_keypoints_val2017.json")


def test_pictures_of_splits_are_no_classes(coco2017: Path) -> None:
    (coco2017 / "annotations").rename(coco2017.parent / "elsewhere")
    with pytest.raises(DataError, match="there are pictures, but no annotations"):
        imported(coco2017)


def test_cocos_numbers_in_names_of_either_year(tmp_path: Path) -> None:
    """VQAv2 names pictures of 2014, and localized narratives have the number alone."""
    pictures(tmp_path, "val2017/000000000139.jpg", "val2017/000000000139999.jpg")
    asked = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 139, "question": "what?"}]}
    write(tmp_path / "V2_mscoco_val2014_Annotations.json", {"annotations": [{"question_id": 1, "answers": [{"answer": "a"}]}]})
    (sample,) = imported(write(tmp_path / "V2_OpenEnded_mscoco_val2014_Questions.json", asked), split=None)["val"]
    assert sample.extra["file"] == "val2017/000000000139.jpg"
    lines = [{"dataset_id": "mscoco_val2017", "image_id": number, "caption": "a dog"} for number in ("139", "0139")]
    path = write(tmp_path / "coco_val_localized_narratives.jsonl", "\n".join(map(json.dumps, lines)))
    assert len(imported(path, split=None)["val"]) == 1
    assert dropped(path, "val") == {"no image file": 1}  # 0139 is another name


def test_vqas_answers_alone_say_what_is_missing(tmp_path: Path) -> None:
    content = {"data_subtype": "val2014", "annotations": [{"question_id": 1, "image_id": 8, "answers": [{"answer": "a"}]}]}
    with pytest.raises(DataError, match=r"VQAv2's answers. Put the questions beside"):
        imported(write(tmp_path / "v2_mscoco_val2014_annotations.json", content))


def test_flickr8k_as_it_is_unpacked(tmp_path: Path) -> None:
    """The published lists tell the splits; the lemmas are the same captions again."""
    names = ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    root, texts = tmp_path / "Flickr8k", tmp_path / "Flickr8k" / "Flickr8k_text"
    pictures(root, *(f"Flicker8k_Dataset/{name}" for name in names))
    lines = "".join(f"{name}#{number}\tA dog {number} .\n" for name in names for number in range(2))
    write(texts / "Flickr8k.token.txt", lines)
    write(texts / "Flickr8k.lemma.token.txt", lines.lower())
    write(texts / "CrowdFlowerAnnotations.txt", "1.jpg\t2.jpg#1\t0\t0\t3\n")
    write(texts / "readme.txt", "Please cite us.\n")
    for split, name in zip(("train", "dev", "test"), names, strict=False):
        write(texts / f"Flickr_8k.{split}Images.txt", f"{name}\n")
    expected = {split: {name: ("A dog 0 .", "A dog 1 .")} for split, name in zip(("train", "val", "test"), names, strict=False)}
    for path in (root, texts / "Flickr8k.token.txt"):
        found = imported(path, split=None)
        assert {split: captions(samples) for split, samples in found.items()} == expected
    assert dropped(root, "val") == {"picture that is in no list of a split": 1}


def test_flickr30k_as_it_is_unpacked(tmp_path: Path) -> None:
    pictures(tmp_path, "flickr30k/flickr30k-images/1.jpg")
    write(tmp_path / "flickr30k" / "results_20130124.token", "1.jpg#0\tTwo dogs .\n1.jpg#1\tA dog .\n")
    assert captions(imported(tmp_path / "flickr30k")["train"]) == {"1.jpg": ("Two dogs .", "A dog .")}


def test_flickr30ks_table_of_the_hub(tmp_path: Path) -> None:
    pictures(tmp_path, "1.jpg", "2.jpg")
    rows = [
        "raw,sentids,split,filename,img_id",
        '"[""A dog ."", ""Two dogs .""]","[0, 1]",train,1.jpg,0',
        '"[""A cat .""]",[2],test,2.jpg,1',
    ]
    found = imported(write(tmp_path / "flickr_annotations_30k.csv", "\n".join(rows)), split=None)
    assert {split: captions(samples) for split, samples in found.items()} == {
        "train": {"1.jpg": ("A dog .", "Two dogs .")},
        "test": {"2.jpg": ("A cat .",)},
    }


@pytest.mark.parametrize("name", ["CLEVR_v1.0", "CLEVR_v1.0/questions/CLEVR_val_questions.json"])
def test_clevr_as_it_is_unpacked(tmp_path: Path, name: str) -> None:
    root = tmp_path / "CLEVR_v1.0"
    pictures(root, "images/val/CLEVR_val_000000.png")
    asked = [{"image_filename": "CLEVR_val_000000.png", "question": "How many?", "answer": "3", "split": "val"}]
    write(root / "questions" / "CLEVR_val_questions.json", {"info": {}, "questions": asked})
    write(root / "scenes" / "CLEVR_val_scenes.json", {"info": {}, "scenes": [{"image_filename": "CLEVR_val_000000.png", "objects": []}]})
    (sample,) = imported(tmp_path / name, split=None)["val"]
    assert sample.questions[0].answer == "3"


def test_popes_files_are_one_set(tmp_path: Path) -> None:
    pictures(tmp_path / "pope", "val2014/COCO_val2014_000000000001.jpg")
    for kind in ("random", "popular", "adversarial"):
        line = {"question_id": 1, "image": "COCO_val2014_000000000001.jpg", "text": f"Is there a {kind}?", "label": "yes"}
        write(tmp_path / "pope" / f"coco_pope_{kind}.json", json.dumps(line) + "\n")
    (sample,) = imported(tmp_path / "pope", split="test")["test"]
    assert sorted(question.kind for question in sample.questions) == ["pope-adversarial", "pope-popular", "pope-random"]


def test_a_genome_with_files_that_are_not_imported(tmp_path: Path) -> None:
    pictures(tmp_path / "vg", "VG_100K_2/7.jpg")
    box = {"x": 1, "y": 2, "w": 3, "h": 4}
    write(tmp_path / "vg" / "objects.json", [{"image_id": 7, "objects": [{"names": ["tree"], **box}], "image_url": "http://x"}])
    write(tmp_path / "vg" / "relationships.json", [{"image_id": 7, "relationships": []}])
    write(tmp_path / "vg" / "image_data.json", [{"image_id": 7, "url": "http://x", "width": 9}])
    (sample,) = imported(tmp_path / "vg")["train"]
    assert sample.objects[0].name == "tree"


def test_food101_as_it_is_unpacked(tmp_path: Path) -> None:
    pictures(tmp_path / "food-101", "images/apple_pie/1.jpg", "images/sushi/2.jpg")
    write(tmp_path / "food-101" / "meta" / "classes.txt", "apple_pie\nsushi\n")
    write(tmp_path / "food-101" / "meta" / "train.json", {"apple_pie": ["apple_pie/1"], "sushi": ["sushi/2"]})
    assert [sample.label for sample in imported(tmp_path / "food-101")["train"]] == ["apple pie", "sushi"]


@pytest.mark.parametrize("names", [("A.JPG", "A.TXT"), ("a.jpeg", "A.txt"), ("b.PNG", "b.Caption")])
def test_texts_beside_pictures_in_any_case(tmp_path: Path, names: tuple[str, str]) -> None:
    pictures(tmp_path / "mine", f"deep/{names[0]}")
    write(tmp_path / "mine" / "deep" / names[1], "a dog\n")
    assert captions(imported(tmp_path / "mine")["train"]) == {names[0]: ("a dog",)}


def test_boxes_beside_pictures_are_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "yolo", "a.jpg")
    write(tmp_path / "yolo" / "a.txt", "0 0.5 0.5 0.1 0.25\n1 0.1 0.2 1e-1 .5\n")
    with pytest.raises(DataError, match=r"numbers, as YOLO's boxes. Expected captions"):
        imported(tmp_path / "yolo")


def test_img2datasets_files_beside_its_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = tmp_path / "files"
    pictures(root, "00000/000000000.jpg")
    write(root / "00000" / "000000000.txt", "a dog")
    write(root / "00000" / "000000000.json", {"url": "http://x", "caption": "a dog", "key": "000000000"})
    about = {
        "url": ["http://x", "http://y"],
        "caption": ["a dog", "gone"],
        "key": ["000000000", "000000001"],
        "status": ["success", "failed"],
    }
    parquet.write_table(pyarrow.table(about), root / "00000.parquet")
    write(root / "00000_stats.json", {"count": 2, "successes": 1})
    assert captions(imported(root)["train"]) == {"000000000.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        (
            "cc12m.tsv",
            "http://x.org/1.jpg\ta dog runs\nhttp://x.org/2.jpg\ta cat\n",
            "--input_format tsv --url_col url --caption_col caption",
        ),
        ("laion.csv", "SAMPLE_ID,URL,TEXT\n1,http://x.org/1.jpg,a dog\n", "--input_format csv --url_col URL --caption_col TEXT"),
        ("mine.txt", "Image_URL\tTitle\nhttp://x.org/1.jpg\ta dog\n", "--input_format tsv --url_col Image_URL --caption_col Title"),
        ("bare.jsonl", '{"url": "http://x.org/1.jpg"}\n', "--input_format jsonl --url_col url --output_format"),
    ],
)
def test_the_command_for_addresses_names_the_columns_as_they_are(tmp_path: Path, name: str, content: str, command: str) -> None:
    with pytest.raises(DataError, match=command):
        imported(write(tmp_path / name, content))


def test_conceptual_12m_is_told_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="first line, `url<tab>caption`"):
        imported(write(tmp_path / "cc12m.tsv", "http://x.org/1.jpg\ta dog runs\n"))


def test_parquet_whose_folders_or_columns_tell_the_split(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def table(*texts: str, **more: list[str]) -> Any:
        images = [{"bytes": encode(picture(number)), "path": None} for number in range(len(texts))]
        return pyarrow.table({"image": images, "caption": list(texts), **more})

    for split in ("train", "validation"):
        path = tmp_path / "converted" / "default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(table(f"of {split}"), path)
    found = imported(tmp_path / "converted", split=None)
    assert {split: [each.captions for each in samples] for split, samples in found.items()} == {
        "train": [("of train",)],
        "val": [("of validation",)],
    }
    path = tmp_path / "TEST-00000-of-00001.parquet"
    parquet.write_table(table("a", "b", "c", "d", split=["train", "val", "restval", "test"]), path)
    found = imported(path, split=None)
    assert {split: [each.captions[0] for each in samples] for split, samples in found.items()} == {
        "train": ["a", "c"],
        "val": ["b"],
        "test": ["d"],
    }


def test_parquet_that_is_torn_in_its_middle(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    images = [{"bytes": encode(picture(number)), "path": None} for number in range(9)]
    parquet.write_table(pyarrow.table({"image": images, "caption": ["a dog"] * 9}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train.parquet is damaged"):
        imported(path)


def test_parquet_of_conversations(tmp_path: Path) -> None:
    """The Cauldron: a list with one picture, and pairs of what user and assistant say. Class names, where other columns are lists."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    image = {"bytes": encode(picture(0)), "path": None}
    talk = [{"user": "What is it?", "assistant": "A dog.", "source": "x"}, {"user": "Sure?", "assistant": "Yes.", "source": "x"}]
    table = pyarrow.table({"images": [[image], [image, image]], "texts": [talk, talk]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    (sample,) = imported(tmp_path / "train-00000-of-00001.parquet", split=None)["train"]
    assert [(each.question, each.answer) for each in sample.questions] == [("What is it?", "A dog."), ("Sure?", "Yes.")]
    assert dropped(tmp_path / "train-00000-of-00001.parquet") == {"record with several pictures": 1}

    features = {"tags": [{"_type": "Value"}], "coarse": {"_type": "ClassLabel", "names": ["x", "y"]}}
    features["fine_label"] = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    table = pyarrow.table({"img": [image], "coarse": [0], "fine_label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "test.parquet")
    assert [sample.label for sample in imported(tmp_path / "test.parquet", split=None)["test"]] == ["dog"]


def test_chats_in_messages_with_a_list_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    records = [
        {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]},
        {"images": ["b.jpg"], "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]},
        {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Both."}]},
    ]
    first, second, both = imported(write(tmp_path / "chat_train.json", records), split=None)["train"]
    assert [(each.question, each.answer) for each in (*first.questions, *second.questions)] == [
        ("What?", "A dog."),
        ("What is it?", "A cat."),
    ]
    assert both.page == (0, 1, "Which?", "Both.")


def test_imagefolder_whose_metadata_is_parquet_or_deep(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = tmp_path / "hub"
    pictures(root, "data/train/1.jpg", "data/test/1.jpg")
    for split in ("train", "test"):
        table = pyarrow.table({"file_name": ["1.jpg"], "text": [f"of {split}"]})
        parquet.write_table(table, root / "data" / split / "metadata.parquet")
    found = imported(root, split=None)
    assert {split: [each.captions for each in samples] for split, samples in found.items()} == {
        "train": [("of train",)],
        "test": [("of test",)],
    }


def test_splits_of_two_names_are_one(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    records = [{"image": "a.jpg", "caption": "an a", "split": "val"}, {"image": "b.jpg", "caption": "a b", "split": "validation"}]
    path = write(tmp_path / "mine.json", records)
    assert captions(imported(path, split=None)["val"]) == {"a.jpg": ("an a",), "b.jpg": ("a b",)}
    records.append({"image": "a.jpg", "caption": "x", "split": "train"})
    path = write(tmp_path / "again.json", records)
    assert len(imported(path, split="validation")["val"]) == 2


def packed(path: Path, *names: str) -> Path:
    """A tar of the members."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in names:
            inside = path.parent / "inside"
            inside.write_bytes(encode(picture(0)) if name.endswith("jpg") else b"a dog")
            tar.add(inside, name)
    return path


def test_archives_say_to_unpack_them(tmp_path: Path) -> None:
    """Tars of pictures are no shards, and pictures still packed are named where the annotations lie."""
    bare = packed(tmp_path / "flickr30k-images.tar.gz", "flickr30k-images/1.jpg", "flickr30k-images/2.jpg")
    with pytest.raises(DataError, match=r"flickr30k-images.tar.gz is an archive: unpack it"):
        imported(bare)
    with pytest.raises(DataError, match="shards, which are read as they are"):
        imported(packed(tmp_path / "00000.tar", "000.jpg", "000.txt"))
    home = tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(home / "Images.zip", "w") as archive:
        archive.writestr("1.jpg", encode(picture(0)))
    with pytest.raises(DataError, match=r"Images.zip is an archive: unpack it"):
        imported(home)
    write(home / "captions.txt", "image,caption\n1.jpg,a dog\n")
    with pytest.raises(DataError, match=r"no image file 1.*There are no pictures in .*Images.zip, unpack it.*--images"):
        imported(home)
    packed(home / "pictures.tar", "1.jpg")
    pictures(home, "Images/1.jpg")
    assert captions(imported(home)["train"]) == {"1.jpg": ("a dog",)}


@pytest.mark.parametrize(
    ("importer", "record"),
    [
        ("winoground", {"id": 0, "image_0": "a", "image_1": "b", "caption_0": "x", "caption_1": "y", "tag": "z"}),
        ("sugarcrepe", {"filename": "1.jpg", "caption": "x", "negative_caption": "y"}),
        ("aro", {"image_id": 1, "image_path": "1.jpg", "true_caption": "x", "false_caption": "y", "bbox_x": 1}),
        ("pages", {"url": "http://x", "text_list": ["x"], "image_info": []}),
    ],
)
@pytest.mark.parametrize("form", ["array", "object", "lines"])
def test_what_has_an_importer_of_its_own_names_it(tmp_path: Path, importer: str, record: dict[str, Any], form: str) -> None:
    contents = {"array": [record], "object": {"0": record}, "lines": json.dumps(record) + "\n"}
    path = write(tmp_path / ("mine.jsonl" if form == "lines" else "mine.json"), contents[form])
    with pytest.raises(DataError, match=f'importer of its own: make import ARGS="{importer} --help"'):
        imported(path)


def test_textcaps(tmp_path: Path) -> None:
    pictures(tmp_path, "train_images/0a.jpg")
    rows = [{"image_id": "0a", "caption_str": text, "reference_strs": ["a sign", "a stop sign"]} for text in ("a sign", "a stop sign")]
    path = write(tmp_path / "TextCaps_0.1_train.json", {"dataset_type": "train", "data": rows})
    (sample,) = imported(path, split=None)["train"]
    assert isinstance(sample, Sample)
    assert sample.captions == ("a sign", "a stop sign")
