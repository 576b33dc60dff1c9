"""The embedded data set: deterministic, true to its word, free of shortcuts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.check import check
from data.loader import in_order
from data.sample import Sample, to_record
from data.scenes.build import build, make_sample
from data.scenes.language import agreement, answer, parse
from data.scenes.world import COLOURS, HELD_OUT, PRESETS, SHAPES
from data.shards import DataError, find

# sha256 over the pixels and records of the first 50 samples, committed so that a change of the pictures is never silent:
# python -c "from tests.data.test_scenes import fingerprint; print(fingerprint('tiny', 'train'))"
GOLDEN = {
    ("tiny", "train"): "cb62b6a105ef812d4debb7df1a9642c92eab50ab2e7a2b55f26eef4e99cec876",
    ("tiny", "style"): "22b6da6579b5ed1df8f56d8cc1f9d1c6b32dea0dce07d0a209cd60b587e507d7",
    ("tiny", "pairs"): "aa4ac5e0522e37ad4cf057a8407621f79c9b06c9ba5c847059e4410d9a3e3a2c",
    ("small", "train"): "081c402951dac6b7924fe61bb561009e0bfe853301dea108c5016de3355d5006",
}


def fingerprint(preset: str, split: str) -> str:
    digest = hashlib.sha256()
    for index in range(50):
        sample = make_sample(PRESETS[preset], split, index)
        digest.update(sample.image.tobytes())
        digest.update(json.dumps(to_record(sample), sort_keys=True).encode())
    return digest.hexdigest()


# The same for a shard of 50 samples as it lies on disk, JPEG included.
GOLDEN_SHARD = "0e8a7de34b86beb89ef7b25af7965a32f6a3f47492239ad172db7e4556d669fa"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(1500)]


@pytest.mark.parametrize(("preset", "split"), GOLDEN)
def test_pictures_are_the_published_ones(preset: str, split: str) -> None:
    assert fingerprint(preset, split) == GOLDEN[preset, split]


def test_shards_are_the_published_ones(tmp_path: Path) -> None:
    build(tmp_path, "tiny", workers=1, samples={"train": 50})
    assert hashlib.sha256((tmp_path / "train" / "00000.tar").read_bytes()).hexdigest() == GOLDEN_SHARD


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.scenes.build.SAMPLES_PER_SHARD", 100)
    for workers in (1, 2):
        build(tmp_path / str(workers), "tiny", workers=workers, samples={"train": 110, "test": 5})
    for split in ("train", "test"):
        tars = [sorted((tmp_path / str(workers) / split).glob("*.tar")) for workers in (1, 2)]
        assert [tar.read_bytes() for tar in tars[0]] == [tar.read_bytes() for tar in tars[1]]
    assert len(list((tmp_path / "1" / "train").glob("*.tar"))) == 2
    read = [sample for batch in in_order(find(tmp_path / "1", "train"), batch_size=100) for sample in batch]
    assert [sample.key for sample in read] == [f"{index:08d}" for index in range(110)]
    original = make_sample(PRESETS["tiny"], "train", 109)
    assert read[109].captions == original.captions
    assert read[109].objects == original.objects
    assert read[109].foils == original.foils
    difference = np.abs(read[109].image.astype(int) - original.image.astype(int))
    assert difference.mean() < 6  # JPEG, quality 92


def test_an_interrupted_build_is_finished(tmp_path: Path) -> None:
    build(tmp_path, "tiny", workers=1, samples={"train": 10, "test": 5})
    (tmp_path / "test" / "index.json").unlink()
    (tmp_path / "test" / "00000.tar").write_bytes(b"half a shard")
    before = (tmp_path / "train" / "00000.tar").stat().st_mtime_ns
    build(tmp_path, "tiny", workers=1, samples={"train": 10, "test": 5})
    assert len(next(in_order(find(tmp_path, "test"), batch_size=100))) == 5
    assert (tmp_path / "train" / "00000.tar").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["no shard", "no index", "short shard", "first shards", "empty", "no split"])
def test_what_is_missing_of_a_set_is_restored(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after `make check-data` has given the half of a split an index, which made it look whole."""
    monkeypatch.setattr("data.scenes.build.SAMPLES_PER_SHARD", 6)
    build(tmp_path, "tiny", workers=1, samples={"train": 12})
    train = tmp_path / "train"
    before = {path.name: path.read_bytes() for path in train.iterdir()}
    if damage == "no shard":
        (train / "00000.tar").unlink()
    elif damage == "no index":
        (train / "index.json").unlink()
    elif damage == "short shard":
        (train / "00001.tar").write_bytes(before["00001.tar"][:5000])
    elif damage == "first shards":
        (train / "index.json").unlink()
        (train / "00001.tar").unlink()
        assert check(tmp_path, "train")
        assert find(tmp_path, "train").samples == 6
    else:
        shutil.rmtree(train)
        if damage == "empty":
            train.mkdir()
    build(tmp_path, "tiny", workers=1, samples={"train": 12})
    assert {path.name: path.read_bytes() for path in train.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_set_of_another_seed_or_kind_is_not_taken_for_this_one(tmp_path: Path) -> None:
    build(tmp_path, "tiny", workers=1, samples={"train": 4})
    for options in ({"seed": 1}, {"planted": 0.0}):
        with pytest.raises(DataError, match=rf"{tmp_path}/train has other samples than scenes-tiny.* Remove it, or choose another --out"):
            build(tmp_path, "tiny", workers=1, samples={"train": 4}, **options)  # type: ignore[arg-type]


def test_two_builds_at_once_give_one_set(tmp_path: Path) -> None:
    path = tmp_path / "build_it.py"
    path.write_text(
        "import sys\nfrom pathlib import Path\nfrom data.scenes.build import build\n"
        "if __name__ == '__main__':\n    build(Path(sys.argv[1]), 'tiny', workers=1, samples={'train': 40, 'test': 40})\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    both = [subprocess.Popen([sys.executable, str(path), str(tmp_path / "set")], env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for one in both:
        errors = one.communicate(timeout=300)[1]
        assert (one.returncode, errors) == (0, b"")
    build(tmp_path / "alone", "tiny", workers=1, samples={"train": 40, "test": 40})
    for split in ("train", "test"):
        for name in ("00000.tar", "index.json"):
            assert (tmp_path / "set" / split / name).read_bytes() == (tmp_path / "alone" / split / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["test", "train"]


def test_every_caption_is_true_and_every_foil_false(samples: list[Sample]) -> None:
    for sample in samples:
        assert len(set(sample.captions)) == 5
        assert all(agreement(caption, sample) == 1.0 for caption in sample.captions), sample.captions
        for foil in sample.foils:
            assert agreement(foil.caption, sample) == 1.0, foil
            assert agreement(foil.foil, sample) < 1.0, foil


def test_swaps_keep_the_words_and_replacements_change_one(samples: list[Sample]) -> None:
    def words(text: str) -> Counter[str]:  # "an" is "a" before a vowel
        return Counter("a" if word == "an" else word for word in text.replace(",", "").split())

    kinds = Counter()
    for sample in samples:
        for foil in sample.foils:
            kinds[foil.kind] += 1
            changed = words(foil.caption) - words(foil.foil)
            if foil.kind.startswith("swap"):
                assert not changed, foil
            elif foil.kind != "replace_relation":
                assert sum(changed.values()) == 1, foil
    assert set(kinds) == {
        *(f"replace_attribute_{name}" for name in ("size", "fill", "colour", "shape")),
        "replace_relation",
        *(f"swap_attribute_{name}" for name in ("colour", "size", "fill")),
        "swap_relation",
    }


def test_questions_have_the_answers_they_are_given(samples: list[Sample]) -> None:
    asked = [(question, sample) for sample in samples for question in sample.questions]
    assert {question.kind for question, _ in asked} == {"exist", "count", "colour", "shape", "relation", "match"}
    for question, sample in asked:
        assert answer(question.question, sample.objects, sample.extra["relations"]) == question.answer, question


def test_answers_cannot_be_guessed_from_the_words(samples: list[Sample]) -> None:
    """The most frequent answer of each question type stays near what its number of answers allows."""
    limits = {"exist": 0.56, "count": 0.62, "colour": 0.2, "shape": 0.2, "relation": 0.3}
    for kind, limit in limits.items():
        answers = Counter(question.answer for sample in samples for question in sample.questions if question.kind == kind)
        assert answers.most_common(1)[0][1] / answers.total() < limit, answers


def test_held_out_pairs_are_only_in_their_split(samples: list[Sample]) -> None:
    def pairs(sample: Sample) -> set[tuple[str, str]]:
        return {(thing.attributes["colour"], thing.name) for thing in sample.objects}

    assert not any(pairs(sample) & HELD_OUT for sample in samples)
    assert all(pairs(make_sample(PRESETS["tiny"], "heldout", index)) & HELD_OUT for index in range(200))
    for text in (text for sample in samples for foil in sample.foils for text in (foil.caption, foil.foil)):
        assert not {(said["colour"], said["shape"]) for said in parse(text).objects} & HELD_OUT, text
    assert {colour for colour, _ in HELD_OUT} <= set(COLOURS)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)
    seen = set().union(*map(pairs, samples))
    assert seen == {(colour, shape) for colour in COLOURS for shape in SHAPES} - HELD_OUT


def test_boxes_hold_their_objects(samples: list[Sample]) -> None:
    for sample in samples[:200]:
        for thing in sample.objects:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            assert 10 <= right - left <= 31


def test_agreement_weighs_claims() -> None:
    sample = next(s for s in (make_sample(PRESETS["tiny"], "train", i) for i in range(100)) if len(s.objects) == 1)
    thing = sample.objects[0]
    other = next(colour for colour in COLOURS if colour != thing.attributes["colour"])
    true = f"a {thing.attributes['size']} {thing.attributes['colour']} {thing.name}"
    assert agreement(true, sample) == 1.0
    assert agreement(f"{true} and a {other} square", sample) < 1.0
    assert 0 < agreement(f"a {other} {thing.name}", sample) < 1.0
    assert agreement("nothing to see here", sample) == 0.0
    assert agreement("", sample) == 0.0


def test_parse_reads_what_is_there_and_no_more() -> None:
    claims = parse("A small red star to the left of a blue circle, with an orange heart on a dark background")
    assert [thing["shape"] for thing in claims.objects] == ["star", "circle", "heart"]
    assert claims.objects[0] == {"size": "small", "colour": "red", "shape": "star"}
    assert claims.relations == ((0, "left", 1),)
    assert claims.background == "dark"
    assert claims.place is None
    assert parse("two objects: a star at the top left and a circle").count == 2
    assert parse("a green cross at the top left").place == "top left"
    assert parse("a dog on a sofa").objects == ()


def test_small_preset_has_larger_and_fuller_pictures() -> None:
    samples = [make_sample(PRESETS["small"], "train", index) for index in range(60)]
    assert samples[0].image.shape == (128, 128, 3)
    assert max(len(sample.objects) for sample in samples) == 5
