"""Samples with several images: one record, from shards through every loader, never torn apart."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data.decode import Tally, decode, read_shard
from data.importers.pages import import_pages
from data.importers.vqa import import_vqa
from data.loader import Loader, in_order
from data.memory import MemoryBatches
from data.sample import Sample, from_record, to_record
from data.shards import find, write_index, write_shard
from data.texts import texts
from tests.data.kit import encode, picture, write_tar
from tests.processes import command


def page_of(number: int, images: int) -> Sample:
    first, *others = (picture(10 * number + place, 4 + place) for place in range(images))
    parts = tuple(part for place in range(images) for part in (place, f"text {number} {place}"))
    return Sample(f"{number:06d}", first, captions=(f"page {number}",), others=tuple(others), page=parts)


def written(folder: Path, pages: list[Sample], *, shards: int = 1) -> Path:
    entries = []
    for shard in range(shards):
        own = pages[shard::shards]
        encoded = ((s, "png", encode(s.image), *(("png", encode(other)) for other in s.others)) for s in own)
        entries.append(write_shard(folder / "train" / f"{shard:05d}.tar", encoded))
    write_index(folder / "train", name=folder.name, split="train", shards=entries)
    return folder


def same(one: Sample, other: Sample) -> bool:
    pixels = len(one.images) == len(other.images) and all(map(np.array_equal, one.images, other.images))
    return pixels and (one.key, one.page, one.captions) == (other.key, other.page, other.captions)


def test_a_sample_of_one_image_is_stored_as_before() -> None:
    sample = Sample("0", picture(1), captions=("a",))
    assert to_record(sample) == {"captions": ["a"]}
    assert sample.images[0] is sample.image
    assert (len(sample.images), sample.others, sample.page, sample.texts) == (1, (), (), ("a",))


def test_a_page_survives_the_shard(tmp_path: Path) -> None:
    pages = [page_of(number, 1 + number % 4) for number in range(6)]
    folder = written(tmp_path / "pages", pages)
    split = find(folder, "train")
    assert split.samples == 6
    assert split.decoded_bytes == sum(image.nbytes for each in pages for image in each.images)
    found = [sample for batch in in_order(split, batch_size=4) for sample in batch]
    assert all(map(same, pages, found))
    assert found[3].extra == {}
    assert list(texts(split))[:2] == ["page 0", "text 0 0"]


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_loader_delivers_whole_pages(tmp_path: Path, budget: int, workers: int) -> None:
    pages = {each.key: each for each in (page_of(number, 1 + number % 4) for number in range(12))}
    split = find(written(tmp_path / "pages", list(pages.values()), shards=2), "train")
    loader = iter(Loader(split, batch_size=3, collate=numbers_and_sums, workers=workers, memory_budget=budget))
    seen: Counter[int] = Counter()
    for _ in range(4):
        batch = next(loader)
        for key, total, count in zip(batch["keys"].tolist(), batch["sums"].tolist(), batch["images"].tolist(), strict=True):
            page = pages[f"{key:06d}"]
            assert (count, total) == (len(page.images), sum(int(image.sum()) for image in page.images))
            seen[key] += 1
    assert seen == Counter(range(12))


def numbers_and_sums(samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    return {
        "keys": torch.tensor([int(sample.key) for sample in samples]),
        "sums": torch.tensor([sum(int(image.sum()) for image in sample.images) for sample in samples]),
        "images": torch.tensor([len(sample.images) for sample in samples]),
    }


def test_pages_travel_to_spawned_workers() -> None:
    pages = [page_of(number, 1 + number % 3) for number in range(5)]
    settings = {"batch_size": 2, "collate": numbers_and_sums, "seed": 0, "rank": 0, "world": 1, "state": None}
    batches = MemoryBatches(list(pages), **settings)
    there = object.__new__(MemoryBatches)
    there.__setstate__(batches.__getstate__())
    assert all(map(same, pages, there.samples))
    assert all(map(same, pages, batches.samples))  # which now share the memory
    assert pickle.loads(pickle.dumps(pages[2])).page == pages[2].page  # noqa: S301 (our own bytes)


IMAGE = encode(picture(1))


@pytest.mark.parametrize(
    ("record", "extensions", "images", "why"),
    [
        ({"images": 3}, ("png", "1.png", "2.png"), 3, ""),
        ({"images": 2}, ("png", "1.png", "2.png"), 2, ""),  # no more than the json says
        ({"images": 3}, ("png", "2.png"), 0, "one of the sample's images is missing"),
        ({"images": 3}, ("1.png", "2.png"), 0, "no image"),
        ({"images": 0}, ("png", "1.png"), 0, "number of images"),
        ({"images": 10_000}, ("png", "1.png"), 0, "number of images"),
        ({"images": 7}, ("png",), 1, ""),  # a foreign field
        ({"images": ["http://x/1.png"]}, ("png", "1.png"), 1, ""),
        ({}, ("png", "1.png", "512.jpg"), 1, ""),  # other sizes of the image, as before
        ({"page": 12}, ("png",), 1, ""),  # the page's number
        ({"images": 2, "page": [0, "a", 1]}, ("png", "1.png"), 2, ""),
        ({"images": 2, "page": [0, "a", 2]}, ("png", "1.png"), 2, "bad page"),
        ({"page": [0, "a", 1]}, ("png",), 1, "bad page"),
        ({"page": [0, {"text": "a"}]}, ("png",), 1, "bad page"),
        ({"page": [True, "a"]}, ("png",), 1, "bad page"),
    ],
)
def test_records_that_state_their_images(tmp_path: Path, record: dict, extensions: tuple[str, ...], images: int, why: str) -> None:
    members = [(f"a.{extension}", IMAGE) for extension in extensions] + [("a.json", json.dumps({"captions": ["c"], **record}).encode())]
    tally = Tally()
    samples = [decode(each, (), tally) for each in read_shard(str(write_tar(tmp_path / "00000.tar", members)), tally)]
    assert [0 if sample is None else len(sample.images) for sample in samples] == [images]
    assert list(tally.drops) == ([why] if why else [])
    kept = samples[0].extra if samples[0] else {}
    foreign = {name: value for name, value in record.items() if images == 1 and (name == "images" or not isinstance(value, list))}
    assert {name: kept[name] for name in kept.keys() & {"images", "page"}} == foreign


def test_a_damaged_further_image_drops_the_page(tmp_path: Path) -> None:
    members = [("a.png", IMAGE), ("a.1.png", IMAGE[:40]), ("a.json", b'{"images": 2}')]
    tally = Tally()
    found = [decode(each, (), tally) for each in read_shard(str(write_tar(tmp_path / "00000.tar", members)), tally)]
    assert found == [None]
    assert list(tally.drops) == ["undecodable image"]


def test_a_number_of_encoded_images_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 further images, but 1 encoded"):
        write_shard(tmp_path / "00000.tar", [(page_of(0, 3), "png", IMAGE, ("png", IMAGE))])


def test_from_record_without_images_of_its_own() -> None:
    page = page_of(0, 3)
    again = from_record(page.key, page.image, None, to_record(page), others=page.others)
    assert same(page, again)
    with pytest.raises(TypeError, match="numbers 0 to 0"):
        from_record(page.key, page.image, None, to_record(page))


def test_check_data_counts_pages(tmp_path: Path) -> None:
    folder = written(tmp_path / "pages", [page_of(number, 3) for number in range(4)])
    done = command("data.check", str(folder))
    assert done.returncode == 0, done.stderr
    assert "4 usable samples of 4" in done.stdout
    assert "3.0 per sample" in done.stdout
    assert "page in 4" in done.stdout
    assert "not read" not in done.stdout


MMC4 = {
    "text_list": ["a dog", "on a beach", "the end"],
    "image_info": [{"image_name": "1.png", "matched_text_index": 0}, {"image_name": "2.png", "matched_text_index": 2}],
}
OBELICS = {"images": [None, "1.png", None, "2.png"], "texts": ["before", None, "between", None], "metadata": "[]"}


def imported(tmp_path: Path, entries: list[dict], **options: int) -> list[Sample]:
    (tmp_path / "images").mkdir(exist_ok=True)
    for number in range(1, 4):
        (tmp_path / "images" / f"{number}.png").write_bytes(encode(picture(number)))
    (tmp_path / "pages.jsonl").write_text("\n".join(map(json.dumps, entries)))
    import_pages(pages=tmp_path / "pages.jsonl", images=tmp_path / "images", out=tmp_path / "out", split="train", **options)
    return [sample for batch in in_order(find(tmp_path / "out", "train"), batch_size=10) for sample in batch]


def test_pages_of_mmc4_and_obelics(tmp_path: Path) -> None:
    one, other = imported(tmp_path, [MMC4, OBELICS])
    assert one.page == (0, "a dog", "on a beach", 1, "the end")
    assert other.page == ("before", 0, "between", 1)
    for page in (one, other):
        assert [np.array_equal(image, picture(number)) for number, image in enumerate(page.images, 1)] == [True, True]


def test_pages_are_cut_after_their_last_allowed_image(tmp_path: Path) -> None:
    long = {"images": ["1.png", None, "2.png", None, "3.png"], "texts": [None, "one", None, "two", None]}
    assert imported(tmp_path, [long], most=2)[0].page == (0, "one", 1, "two")


def test_pages_that_cannot_be_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        MMC4,
        {"texts": ["a"], "images": []},
        {"texts": ["no image"], "images": [None]},
        {"texts": [None], "images": ["1.png"]},
        {"texts": [None, "b"], "images": ["gone.png", None]},
        {"texts": [None, "b", None], "images": ["1.png", None, "gone.png"]},
        {"texts": [None, "b", None], "images": ["1.png", None, "../pages.jsonl"]},
    ]
    assert len(imported(tmp_path, entries)) == 1
    said = capsys.readouterr().out
    for reason in ("page without text_list and image_info", "page with too few images 1", "page without text 1", "no image file 2"):
        assert reason in said
    assert "path outside the images folder 1" in said


def test_questions_can_be_added_to_pages(tmp_path: Path) -> None:
    pages = imported(tmp_path, [MMC4])
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps({"questions": [{"question_id": 1, "image_id": 1, "question": "what?"}]}))
    annotations = tmp_path / "annotations.json"
    annotations.write_text(
        json.dumps(
            {"annotations": [{"question_id": 1, "image_id": 1, "multiple_choice_answer": "a dog", "answers": [{"answer": "a dog"}]}]}
        )
    )
    options = {"questions": questions, "annotations": annotations, "onto": tmp_path / "out", "split": "train", "out": tmp_path / "more"}
    import_vqa(**options, file="{id}.png")
    (found,) = [sample for batch in in_order(find(tmp_path / "more", "train"), batch_size=10) for sample in batch]
    assert found.page == pages[0].page
    assert len(found.images) == 2
    assert found.questions[0].answer == "a dog"
