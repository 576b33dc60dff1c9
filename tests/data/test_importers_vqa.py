"""Importers of questions, on entries exactly as VQAv2 and POPE publish them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.importers.coco import import_coco
from data.importers.entries import read_entries
from data.importers.pope import import_pope
from data.importers.vqa import import_vqa
from data.sample import Question, Sample, from_record, to_record
from data.shards import DataError, find
from tests.data.kit import encode, picture
from tests.data.test_importers import coco_json, dropped, read

POPE = """\
{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?", "label": "yes"}
{"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dining table in the image?", "label": "no"}
{"question_id": 3, "image": "COCO_val2014_000000458752.jpg", "text": "Is there a person in the image?", "label": "yes"}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "val2014"
    folder.mkdir()
    for number in (310196, 458752, 262148):
        (folder / f"COCO_val2014_{number:012d}.jpg").write_bytes(encode(picture(number % 100), "JPEG"))
    return folder


@pytest.fixture
def captioned(tmp_path: Path, images: Path) -> Path:
    """The same pictures, imported with their captions before."""
    entries = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (262148, 310196, 458752)]
    captions = coco_json(tmp_path / "captions.json", entries, [{"image_id": each["id"], "caption": "a picture"} for each in entries])
    import_coco(captions=captions, images=images, out=tmp_path / "coco", split="val")
    return tmp_path / "coco"


def annotation(number: int, image: int, answers: list[str], kind: str = "other", most: str | None = None) -> dict[str, Any]:
    listed = [{"answer": answer, "answer_confidence": "yes", "answer_id": place} for place, answer in enumerate(answers, start=1)]
    return {
        "question_type": "what is this",
        "multiple_choice_answer": most or answers[0],
        "answers": listed,
        "image_id": image,
        "answer_type": kind,
        "question_id": number,
    }


def vqa_files(folder: Path, questions: list[Any], annotations: list[Any]) -> dict[str, Path]:
    about = {"info": {"description": "VQA"}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    paths = {"questions": folder / "questions.json", "annotations": folder / "annotations.json"}
    paths["questions"].write_text(json.dumps(about | {"task_type": "Open-Ended", "questions": questions}))
    paths["annotations"].write_text(json.dumps(about | {"annotations": annotations}))
    return paths


QUESTIONS = [
    {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
    {"image_id": 458752, "question": "Is this man a professional baseball player?", "question_id": 458752003},
    {"image_id": 262148, "question": "How many people?", "question_id": 262148000},
]
ANNOTATIONS = [
    annotation(262148000, 262148, ["3", "2", "3"], "number", "3"),
    annotation(458752003, 458752, ["yes"] * 9 + ["no"], "yes/no"),
    annotation(458752000, 458752, ["net"] * 7 + ["netting", "mesh", "netting"]),
]


def test_vqa_from_a_folder(tmp_path: Path, images: Path) -> None:
    import_vqa(**vqa_files(tmp_path, QUESTIONS, ANNOTATIONS), images=images, out=tmp_path / "out", split="val")
    by_key = {sample.key: sample for sample in read(tmp_path / "out", "val")}
    assert sorted(by_key) == ["COCO_val2014_000000262148", "COCO_val2014_000000458752"]
    first, second = by_key["COCO_val2014_000000458752"].questions
    assert first == Question(QUESTIONS[0]["question"], "net", "other", ("net",) * 7 + ("netting", "mesh", "netting"))
    assert (second.kind, second.answer, len(second.answers)) == ("yes/no", "yes", 10)
    assert by_key["COCO_val2014_000000262148"].extra == {"file": "COCO_val2014_000000262148.jpg", "id": 262148}
    assert dropped(tmp_path / "out", "val") == {}


def test_vqa_onto_captions(tmp_path: Path, captioned: Path) -> None:
    """By their ids: COCO's files of 2017 have other names than those of 2014."""
    files = vqa_files(
        tmp_path, [*QUESTIONS, {"image_id": 9, "question": "Why?", "question_id": 90}], [*ANNOTATIONS, annotation(90, 9, ["x"])]
    )
    import_vqa(**files, onto=captioned, out=tmp_path / "out", split="val", file="{id:012d}.jpg")
    before = {sample.extra["id"]: sample for sample in read(captioned, "val")}
    after = {sample.extra["id"]: sample for sample in read(tmp_path / "out", "val")}
    assert sorted(after) == [262148, 458752]
    for number, sample in after.items():
        assert (sample.key, sample.captions) == (before[number].key, ("a picture",))
        assert (sample.image == before[number].image).all()
        assert [question.question for question in sample.questions] == [q["question"] for q in QUESTIONS if q["image_id"] == number]
    assert dropped(tmp_path / "out", "val") == {"no questions": 1, "questions about a missing picture": 1}


def test_vqa_counts_what_it_cannot_use(tmp_path: Path, images: Path) -> None:
    questions = [
        *QUESTIONS,
        {"image_id": 1, "question": "Unanswered?", "question_id": 10},
        {"image_id": 1, "question": " ", "question_id": 11},
        {"image_id": "x", "question": "Where?", "question_id": 12},
        {"image_id": 310197, "question": "No such picture?", "question_id": 13},
        "text",
    ]
    annotations = [
        *ANNOTATIONS,
        ANNOTATIONS[0],
        annotation(13, 310197, ["no"]),
        annotation(99, 1, ["nobody asked"]),
        {"question_id": 14, "answers": []},
        {"question_id": 15, "answers": [{"answer": 5}, 7]},
        {"answers": [{"answer": "x"}]},
        None,
    ]
    import_vqa(**vqa_files(tmp_path, questions, annotations), images=images, out=tmp_path / "out", split="val")
    assert dropped(tmp_path / "out", "val") == {
        "annotation of a question annotated before": 1,
        "annotation of an unknown question": 1,
        "annotation without question_id or answers": 4,
        "no image file": 1,
        "question without annotated answers": 1,
        "question without question_id, image_id or question": 3,
    }


def test_answers_as_plain_strings_and_without_a_type(tmp_path: Path, images: Path) -> None:
    entry = {"question_id": 1, "image_id": 310196, "answers": ["snow", "ice", "snow"]}
    files = vqa_files(tmp_path, [{"image_id": 310196, "question": "What is it?", "question_id": 1}], [entry])
    import_vqa(**files, images=images, out=tmp_path / "out", split="val")
    [sample] = read(tmp_path / "out", "val")
    assert sample.questions == (Question("What is it?", "snow", "open", ("snow", "ice", "snow")),)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"questions": 5}', '{"annotations": []}'])
def test_vqa_says_what_is_expected(tmp_path: Path, images: Path, content: str) -> None:
    files = vqa_files(tmp_path, QUESTIONS, ANNOTATIONS)
    files["questions"].write_text(content)
    with pytest.raises(DataError, match=r"questions\.json is not a questions file of VQA"):
        import_vqa(**files, images=images, out=tmp_path / "out", split="val")


@pytest.mark.parametrize("name", ["{number}.jpg", "{}.jpg", "{id:s}.jpg", "{id", "{id.x}"])
def test_vqa_says_how_a_picture_can_be_called(tmp_path: Path, images: Path, name: str) -> None:
    files = vqa_files(tmp_path, QUESTIONS, ANNOTATIONS)
    with pytest.raises(DataError, match=r"--file .*expected a name with \{id\}"):
        import_vqa(**files, images=images, out=tmp_path / "out", split="val", file=name)


def test_pictures_come_from_one_place(tmp_path: Path, images: Path, captioned: Path) -> None:
    files = vqa_files(tmp_path, QUESTIONS, ANNOTATIONS)
    for places in ({}, {"images": images, "onto": captioned}):
        with pytest.raises(DataError, match=r"--images .* and --onto"):
            import_vqa(**files, **places, out=tmp_path / "out", split="val")
    with pytest.raises(DataError, match="--size shrinks the pictures of --images"):
        import_vqa(**files, onto=captioned, size=4, out=tmp_path / "out", split="val")


def test_pope_files_together(tmp_path: Path, images: Path) -> None:
    """The published files are called .json and hold a line for each question."""
    for kind in ("random", "popular"):
        (tmp_path / f"coco_pope_{kind}.json").write_text(POPE)
    files = (tmp_path / "coco_pope_random.json", tmp_path / "coco_pope_popular.json")
    import_pope(questions=files, images=images, out=tmp_path / "out")
    by_key = {sample.key: sample for sample in read(tmp_path / "out", "test")}
    assert by_key["COCO_val2014_000000310196"].questions == tuple(
        Question(f"Is there a {thing} in the image?", label, f"pope-{kind}")
        for kind in ("random", "popular")
        for thing, label in (("snowboard", "yes"), ("dining table", "no"))
    )
    assert len(by_key["COCO_val2014_000000458752"].questions) == 2
    assert find(tmp_path / "out", "test").samples == 2


def test_pope_onto_captions(tmp_path: Path, captioned: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(POPE)
    import_pope(questions=(tmp_path / "mine.jsonl",), onto=captioned, out=tmp_path / "out", split="val")
    samples = read(tmp_path / "out", "val")
    assert [(sample.extra["id"], len(sample.questions)) for sample in samples] == [(310196, 2), (458752, 1)]
    assert {question.kind for sample in samples for question in sample.questions} == {"pope-mine"}
    assert dropped(tmp_path / "out", "val") == {"no questions": 1}


def test_pope_counts_what_it_cannot_use(tmp_path: Path, images: Path) -> None:
    lines = [
        *POPE.splitlines(),
        '{"question_id": 4, "image": "COCO_val2014_000000458752.jpg", "text": "Is there a car in the image?", "label": "maybe"}',
        '{"question_id": 5, "image": "COCO_val2014_000000458752.jpg", "label": "no"}',
        '{"question_id": 6, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a car in the image?", "label": "No"}',
        '{"question_id": 7, "image": "COCO_val2014_0000',
    ]
    path = tmp_path / "coco_pope_adversarial.json"
    path.write_text("\n".join(lines))
    import_pope(questions=(path,), images=images, out=tmp_path / "out")
    assert dropped(tmp_path / "out", "test") == {
        "entry that is not an object": 1,
        "entry without image, text, label": 1,
        "label that is neither yes nor no": 1,
        "no image file": 1,
    }


def test_a_torn_array_is_not_taken_for_lines(tmp_path: Path) -> None:
    path = tmp_path / "torn.json"
    path.write_text('[\n{"image": "a"},\n{"image": "b"}\n')
    with pytest.raises(DataError, match="is not json"):
        read_entries(path, Counter())


def test_answers_of_annotators_survive_the_shard_and_their_absence_leaves_no_trace() -> None:
    image = picture(1)
    for answers in ((), ("a", "b")):
        sample = Sample("0", image, questions=(Question("q?", "a", "other", answers),))
        record = json.loads(json.dumps(to_record(sample)))
        assert ("answers" in record["questions"][0]) == bool(answers)
        assert from_record("0", image, None, record).questions == sample.questions
    with pytest.raises(TypeError, match="answer: expected a string"):
        from_record("0", image, None, {"questions": [{"question": "q?", "answer": "a", "answers": [1]}]})
