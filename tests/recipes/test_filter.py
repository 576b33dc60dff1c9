"""Filters on samples whose answer is known by hand, and the command from a pool to a training on what it keeps."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from data.fields import FieldError
from data.keep import keeping
from data.loader import in_order
from data.sample import Sample
from data.scenes.build import make_sample, write_splits
from data.scenes.pool import noise_of, polluted_sample
from data.scenes.world import PRESETS
from data.shards import DataError, find
from eval import EvalError
from recipes.filter import __main__ as command
from recipes.filter.filters import Cut, Filter, Verdict
from recipes.filter.pictures import Blur, Duplicates, duplicates_of, sharpness
from recipes.filter.pool import against_truth
from recipes.filter.scores import CLIPScore, Random, Truth
from recipes.filter.text import Boilerplate, Length, Mentions
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe
from tests.data.kit import encode, make_split, write_tar

COUNT = 300


def judged(each: Filter, samples: Sequence[Sample], size: int = 7) -> Verdict:
    """Seen in chunks, as from shards."""
    for start in range(0, len(samples), size):
        each.see(samples[start : start + size])
    return each.verdict()


def told(*captions: str | tuple[str, ...]) -> list[Sample]:
    image = np.zeros((4, 4, 3), np.uint8)
    return [Sample(f"{n}", image, captions=(each,) if isinstance(each, str) else each) for n, each in enumerate(captions)]


def shown(*images: np.ndarray) -> list[Sample]:
    return [Sample(f"{n}", image, captions=("a picture",)) for n, image in enumerate(images)]


def photo(number: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Smooth noise in colour: no two are alike."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


# ------------------------------------------------------------------------------------------------------ the cut


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 0.99])
def test_the_cut_is_that_of_datacomp(share: float) -> None:
    """The threshold of its `get_threshold`, from its text: sort downwards, take number int(n * fraction), keep what is not below."""
    scores = np.random.default_rng(0).integers(0, 20, 100).astype(np.float32)  # with ties
    threshold = sorted(scores.tolist(), reverse=True)[int(100 * share)]
    found = Cut(share).verdict(scores)
    assert found.keep.tolist() == [score >= threshold for score in scores.tolist()]
    assert found.about == {"share": share, "least": threshold}


def test_all_may_be_kept_and_one_always_is() -> None:
    scores = np.array([0.1, 0.5, 0.3])
    assert Cut(1.0).verdict(scores).keep.all()
    assert Cut(0.001).verdict(scores).keep.tolist() == [False, True, False]
    assert Cut(least=0.3).verdict(scores).keep.tolist() == [False, True, True]
    assert Cut(0.5).verdict(np.ones(4)).keep.all()  # ties


@pytest.mark.parametrize(("share", "least"), [(None, None), (0.3, 0.2), (0.0, None), (1.5, None), (-1, None), (float("nan"), None)])
def test_a_cut_is_one_share_or_one_score(share: Any, least: Any) -> None:
    with pytest.raises(FieldError, match="share"):
        Cut(share, least)


@pytest.mark.parametrize("least", [float("nan"), float("inf"), -float("inf")])
def test_a_least_score_is_a_number(least: float) -> None:
    with pytest.raises(FieldError, match=r"least is .*, expected a finite number"):
        Cut(least=least)


# ------------------------------------------------------------------------------------------------------ captions


def test_length_counts_words_and_characters() -> None:
    samples = told("a red star", "a b c", "red star", "", ("star", "a red star on grey"), "one two three four five six seven")
    found = judged(Length(), samples)
    assert found.keep.tolist() == [True, False, False, False, True, True]
    assert found.scores.tolist() == [3, 3, 2, 0, 5, 7]
    assert judged(Length(most_words=6), samples).keep.tolist() == [True, False, False, False, True, False]
    with pytest.raises(FieldError, match="words is 9, expected 0 to most-words, 6"):
        Length(words=9, most_words=6)


def test_boilerplate_is_what_many_say() -> None:
    often = [f"Photo {n} of 1{n}." for n in range(12)]
    samples = told(*often, *(f"the {name} thing" for name in "abcdefgh"), ("photo 1 of 2", "a green cat"), "IMAGE", "image", "Image!")
    found = judged(Boilerplate(0.1), samples)  # at most 2.4 of 24
    assert found.keep.tolist() == [False] * 12 + [True] * 9 + [False] * 3
    assert found.scores.tolist() == [13] * 12 + [1] * 9 + [3] * 3
    assert judged(Boilerplate(0.2), samples).keep[-3:].all()


def test_a_few_samples_have_no_boilerplate() -> None:
    """Two of two are no sign of anything."""
    assert judged(Boilerplate(), told("a dog", "a dog")).keep.all()


def test_mentions_are_whole_words_and_phrases() -> None:
    samples = told("A Hot  Dog!", "a dogma", "two dogs", "foxes run", ("nothing", "a dog and a fox"), "hot")
    found = judged(Mentions(["dog", "hot dog", "fox", "", " "]), samples)
    assert found.keep.tolist() == [True, False, True, True, True, False]
    assert found.scores.tolist() == [1, 0, 1, 1, 2, 0]
    with pytest.raises(FieldError, match="entities"):
        Mentions(["", " "])


# ------------------------------------------------------------------------------------------------------ pictures


def again(image: np.ndarray, change: str) -> np.ndarray:
    """A picture as it comes back from the web."""
    if change == "smaller":
        return np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR))
    if change == "brighter":
        return (image * 0.8 + 40).astype(np.uint8)
    if change == "jpeg":
        return np.asarray(Image.open(io.BytesIO(encode(image, "JPEG"))))
    return image[1:-1, 1:-1] if change == "cropped" else image.copy()


@pytest.mark.parametrize("change", ["same", "smaller", "brighter", "jpeg", "cropped"])
def test_near_duplicates_are_found_and_the_first_is_kept(change: str) -> None:
    photos = [photo(n) for n in range(6)]
    samples = shown(*photos[:4], again(photos[1], change), photos[4], again(photos[4], change), photos[5], again(photos[1], change))
    found = judged(Duplicates(), samples)
    assert found.keep.tolist() == [True, True, True, True, False, True, False, True, False]
    assert found.scores.tolist() == [1, 3, 1, 1, 0, 2, 0, 1, 0]


def test_another_colour_is_no_duplicate() -> None:
    image = photo(0)
    assert judged(Duplicates(), shown(image, image[..., ::-1], 255 - image)).keep.all()


def test_blank_pictures_are_duplicates_of_each_other() -> None:
    blanks = [np.full((20, 30, 3), level, np.uint8) for level in (0, 128, 255)]
    assert judged(Duplicates(), shown(photo(0), *blanks)).keep.tolist() == [True, True, False, False]


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.7, 2.0])
def test_the_search_finds_what_comparing_all_finds(distance: float) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(60, 48))
    points = np.concatenate([base, base[:20] + rng.normal(size=(20, 48)) * 0.05, base[:10], base[5:15] + 0.1 * rng.normal(size=(10, 48))])
    points = (points / np.linalg.norm(points, axis=1, keepdims=True))[rng.permutation(100)].astype(np.float32)
    expected = list(range(100))
    for later in range(100):
        for earlier in range(later):
            if expected[earlier] == earlier and np.linalg.norm(points[later].astype(float) - points[earlier]) <= distance + 1e-6:
                expected[later] = earlier
                break
    assert duplicates_of(points, distance).tolist() == expected


def test_many_equal_pictures_take_no_time() -> None:
    """A hundred thousand of one placeholder would be five thousand million pairs."""
    points = np.tile(np.array([[1.0, 0.0]], np.float32), (100_000, 1))
    assert not duplicates_of(points, 0.2).any()


def test_one_picture_is_no_duplicate() -> None:
    assert judged(Duplicates(), shown(photo(0))).keep.all()


def test_blur_lowers_sharpness_whatever_the_contrast_and_size() -> None:
    board = (np.indices((64, 64)).sum(axis=0) // 8 % 2 * 200 + 20).astype(np.uint8)
    sharp = np.repeat(board[..., None], 3, axis=2)
    faint = (sharp * 0.2 + 100).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3)))
    large = np.asarray(Image.fromarray(sharp).resize((640, 640), Image.Resampling.NEAREST))
    assert sharpness(faint) == pytest.approx(sharpness(sharp), rel=0.1)
    assert sharpness(blurred) < 0.3 < sharpness(large)
    assert judged(Blur(), shown(sharp, blurred, faint, np.full((8, 8, 3), 7, np.uint8), large)).keep.tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert sharpness(np.zeros((1, 1, 3), np.uint8)) == 0


# ------------------------------------------------------------------------------------------------------ scores


class Dual(nn.Module):
    """Embeds a picture by its first pixel, and a text by its first word, on the unit circle."""

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self._circle([float(image[0, 0, 0]) for image in images])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self._circle([float(text.split()[0]) for text in texts])

    def _circle(self, degrees: Sequence[float]) -> Any:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_clip_score_is_the_mean_cosine_of_a_samples_captions() -> None:
    image = np.full((2, 2, 3), 30, np.uint8)
    samples = [Sample(f"{n}", image, captions=texts) for n, texts in enumerate([("30",), ("90", "30"), ("210",), ("120", "120 again")])]
    found = judged(CLIPScore(Dual(), "dual", Cut(least=0.5)), samples, size=3)
    assert found.scores == pytest.approx([1, 0.75, -1, 0], abs=1e-6)
    assert found.keep.tolist() == [True, True, False, False]
    assert found.about == {"share": None, "least": 0.5, "clip": "dual"}


def test_what_embeds_nothing_gives_no_clip_score() -> None:
    with pytest.raises(EvalError, match="run: Linear embeds no pictures and texts; expected a CLIP"):
        CLIPScore(nn.Linear(1, 1), "run", Cut(0.5))


def test_random_keeps_as_many_as_asked_and_the_seed_decides() -> None:
    samples = told(*["a b c"] * 100)
    one, same, other = (judged(Random(Cut(0.3), seed), samples).keep for seed in (0, 0, 1))
    assert one.sum() == other.sum() == 31  # DataComp's cut keeps the one at rank 30 too
    assert (one == same).all()
    assert (one != other).any()


def test_the_truth_is_asked_for_only_where_it_is_known() -> None:
    samples = [replace(each, extra={"noise": kind}) for each, kind in zip(told("a", "b"), ("clean", "swapped"), strict=True)]
    assert judged(Truth(), samples).keep.tolist() == [True, False]
    with pytest.raises(EvalError, match="0 has no 'noise' in its extra"):
        judged(Truth(), told("a"))


def test_precision_and_recall_by_hand() -> None:
    keep = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)
    kinds = np.array(["clean", "clean", "swapped", "clean", "clean", "swapped", "blurred", "blurred"])
    found = against_truth(keep, kinds)
    assert (found["precision"], found["recall"], found["clean"]) == (0.5, 0.5, 0.5)
    assert found["kept_of"] == {"clean": 0.5, "swapped": 0.5, "blurred": 0.5}
    assert against_truth(np.zeros(8, bool), kinds)["precision"] == 0


# ------------------------------------------------------------------------------------------------------ the pool and the command


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pool-test"
    write_splits(folder, "pool-test", "tiny", polluted_sample, workers=1, samples={"train": COUNT, "val": 40})
    return folder


def ran(patch: pytest.MonkeyPatch, *arguments: object) -> None:
    patch.setattr(sys, "argv", ["recipes.filter", *map(str, arguments)])
    command.main()


def written(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *rows = map(json.loads, path.read_text().splitlines())
    return header, rows


@pytest.mark.parametrize(
    ("by", "drops", "least", "spares"),
    [
        (["blur"], "blurred", 0.9, 0.98),
        (["duplicates"], "duplicate", 0.8, 0.99),
        (["boilerplate", "--repeats", "0.01"], "boilerplate", 0.5, 0.9),  # each of the texts is in about four of 300 samples
        (["truth"], "swapped", 1, 1),
    ],
)
def test_each_filter_finds_what_was_planted(
    by: list[str], drops: str, least: float, spares: float, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "list.jsonl"
    ran(monkeypatch, pool, "--by", *by, "--out", out)
    header, rows = written(out)
    kept = [noise_of(int(row["key"]), 0) for row in rows]
    planted = [noise_of(index, 0) for index in range(COUNT)]
    assert kept.count(drops) <= (1 - least) * planted.count(drops)
    assert kept.count("clean") >= spares * planted.count("clean")
    truth = header["truth"]
    assert truth["precision"] == pytest.approx(kept.count("clean") / len(kept))
    assert truth["recall"] == pytest.approx(kept.count("clean") / planted.count("clean"))
    assert truth["kept_of"][drops] == pytest.approx(kept.count(drops) / planted.count(drops))
    assert (header["seen"], header["kept"]) == (COUNT, len(rows))


def test_several_filters_keep_what_all_keep(pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lists = {}
    for by in ("blur", "duplicates", "blur,duplicates"):
        ran(monkeypatch, pool, "--by", by)
        lists[by] = written(pool / f"keep-{by.replace(',', '-')}.jsonl")
    keys = {by: {row["key"] for row in rows} for by, (_, rows) in lists.items()}
    assert keys["blur,duplicates"] == keys["blur"] & keys["duplicates"]
    header, rows = lists["blur,duplicates"]
    assert set(rows[0]) == {"shard", "key", "blur", "duplicates"}
    assert {name: each["kept"] for name, each in header["by"].items()} == {name: len(keys[name]) for name in ("blur", "duplicates")}
    said = capsys.readouterr().out
    assert "blur: keeps" in said
    assert "precision" in said
    assert "--keep " in said


def test_a_data_set_without_truth_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = make_split(tmp_path / "mine", [5, 4], index=False)
    ran(monkeypatch, folder, "--by", "random", "--share", 0.4)
    header, rows = written(folder / "keep-random-0.4.jsonl")
    assert "truth" not in header
    assert (header["hash"], header["seen"], len(rows)) == (None, 9, 4)
    assert "precision" not in capsys.readouterr().out
    assert keeping(find(folder, "train"), folder / "keep-random-0.4.jsonl").samples == 4


def test_equal_keys_in_several_shards_are_judged_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard, text in enumerate((b"a long caption of it", b"no")):
        members = [m for n in range(3) for m in ((f"{n}.png", encode(photo(n + 10 * shard))), (f"{n}.txt", text))]
        write_tar(tmp_path / "mine" / f"{shard:05d}.tar", members)
    ran(monkeypatch, tmp_path / "mine", "--by", "length")
    out = tmp_path / "mine" / "keep-length.jsonl"
    assert [(row["shard"], row["key"]) for row in written(out)[1]] == [("00000.tar", f"{n}") for n in range(3)]
    kept = [sample.captions for batch in in_order(keeping(find(tmp_path / "mine", "train"), out), batch_size=9) for sample in batch]
    assert kept == [("a long caption of it",)] * 3


def test_what_cannot_be_used_is_counted_and_in_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    members = [m for n in range(20) for m in ((f"{n:02d}.png", encode(photo(n))), (f"{n:02d}.txt", b"a picture of it"))]
    write_tar(
        tmp_path / "mine" / "00000.tar",
        [*members, ("90.png", b"no picture"), ("90.txt", b"a picture of it"), ("91.png", encode(photo(91)))],
    )
    ran(monkeypatch, tmp_path / "mine", "--by", "length", "--out", tmp_path / "list")
    header, rows = written(tmp_path / "list")
    assert [row["key"] for row in rows] == [f"{n:02d}" for n in range(20)]
    assert header["dropped"] == {"undecodable image": 1, "no captions": 1}
    assert "left out before: 1 x undecodable image, 1 x no captions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "BY is '', expected one or more of clip, length"),
        (["--by", "clip,magic"], "BY is 'clip,magic', expected one or more of clip, length"),
        (["--by", "clip", "--share", "0.3"], "CLIP is '', expected the run of a CLIP"),
        (["--by", "clip", "--clip", "x"], "either SHARE=0.3"),
        (["--by", "random"], "either SHARE=0.3 or --least"),
        (["--by", "random", "--share", "0.5", "--seed", "-1"], "seed is -1, expected 0 to 4,294,967,295"),
        (["--by", "duplicates", "--distance", "nan"], "distance is nan, expected 0"),
        (["--by", "blur", "--sharpness", "-1"], "sharpness is -1.0, expected 0 to 4"),
        (["--by", "boilerplate", "--repeats", "2"], "repeats is 2.0, expected a share from 0 to 1"),
        (["--by", "text"], "a file is expected with one name per line"),
        (["--by", "text", "--entities", "/no/such/file"], "/no/such/file cannot be read"),
        (["--by", "length", "--words", "900"], r"no sample of pool-test/train is left of 300: length keeps 0 \(900 to 1000 words"),
        (["--by", "length", "--split", "nowhere"], "no split 'nowhere'"),
        (["--by", "clip", "--clip", "/no/such/run", "--share", "0.5"], "/no/such/run"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], why: str, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=why):
        ran(monkeypatch, pool, *arguments)


def test_names_are_read_in_any_encoding(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "names").write_bytes("circle\nsquare".encode(encoding))
        ran(monkeypatch, pool, "--by", "text", "--entities", tmp_path / "names", "--out", tmp_path / "list")
        kept.append(written(tmp_path / "list")[0]["kept"])
    assert kept[0] == kept[1] == kept[2] > 0


def test_a_pattern_of_tars_needs_a_place_for_the_list(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = pool / "train" / "00000.tar"
    with pytest.raises(SystemExit, match="OUT is None, expected a file for the list"):
        ran(monkeypatch, tar, "--by", "length")
    ran(monkeypatch, tar, "--by", "length", "--out", tmp_path / "list")
    assert written(tmp_path / "list")[0]["seen"] == COUNT


def test_a_model_trains_on_what_a_filter_keeps(pool: Path, recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(monkeypatch, pool, "--by", "blur,duplicates", "--out", tmp_path / "list")
    kept = len(written(tmp_path / "list")[1])
    short = replace(recipe, data=str(pool), keep=str(tmp_path / "list"), budget=32, optim=replace(recipe.optim, warmup=0))
    assert train(short, tmp_path / "run", "tiny") == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert any(f"{kept} samples of {COUNT}, kept by {tmp_path / 'list'}" in str(line) for line in log)
    about = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert about["keep"] == str(tmp_path / "list")
    assert len(about["keep_sha256"]) == 64

    (tmp_path / "list").write_text("\n".join((tmp_path / "list").read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"was trained with another recipe .*keep_sha256"):
        train(short, tmp_path / "run", "tiny")
    (tmp_path / "few").write_text("00000000\n00000001\n")
    with pytest.raises(FieldError, match="batch of stage 'train' is 16, expected at most the 2 samples of pool-test/train"):
        train(replace(short, keep=str(tmp_path / "few")), tmp_path / "other", "tiny")


def test_a_trained_clip_filters(pool: Path, recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(recipe, data=str(pool), budget=32, optim=replace(recipe.optim, warmup=0))
    assert train(short, tmp_path / "run", "tiny") == 0
    ran(monkeypatch, pool, "--by", "clip", "--clip", tmp_path / "run", "--share", 0.25, "--out", tmp_path / "list", "--device", "cpu")
    header, rows = written(tmp_path / "list")
    assert len(rows) == 76
    assert min(row["clip"] for row in rows) == pytest.approx(header["by"]["clip"]["least"], abs=1e-4)
    assert header["by"]["clip"]["clip"] == str(tmp_path / "run")


def test_pools_hold_few_duplicates_by_chance() -> None:
    samples = [make_sample(PRESETS["tiny"], "train", index) for index in range(200)]
    assert judged(Duplicates(), samples).keep.all()
    with pytest.raises(DataError, match="no data"):
        find("", "train")
