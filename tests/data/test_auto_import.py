"""`auto`: each format in its real layout, a few rows; what is written is what the file says."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from data.dialogues import turns_of
from data.importers.auto import import_auto
from data.loader import in_order
from data.sample import Sample
from data.shards import DataError, find, splits
from tests.data.kit import encode, picture


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with pictures in sub-folders, and room for annotations."""
    for number, name in enumerate(("images/a.jpg", "images/b.jpg", "images/deep/c.JPG", "images/7.jpg", "images/000000000008.jpg")):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number)))
    return tmp_path / "home"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def imported(path: Path, split: str | None = "train", **options: Any) -> dict[str, list[Sample]]:
    """The samples of each split."""
    out = path.parent / f"out of {path.name}"
    import_auto(path, out=out, split=split, **options)
    return {name: [each for batch in in_order(find(out, name), batch_size=100) for each in batch] for name in splits(out)}


def dropped(path: Path, split: str = "train") -> dict[str, int]:
    return json.loads((path.parent / f"out of {path.name}" / split / "index.json").read_text())["dropped"]


def captions(samples: list[Sample]) -> dict[str, tuple[str, ...]]:
    return {Path(str(sample.extra["file"])).name: sample.captions for sample in samples}


def test_karpathys_splits(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`restval` is trained on; folders that are not there are no obstacle."""
    images = [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "cocoid": 1,
            "split": "restval",
            "sentences": [{"raw": "an a", "tokens": ["an", "a"]}],
        },
        {"filepath": "val2014", "filename": "b.jpg", "cocoid": 2, "split": "val", "sentences": [{"raw": "a b"}, {"raw": "b again"}]},
        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "a c"}]},
        {"filename": "7.jpg", "split": "train", "sentences": [{"raw": "seven"}]},
    ]
    found = imported(write(home / "Dataset_COCO.JSON", {"images": images, "dataset": "coco"}), split=None)
    assert {name: captions(samples) for name, samples in found.items()} == {
        "train": {"a.jpg": ("an a",), "7.jpg": ("seven",)},
        "val": {"b.jpg": ("a b", "b again")},
        "test": {"c.JPG": ("a c",)},
    }
    said = capsys.readouterr().out
    assert "Karpathy's splits" in said
    assert "found in" in said
    assert (found["val"][0].image == picture(1)).all()


def test_one_split_of_several(home: Path) -> None:
    images = [{"filename": f"{name}.jpg", "split": name, "sentences": [{"raw": "text"}]} for name in ("train", "test")]
    for image in images:
        (home / "images" / image["filename"]).write_bytes(encode(picture(5)))
    path = write(home / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})
    assert list(imported(path, split="test")) == ["test"]
    with pytest.raises(DataError, match="no split 'val', only 'train', 'test'"):
        import_auto(path, out=home / "other", split="val")


@pytest.mark.parametrize("name", ["image", "IMAGE", "img_path", "file_name"])
@pytest.mark.parametrize("lines", [False, True])
def test_arrays_and_lines_of_records(home: Path, name: str, lines: bool) -> None:
    """BLIP, ALBEF and LAVIS: `caption` is a text or a list, several records tell of one picture."""
    records = [
        {name: "coco/images/a.jpg", "caption": "an a", "image_id": "coco_1"},
        {name: "coco/images/a.jpg", "Caption": "another a"},
        {name: "b.jpg", "caption": ["a b", "b again"]},
        {name: "missing.jpg", "caption": "nothing"},
        {name: "c.jpg", "caption": None},
        {"caption": "no picture"},
    ]
    text = "\n".join(map(json.dumps, records)) if lines else records
    path = write(home / ("coco_karpathy_train.jsonl" if lines else "coco_karpathy_train.json"), text)
    found = imported(path, split=None)
    assert captions(found["train"]) == {"a.jpg": ("an a", "another a"), "b.jpg": ("a b", "b again")}
    assert dropped(path) == {"no image file": 1, "no captions or questions": 1, "record without a picture": 1}


def test_questions_of_blip_gqa_textvqa_vizwiz_and_clevr(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "vqa_train.json": [{"question": "what?", "answer": ["a", "b", "b"], "image": "val2014/a.jpg", "dataset": "vqa", "question_id": 3}],
        "GQA_val_balanced_questions.json": {
            "0129": {"question": "is it a?", "answer": "yes", "imageId": "7", "types": {"semantic": "obj"}, "fullAnswer": "yes, it is"}
        },
        "TextVQA_0.5.1_val.json": {
            "dataset_type": "val",
            "data": [
                {"question": "what does it say?", "image_id": "a", "answers": ["stop", "stop", "halt"], "flickr_original_url": "http://x"}
            ],
        },
        "vizwiz.json": [
            {
                "image": "b.jpg",
                "question": "what colour?",
                "answers": [{"answer": "red", "answer_confidence": "yes"}, {"answer": "dark red"}],
                "answer_type": "other",
                "answerable": 1,
            }
        ],
        "CLEVR_val_questions.json": {
            "info": {},
            "questions": [{"image_filename": "c.jpg", "question": "how many?", "answer": 2, "split": "val"}],
        },
    }
    questions = {}
    for name, content in files.items():
        path = write(home / name, content)
        (samples,) = imported(path).values()
        (sample,) = samples
        (question,) = sample.questions
        questions[name] = (question.question, question.answer, question.answers, question.kind, Path(sample.extra["file"]).name)
    assert list(questions.values()) == [
        ("what?", "b", ("a", "b", "b"), "open", "a.jpg"),
        ("is it a?", "yes", (), "open", "7.jpg"),
        ("what does it say?", "stop", ("stop", "stop", "halt"), "open", "a.jpg"),
        ("what colour?", "red", ("red", "dark red"), "other", "b.jpg"),
        ("how many?", "2", (), "open", "c.JPG"),
    ]
    said = capsys.readouterr().out
    assert all(name in said for name in ("GQA's", "TextVQA's", "VizWiz's", "CLEVR's"))


def test_vqav2_finds_its_answers_beside(home: Path) -> None:
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 8, "question": "what?"}]}
    path = write(home / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    with pytest.raises(DataError, match=r"v2_mscoco_val2014_annotations\.json: put it beside"):
        imported(path)
    (home / "images" / "COCO_val2014_000000000008.jpg").write_bytes(encode(picture(4)))
    answers = [{"question_id": 1, "image_id": 8, "answers": [{"answer": "a"}, {"answer": "a"}], "answer_type": "other"}]
    write(home / "v2_mscoco_val2014_annotations.json", {"annotations": answers})
    (sample,) = imported(path, split=None)["val"]
    assert (sample.questions[0].answer, sample.questions[0].kind, sample.extra["id"]) == ("a", "other", 8)


def test_llavas_conversations(home: Path) -> None:
    """A lone request to describe has a caption for its reply; everything else is questions."""
    path = write(
        home / "llava_instruct.json",
        [
            {"id": "1", "image": "a.jpg", "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An a."},
                {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
            ]},
            {"id": "2", "image": "b.jpg", "conversations": [
                {"from": "human", "value": "Describe the image concisely.\n<image>"}, {"from": "gpt", "value": "a b"}]},
            {"id": "3", "conversations": [{"from": "human", "value": "no picture"}, {"from": "gpt", "value": "none"}]},
            {"id": "4", "image": "7.jpg", "messages": [], "conversations": [
                {"role": "user", "content": "Which number?"}, {"role": "assistant", "content": "seven"}]},
        ],
    )  # fmt: skip
    first, second, last = imported(path)["train"]
    assert [(each.question, each.answer) for each in first.questions] == [("What is it?", "An a."), ("Sure?", "Yes.")]
    assert (second.captions, second.questions) == (("a b",), ())
    assert last.questions[0].answer == "seven"
    assert dropped(path) == {"record without a picture": 1}


def test_llavas_conversations_about_several_pictures(home: Path) -> None:
    """The conversation is the page; pictures are found by name, each of them."""
    asked = [{"from": "human", "value": "<image>\n<image>\nWhat differs?"}, {"from": "gpt", "value": "The number."}]
    more = [{"from": "human", "value": "Which is a?"}, {"from": "gpt", "value": "The first."}]
    path = write(
        home / "llava_interleave_train.json",
        [
            {"id": "1", "image": ["coco/a.jpg", "coco/c.jpg"], "conversations": [*asked, *more]},
            {"id": "2", "image": ["a.jpg", "missing.jpg"], "conversations": asked},
            {"id": "3", "image": ["a.jpg", "b.jpg"], "conversations": [asked[0]]},
            {"id": "4", "image": ["b.jpg", "7.jpg"], "conversations": [{"from": "human", "value": "Describe both."}, asked[1]]},
            {"id": "5", "image": "a.jpg", "conversations": more},
        ],
    )
    first, last, single = imported(path, split=None)["train"]
    assert first.page == (0, 1, "What differs?", "The number.", "Which is a?", "The first.")
    assert turns_of(first) == [("What differs?", "The number."), ("Which is a?", "The first.")]
    assert [(image == picture(number)).all() for image, number in zip(first.images, (0, 2), strict=True)] == [True, True]
    assert (turns_of(last), last.captions) == ([("Describe both.", "The number.")], ())
    assert [each.question for each in single.questions] == ["Which is a?"]
    assert dropped(path) == {"conversation without a reply": 1, "no image file": 1}


TABLES = {
    "captions.txt": 'image,caption\na.jpg,"an a, seen"\na.jpg,another a\nb.jpg,a b\n',
    "Flickr8k.token.txt": "a.jpg#0\tan a, seen\na.jpg#1\tanother a\nb.jpg#0\ta b\n",
    "results.csv": "image_name| comment_number| comment\na.jpg| 0| an a, seen\na.jpg| 1| another a\nb.jpg| 0| a b\n",
    "mine.csv": 'Filename,Caption\na.jpg,"an a, seen"\na.jpg,another a\nb.jpg,a b\n',
    "mine.tsv": "path\ttext\na.jpg\tan a, seen\na.jpg\tanother a\nb.jpg\ta b\n",
    "nameless.csv": 'a.jpg,"an a, seen"\na.jpg,another a\nb.jpg,a b\n',
    "nameless.txt": "a.jpg\tan a, seen\na.jpg\tanother a\nb.jpg\ta b\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(home: Path, name: str) -> None:
    path = write(home / name, TABLES[name])
    found = captions(imported(path)["train"])
    assert found == {"a.jpg": ("an a, seen", "another a"), "b.jpg": ("a b",)}


def test_a_folder_with_an_annotation_file_and_pictures(home: Path) -> None:
    """As Kaggle has Flickr8k: captions.txt beside a folder of pictures."""
    write(home / "captions.txt", TABLES["captions.txt"])
    write(home / "readme.txt", "Pictures of letters.\n")
    found = captions(imported(home)["train"])
    assert found == {"a.jpg": ("an a, seen", "another a"), "b.jpg": ("a b",)}
    write(home / "results.csv", TABLES["results.csv"])
    with pytest.raises(DataError, match=r"holds several annotation files: captions.txt, results.csv. Name one, for example .*captions.txt"):
        imported(home)


def test_a_split_that_nothing_tells_is_asked_for(home: Path) -> None:
    path = write(home / "mine.csv", TABLES["mine.csv"])
    with pytest.raises(DataError, match="name it, for example with --split train"):
        imported(path, split=None)


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("Train_GCC-training.tsv", "a dog runs\thttp://x.org/1.jpg\na cat\thttp://x.org/2.jpg\n", "tsv"),
        ("urls.txt", "https://x.org/1.jpg\nhttps://x.org/2.jpg\n", "txt"),
        ("laion.csv", "URL,TEXT\nhttp://x.org/1.jpg,a dog\n", "csv"),
        ("pairs.jsonl", '{"url": "http://x.org/1.jpg", "caption": "a dog"}\n', "jsonl"),
    ],
)
def test_addresses_are_pointed_to_img2dataset(home: Path, name: str, content: str, format: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)img2dataset --url_list .*{name} --input_format {format} .*make train-clip DATA="):
        imported(write(home / name, content))


def test_multiple_choice_with_pictures_in_the_table(home: Path) -> None:
    """MMBench: pictures in base64, written once and then named by the row that has them."""
    encoded = base64.b64encode(encode(picture(3))).decode()
    rows = [
        "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\tsplit",
        f"10\tWhich one?\t\tcat\tdog\tB\tidentity\t{encoded}\tdev",
        "11\tIs it?\tLook.\tyes\tno\tA\texistence\t10\tdev",
    ]
    found = imported(write(home / "MMBench_DEV_EN.tsv", "\n".join(rows) + "\n"), split=None)
    first, second = found["val"]
    assert [(each.question, each.answer, each.kind) for each in (*first.questions, *second.questions)] == [
        ("Which one? A. cat B. dog", "dog", "identity"),
        ("Look. Is it? A. yes B. no", "yes", "existence"),
    ]
    assert (first.image == second.image).all()


def test_pope_lines(home: Path) -> None:
    lines = [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "No"}]
    path = write(home / "coco_pope_popular.json", "\n".join(map(json.dumps, lines)))
    (sample,) = imported(path, split="test")["test"]
    assert [(each.question, each.answer, each.kind) for each in sample.questions] == [
        ("Is there a dog in the image?", "no", "pope-popular")
    ]


def test_coco_captions_and_instances_are_one(home: Path) -> None:
    """Boxes become corners, shrink with their pictures, and crowds are left out."""
    images = [{"id": 8, "file_name": "000000000008.jpg"}]
    boxes = [
        {"image_id": 8, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]},
        {"image_id": 8, "category_id": 4, "bbox": [0, 0, 1, 1]},
    ]
    instances = write(
        home / "instances_val2017.json",
        {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "dog", "supercategory": "animal"}]},
    )
    (alone,) = imported(instances, split=None)["val"]
    assert [(each.name, each.box) for each in alone.objects] == [("dog", (1, 2, 4, 6))]
    assert dropped(instances, "val") == {
        "crowd of objects": 1,
        "object of an unknown image": 1,
        "annotation without image_id, bbox or a known category": 1,
    }
    path = write(home / "captions_val2017.json", {"images": images, "annotations": [{"image_id": 8, "caption": "a dog"}]})
    size = min(alone.image.shape[:2]) // 2
    (both,) = imported(path, split=None, size=size)["val"]
    assert both.captions == ("a dog",)
    assert both.objects[0].box == pytest.approx((0.5, 1, 2, 3))


def test_visual_genome(home: Path) -> None:
    thing = {"x": 1, "y": 2, "w": 3, "h": 4}
    objects = write(home / "objects.json", [{"image_id": 7, "objects": [{"names": ["tree"], "object_id": 5, **thing}, {"names": []}]}])
    (sample,) = imported(objects)["train"]
    assert [(each.name, each.box, each.attributes) for each in sample.objects] == [("tree", (1, 2, 4, 6), {})]
    assert dropped(objects) == {"object without a name or a box": 1}
    attributes = write(
        home / "attributes.json", [{"image_id": 7, "attributes": [{"names": ["tree"], "attributes": ["green", "tall"], **thing}]}]
    )
    assert imported(attributes)["train"][0].objects[0].attributes == {"attributes": "green, tall"}
    asked = write(home / "question_answers.json", [{"id": 7, "qas": [{"question": "What is it?", "answer": "A tree.", "image_id": 7}]}])
    assert [(each.question, each.answer) for each in imported(asked)["train"][0].questions] == [("What is it?", "A tree")]
    for name, field in (("region_descriptions.json", "regions"), ("relationships.json", "relationships")):
        with pytest.raises(DataError, match=f"Visual Genome's {field}"):
            imported(write(home / name, [{"id": 7, "image_id": 7, field: [{"phrase": "a tree"}]}]))


def test_pictures_with_texts_of_the_same_name(home: Path) -> None:
    for name, text in (("images/a.txt", "an a\nanother a\n"), ("images/deep/c.txt", "a c"), ("images/b.txt", "")):
        write(home / name, text)
    write(home / "images/deep/c.json", {"caption": "a c", "url": "http://x", "key": "c"})
    (samples,) = imported(home / "images").values()
    assert captions(samples) == {"a.jpg": ("an a", "another a"), "c.JPG": ("a c",)}
    assert samples[1].extra["url"] == "http://x"


def test_folders_of_classes_and_of_splits(tmp_path: Path) -> None:
    for number, name in enumerate(("train/tabby_cat/1.jpg", "train/dog/2.png", "validation/dog/3.JPG", "train/.hidden/4.jpg")):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number)))
    found = imported(tmp_path / "pets", split=None)
    assert {name: sorted(str(each.label) for each in samples) for name, samples in found.items()} == {
        "train": ["dog", "tabby cat"],
        "val": ["dog"],
    }
    assert find(tmp_path / "out of pets", "val").classes == ("dog", "tabby cat")
    (samples,) = imported(tmp_path / "pets" / "train", split="train").values()
    assert [each.label for each in samples] == ["dog", "tabby cat"]


@pytest.mark.parametrize("table", ["metadata.csv", "METADATA.jsonl"])
def test_imagefolder_with_metadata(home: Path, table: str) -> None:
    rows = [{"file_name": "a.jpg", "text": "an a"}, {"file_name": "b.jpg", "text": "a b"}]
    text = "file_name,text\na.jpg,an a\nb.jpg,a b\n" if table.endswith("csv") else "\n".join(map(json.dumps, rows))
    for split in ("train", "test"):
        write(home / split / table, text)
        for name in ("a.jpg", "b.jpg"):
            (home / split / name).write_bytes((home / "images" / name).read_bytes())
    found = imported(home, split=None)
    assert {name: captions(samples) for name, samples in found.items()} == {
        name: {"a.jpg": ("an a",), "b.jpg": ("a b",)} for name in ("train", "test")
    }


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    """A class label is a number in the column and a name in the schema; the split is the beginning of the file's name."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": encode(picture(number)), "path": f"{number}.png"} for number in range(3)]
    table = pyarrow.table({"image": images, "label": [1, 0, 1], "text": [["one", "eins"], ["zero"], None]})
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    parquet.write_table(table.slice(0, 1), folder / "data" / "validation-00000-of-00001.parquet")
    found = imported(folder, split=None)
    assert {name: [(each.captions, each.label) for each in samples] for name, samples in found.items()} == {
        "train": [(("one", "eins"), "dog"), (("zero",), "cat")],
        "val": [(("one", "eins"), "dog")],
    }
    assert (found["train"][1].image == picture(1)).all()
    assert dropped(folder) == {"no captions or questions": 1}


def test_parquet_of_img2dataset_and_of_addresses(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {
        "jpg": [encode(picture(0)), None],
        "caption": ["a dog", "failed"],
        "key": ["000000000", "000000001"],
        "url": ["http://x", "http://y"],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "00000.parquet")
    (sample,) = imported(tmp_path / "00000.parquet")["train"]
    assert sample.captions == ("a dog",)
    parquet.write_table(pyarrow.table({"URL": ["http://x"], "TEXT": ["a dog"]}), tmp_path / "laion.parquet")
    with pytest.raises(DataError, match=r"img2dataset --url_list .*laion\.parquet --input_format parquet --url_col URL --caption_col TEXT"):
        imported(tmp_path / "laion.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"broken.parquet is not a parquet file"):
        imported(tmp_path / "broken.parquet")


def test_what_is_recognised_and_not_imported_says_what_to_do(tmp_path: Path) -> None:
    cases = {
        "saved/dataset_info.json": "Write parquet",
        "wds/train/00000.tar": "make check-data DATA=",
        "CLEVR_val_scenes.json": "Import its questions",
    }
    contents = {"CLEVR_val_scenes.json": json.dumps({"info": {}, "scenes": [{"image_filename": "a.png", "objects": []}]})}
    for name, words in cases.items():
        path = write(tmp_path / name, contents.get(name, "{}"))
        with pytest.raises(DataError, match=words):
            imported(path if path.parent == tmp_path else tmp_path / name.split("/")[0])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing.json", {"a": 1}, "no format that is known here .*'a'"),
        ("nothing.txt", "some words\nand more\n", "no format that is known here"),
        ("empty.json", "", "no format|is not json"),
        ("list.json", [1, 2], "no format that is known here"),
        ("model.bin", "x", "a file ending in .bin"),
    ],
)
def test_what_is_no_format_is_described(home: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        imported(write(home / name, content))


def test_a_name_in_two_folders_is_counted_unless_the_folder_tells(home: Path) -> None:
    (home / "images" / "deep" / "a.jpg").write_bytes(encode(picture(9)))
    records = [{"image": "data/deep/a.jpg", "caption": "the deep one"}, {"image": "other/a.jpg", "caption": "which?"}]
    path = write(home / "mine_train.json", records)
    (sample,) = imported(path, split=None)["train"]
    assert sample.captions == ("the deep one",)
    assert dropped(path) == {"picture whose name is in several folders": 1}


def test_pictures_elsewhere(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "apart" / "train.json", [{"image": "a.jpg", "caption": "an a"}, {"image": "/etc/passwd", "caption": "no"}])
    (sample,) = imported(path, split=None, images=home)["train"]
    assert sample.captions == ("an a",)
    assert dropped(path) == {"path outside the images folder": 1}


def test_texts_beside_pictures_in_other_encodings_are_counted(tmp_path: Path) -> None:
    """One file in an encoding that is not known costs its picture alone."""
    home = tmp_path / "home"
    texts = {"a": b"a dog", "b": "ein Hündchen".encode("cp1252"), "c": "犬が草の上を".encode("shift_jis"), "d": "\ufeff犬".encode()}
    for number, (name, content) in enumerate(texts.items()):
        write(home / f"{name}.txt", "").write_bytes(content)
        (home / f"{name}.jpg").write_bytes(encode(picture(number)))
    found = imported(home)["train"]
    assert captions(found) == {"a.jpg": ("a dog",), "b.jpg": ("ein Hündchen",), "d.jpg": ("犬",)}
    assert dropped(home) == {"text read as Windows-1252": 1, "text in an unknown encoding": 1, "no captions": 1}
