"""Shards as other people write them: their labels, captions, splits and texts are read, and foreign fields cost no sample."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.check import check
from data.decode import MAX_CAPTIONS, Tally, decode, read_shard
from data.loader import in_order
from data.sample import Object, Question, Sample
from data.shards import DataError, class_names, find, prompt_templates, splits
from tests.data.kit import encode, good_members, make_split, picture, write_tar

IMAGE = encode(picture(1))
OBJECT = {"name": "dog", "box": [0, 0, 4, 4]}


def read_one(tmp_path: Path, members: dict[str, bytes | dict | list]) -> tuple[Sample | None, Counter[str], list[str]]:
    """The only sample of a tar, with an image and these members: extension -> bytes, or an object to write as json."""
    contents = [(f"s0.{name}", value if isinstance(value, bytes) else json.dumps(value).encode()) for name, value in members.items()]
    tally = Tally()
    write_tar(tmp_path / "test" / "0.tar", [("s0.png", IMAGE), *contents])
    [sample] = [decode(members, (), tally) for members in read_shard(str(tmp_path / "test" / "0.tar"), tally)]
    return sample, tally.drops, tally.examples


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"txt": b"a dog\na brown dog\nan animal\na pet\none dog"}, ["a dog", "a brown dog", "an animal", "a pet", "one dog"]),
        ({"txt": b"\xef\xbb\xbfa dog\r\n\r\n a brown dog \r\n"}, ["a dog", "a brown dog"]),
        ({"txt": b"['a dog', 'it\\'s brown']"}, ["a dog", "it's brown"]),
        ({"txt": b"two\nlines", "json": {"caption": "two\nlines"}}, ["two\nlines"]),  # img2dataset: one caption of two lines
        ({"txt": b" \n", "json": {"caption": "a dog"}}, ["a dog"]),
        ({"txt": b"a dog", "json": {"captions": ["a dog", "a pet"]}}, ["a dog", "a pet"]),
        ({"txt": b"a dog\na pet", "json": {"captions": ["a pet", "a dog"]}}, ["a pet", "a dog"]),
        ({"txt": b"a cat", "json": {"captions": ["a dog", "a pet"]}}, ["a cat", "a dog", "a pet"]),
        ({"json": {"captions": "a dog"}}, ["a dog"]),
        ({"json": {"captions": "a dog\na pet"}}, ["a dog", "a pet"]),
        ({"json": {"captions": '["a dog", "a pet"]'}}, ["a dog", "a pet"]),
        ({"json": {"captions": [], "caption": "a dog"}}, ["a dog"]),
        ({"json": {"captions": None, "caption": "a dog"}}, ["a dog"]),
        ({"json": {"caption": ["a dog", "a pet"]}}, ["a dog", "a pet"]),
        ({"json": {"text": "a dog"}}, ["a dog"]),
        ({"json": {"TEXT": "a dog"}}, ["a dog"]),
        ({"json": {"Caption": "a dog"}}, ["a dog"]),
        ({"json": {"texts": ["a dog", "a pet"]}}, ["a dog", "a pet"]),
        ({"json": {"alt_text": "a dog", "url": "x"}}, ["a dog"]),
        ({"json": ["a dog", "a pet"]}, ["a dog", "a pet"]),
        ({"0.txt": b"a dog", "1.txt": b"a pet"}, ["a dog", "a pet"]),
        ({"text": b"a dog"}, ["a dog"]),
        ({"caption": b"a dog"}, ["a dog"]),
    ],
)
def test_captions_are_found_where_people_keep_them(tmp_path: Path, members: dict, captions: list[str]) -> None:
    sample, drops, _ = read_one(tmp_path, members)
    assert sample is not None
    assert list(sample.captions) == captions
    assert not drops
    assert not sample.extra.keys() & {"caption", "captions", "text", "TEXT", "Caption", "texts", "alt_text"}


def test_a_second_text_is_kept_as_extra(tmp_path: Path) -> None:
    sample, _, _ = read_one(tmp_path, {"txt": b"rewritten", "json": {"caption": "original", "text": "ocr"}})
    assert sample is not None
    assert (sample.captions, sample.extra) == (("rewritten",), {"caption": "original", "text": "ocr"})


NONE, EMPTY, NESTED = "bad captions (None or nan)", "bad captions (empty)", "bad captions (a list)"


@pytest.mark.parametrize(
    ("members", "lost"),
    [
        ({"json": {"captions": ["a dog", None]}}, {NONE: 1}),
        ({"json": {"captions": [None, "a dog", None, " ", ""]}}, {NONE: 2, EMPTY: 2}),
        ({"json": b'{"captions": ["a dog", NaN]}'}, {NONE: 1}),
        ({"json": {"captions": ["nan", "a dog", "None", "<NA>", " null "]}}, {NONE: 4}),
        ({"json": {"captions": [["a dog", "a pet"], "a dog", []]}}, {NESTED: 2}),
        (
            {"json": {"captions": ["a dog", ["a", ["b"]], None, "", 5, {"en": "a dog"}, True]}},
            {NESTED: 1, NONE: 1, EMPTY: 1, "bad captions": 3},
        ),
        ({"json": ["a dog", None, [""]]}, {NONE: 1, NESTED: 1}),
        ({"json": {"captions": "['a dog', None]"}}, {NONE: 1}),
        ({"json": {"captions": "['a dog' nan '']"}}, {NONE: 1, EMPTY: 1}),  # as numpy writes it
        ({"json": {"captions": '["a dog", NaN, [1]]'}}, {NONE: 1, NESTED: 1}),
        ({"json": {"caption": ["a dog", None, float("nan")]}}, {NONE: 2}),
        ({"json": {"caption": "nan", "text": "a dog"}}, {NONE: 1}),
        ({"json": {"caption": "", "alt_text": "a dog"}}, {EMPTY: 1}),
        ({"json": {"caption": [["a pet"]], "texts": ["a dog"]}}, {NESTED: 1}),
        ({"txt": b"a dog\nnan\nNone\n\n"}, {NONE: 2}),
        ({"txt": b"['a dog', None, '']"}, {NONE: 1, EMPTY: 1}),
        ({"txt": b"nan", "json": {"captions": ["a dog"]}}, {NONE: 1}),
        ({"0.txt": b"a dog", "1.txt": b"None"}, {NONE: 1}),
    ],
)
def test_captions_that_are_none_are_counted_by_kind_and_cost_no_sample(tmp_path: Path, members: dict, lost: dict[str, int]) -> None:
    sample, drops, examples = read_one(tmp_path, members)
    assert sample is not None
    assert (sample.captions, drops) == (("a dog",), lost)
    assert all("s0 (" in example for example in examples)


@pytest.mark.parametrize(
    "value", ["nan", "", "[['a', 'b'], ['c']]", "[None]", "[nan]", None, [None], [""], [["a dog"]], float("nan"), 5, "[]"]
)
def test_a_sample_with_none_but_bad_captions_has_none(tmp_path: Path, value: Any) -> None:
    for name in ("caption", "captions"):
        sample, drops, _ = read_one(tmp_path, {"json": {name: value}})
        assert sample is not None
        assert sample.captions == ()
        assert value in (None, "", "[]") or sum(count for kind, count in drops.items() if kind.startswith("bad caption")) == 1


@pytest.mark.parametrize(
    "text", ["none of them is red", "Nan holds a cat", "[None] of us", "nan bread", "[[File:dog.jpg]]", "[1, 2]", "(nan)"]
)
def test_texts_that_only_look_so_are_captions(tmp_path: Path, text: str) -> None:
    for members in ({"txt": text.encode()}, {"json": {"caption": text}}, {"json": {"captions": [text]}}):
        sample, drops, _ = read_one(tmp_path, members)
        assert sample is not None
        assert (sample.captions, drops) == ((text,), {})


def test_fields_that_may_hold_captions_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("x.png", IMAGE), ("x.json", b'{"description": "a dog", "url": "u"}')])
    tally = Tally()
    for members in read_shard(str(tmp_path / "0.tar"), tally):
        assert decode(members, ("captions",), tally) is None
    assert tally.drops == {"no captions": 1}
    assert tally.examples[0].endswith("x (members: .png .json; json: description url) no captions")


def test_a_text_of_many_lines_is_bounded(tmp_path: Path) -> None:
    sample, drops, _ = read_one(tmp_path, {"txt": b"\n".join(b"%d" % n for n in range(MAX_CAPTIONS + 5))})
    assert sample is not None
    assert len(sample.captions) == MAX_CAPTIONS
    assert drops == {"captions beyond 1000": 1}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"label": 0.5}, "label"),
        ({"label": True}, "label"),
        ({"label": ["dog"]}, "label"),
        ({"label": {"name": "dog"}}, "label"),
        ({"objects": ["dog"]}, "objects"),
        ({"objects": "dog"}, "objects"),
        ({"objects": [OBJECT, {"name": "cat"}]}, "objects"),  # a part of the objects would make what is there look invented
        ({"objects": [OBJECT | {"box": [0, 0, 4]}]}, "objects"),
        ({"objects": [OBJECT | {"box": [0, 0, 4, float("nan")]}]}, "objects"),
        ({"objects": [OBJECT | {"attributes": ["red"]}]}, "objects"),
        ({"objects": {"dog": 1}}, "objects"),
        ({"questions": [{"q": "?"}]}, "questions"),
        ({"questions": "what is it?"}, "questions"),
        ({"questions": [["what?", "dog"]]}, "questions"),
        ({"foils": ["a cat"]}, "foils"),
        ({"foils": 3}, "foils"),
        ({"extra": "x"}, "extra"),
        ({"extra": [1]}, "extra"),
        ({"captions": 5}, "captions"),
        ({"captions": ["a dog", 5]}, "captions"),
        ({"captions": {"en": "a dog"}}, "captions"),
    ],
)
def test_a_foreign_field_costs_the_field_and_not_the_sample(tmp_path: Path, record: dict, field: str) -> None:
    sample, drops, examples = read_one(tmp_path, {"json": {"caption": "a dog", "url": "u"} | record})
    assert sample is not None
    assert sample.captions == ("a dog",)
    assert (sample.label, sample.objects, sample.questions, sample.foils) == (None, (), (), ())
    assert sample.extra == {"url": "u"}
    assert drops == {f"bad {field}": 1}
    assert f"bad {field}" in examples[0]


@pytest.mark.parametrize("field", ["objects", "questions", "foils"])
@pytest.mark.parametrize("value", [[{"name": "dog"}], ["dog"], [None], [3]])
def test_a_foreign_field_is_named_with_what_was_expected_and_found(tmp_path: Path, field: str, value: object) -> None:
    _, _, examples = read_one(tmp_path, {"json": {"caption": "a dog", field: value}})
    assert f"{field}: expected [{{" in examples[0]
    assert f"found {value!r}" in examples[0]


@pytest.mark.parametrize("content", [b"[1]", b"5", b'"text"', b"null", b"true"])
def test_json_that_is_no_object_costs_no_sample_with_a_text(tmp_path: Path, content: bytes) -> None:
    sample, drops, _ = read_one(tmp_path, {"json": content, "txt": b"a dog"})
    assert sample is not None
    assert sample.captions == ("a dog",)
    assert drops == {"bad captions" if content == b"[1]" else "bad json": 1}


def test_good_fields_beside_a_foreign_one_stay(tmp_path: Path) -> None:
    question = {"question": "what?", "answer": "dog", "question_id": 7}
    record = {"label": 0.5, "captions": ["a dog"], "objects": [OBJECT], "questions": [question]}
    sample, drops, _ = read_one(tmp_path, {"json": record})
    assert sample is not None
    assert sample.objects == (Object("dog", (0.0, 0.0, 4.0, 4.0)),)
    assert sample.questions == (Question("what?", "dog"),)
    assert drops == {"bad label": 1}


def clip_benchmark(folder: Path, labels: list[bytes], names: bytes | None = b"tabby cat\ndog\nfish\n") -> Path:
    """As `clip_benchmark_export_wds` writes a data set of classes."""
    members = [(f"s{n:07d}.{name}", content) for n, label in enumerate(labels) for name, content in (("png", IMAGE), ("cls", label))]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text("classification\n")
    if names is not None:
        (folder / "classnames.txt").write_bytes(names)
    return folder


def labels_of(split_of: Path | str, **options: Any) -> list[str | None]:
    return [sample.label for batch in in_order(find(split_of, "test"), batch_size=9, max_drop_share=0.9, **options) for sample in batch]


@pytest.mark.parametrize(
    "names", [b"tabby cat\ndog\nfish\n", b"\xef\xbb\xbftabby cat\r\n dog \r\nfish", "tabby cat\ndog\nfish".encode("utf-16")]
)
def test_class_numbers_get_the_names_of_classnames_txt(tmp_path: Path, names: bytes) -> None:
    drops: Counter[str] = Counter()
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"0\n", b" 1 ", b"3", b"-1", b"", b"1.0", b"0.5", b"dog", b"\x80\x04K\x01."], names)
    expected = ["fish", "tabby cat", "dog", None, None, None, "dog", None, "dog", None]
    assert labels_of(folder, drops=drops) == expected
    assert drops["bad cls"] == 5
    split = find(folder, "test")
    assert (split.name, split.classes) == ("pets", ("tabby cat", "dog", "fish"))
    assert splits(folder) == ["test"]
    drops.clear()
    assert labels_of(folder, drops=drops, needs=("label",)) == [label for label in expected if label]
    assert drops["no label"] == 5


def test_classnames_beside_the_tars_and_by_pattern(tmp_path: Path) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"0"])
    (folder / "classnames.txt").rename(folder / "test" / "classnames.txt")
    assert labels_of(folder) == ["fish", "tabby cat"]
    assert find(f"{folder}/test/{{0..0}}.tar", "test").classes == ("tabby cat", "dog", "fish")
    assert find(folder / "test", "test").classes == ("tabby cat", "dog", "fish")


def test_a_blank_line_in_classnames_keeps_its_number(tmp_path: Path) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"1"], b"cat\n\nfish\n\n")
    drops: Counter[str] = Counter()
    assert labels_of(folder, drops=drops) == ["fish", None]
    assert drops == {"bad cls": 1}
    assert find(folder, "test").classes == ("cat", "fish")


TEMPLATES = "zeroshot_classification_templates.txt"


@pytest.mark.parametrize("place", [".", "test"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_prompt_templates_of_the_data_set(tmp_path: Path, place: str, encoding: str) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2"])
    assert prompt_templates(folder / "test") == ()
    (folder / place / TEMPLATES).write_bytes("a photo of a {c}.\r\n\n itap of the {c}, a pet.\na photo of a {c}.\n".encode(encoding))
    assert prompt_templates(folder / "test") == ("a photo of a {class}.", "itap of the {class}, a pet.")


@pytest.mark.parametrize("line", ["a photo", "a {c} and a {c}", "a {color} {c}", "a {c", "a } {c}", "{c!r}", "{0}"])
def test_a_template_that_is_none_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / TEMPLATES).write_text("a photo of a {}.\n" + line + "\n")
    with pytest.raises(DataError, match=rf"{TEMPLATES}, line 2: expected a template with one {{c}}.*found {re.escape(repr(line))}"):
        prompt_templates(tmp_path)


def test_names_and_templates_are_fetched_beside_remote_shards(tmp_path: Path) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"0"])
    (folder / TEMPLATES).write_text("a photo of a {c}.\n")
    clip_benchmark(tmp_path / "bare", [b"2", b"0"], None)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = f"http://127.0.0.1:{server.server_port}/pets/test/{{0..0}}.tar"
        assert labels_of(remote) == ["fish", "tabby cat"]
        assert class_names(remote.rpartition("/")[0]) == ("tabby cat", "dog", "fish")
        assert prompt_templates(remote.rpartition("/")[0]) == ("a photo of a {class}.",)
        with pytest.warns(
            UserWarning,
            match=r"/bare/test/classnames.txt: neither there nor in the parent folder, so classes are numbers. Put it beside the tars",
        ):
            assert labels_of(remote.replace("pets", "bare")) == ["2", "0"]
        server.shutdown()


def test_numbers_without_names_stay_numbers_and_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"10", b"2"], None)
    assert labels_of(folder) == ["2", "10", "2"]
    assert check(folder, "test")
    assert "into classnames.txt" in capsys.readouterr().out


def test_a_number_in_the_json_gets_a_name_and_a_name_in_it_wins(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    for record, label in (({"label": 1}, "dog"), ({"label": "bird"}, "bird"), ({"label": None}, "cat"), ({}, "cat")):
        sample, drops, _ = read_one(tmp_path, {"json": record, "cls": b"0"})
        assert sample is not None
        assert (sample.label, drops) == (label, {})


def test_the_index_of_such_a_set_has_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip_benchmark(tmp_path / "pets", [b"2", b"2"], b"tabby cat\ndog\nfish\nfish\n")
    (folder / "test" / "nshards.txt").write_text("2\n")
    assert check(folder, "test")
    printed = capsys.readouterr().out
    assert "names 1 classes twice, such as 'fish'" in printed
    assert "says 2 tars, but there are 1" in printed
    assert find(folder, "test").classes == ("tabby cat", "dog", "fish")
    assert json.loads((folder / "test" / "index.json").read_text())["classes"] == ["tabby cat", "dog", "fish"]


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "Validation", "val", "Val", "VAL"])
def test_a_validation_split_is_val(tmp_path: Path, name: str) -> None:
    for indexed in (False, True):
        folder = make_split(tmp_path / f"set{indexed}", [2], index=indexed)
        make_split(folder, [3], split=name, index=indexed)
        assert splits(folder) == ["train", "val"]
        split = find(folder, "val")
        assert (split.name, split.split, len(next(in_order(split, batch_size=9)))) == (folder.name, "val", 3)
        assert find(folder / name, "val").name == folder.name
        assert find(folder, name).urls == split.urls


def test_two_validation_splits_keep_their_names(tmp_path: Path) -> None:
    for number, name in enumerate(("val", "dev", "validation"), start=1):
        make_split(tmp_path / "set", [number], split=name)
    assert splits(tmp_path / "set") == ["val", "dev", "validation"]
    assert [find(tmp_path / "set", name).samples for name in ("val", "dev", "validation")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("encoding", "noted"),
    [("utf-8", 0), ("utf-8-sig", 0), ("utf-16", 0), ("utf-16-le", 0), ("utf-16-be", 0), ("utf-32", 0), ("latin-1", 1), ("cp1252", 1)],
)
def test_texts_of_any_encoding(tmp_path: Path, encoding: str, noted: int) -> None:
    for name, text in (("txt", "ein Café\nzwei Cafés"), ("json", '{"captions": ["ein Café", "zwei Cafés"]}')):
        sample, drops, _ = read_one(tmp_path, {name: text.encode(encoding)})
        assert sample is not None
        assert sample.captions == ("ein Café", "zwei Cafés")
        assert drops == Counter({"text that is not Unicode": noted} if noted else {})


def test_utf8_cut_in_a_letter_stays_utf8(tmp_path: Path) -> None:
    sample, drops, _ = read_one(tmp_path, {"txt": "日本語のテキスト".encode()[:-1]})
    assert sample is not None
    assert sample.captions == ("日本語のテキス\ufffd",)
    assert drops == {"text that is not Unicode": 1}


@pytest.mark.parametrize(
    ("encoding", "text"), [("shift_jis", "犬が草の上を走る"), ("gb18030", "一只狗在草地上"), ("cp1251", "Собака бежит")]
)
def test_a_text_in_an_unknown_encoding_is_not_read(tmp_path: Path, encoding: str, text: str) -> None:
    sample, drops, _ = read_one(tmp_path, {"txt": text.encode(encoding), "json": b'{"captions": ["a dog"]}'})
    assert sample is not None
    assert sample.captions == ("a dog",)
    assert drops == {"text in an unknown encoding": 1}


def test_class_names_in_an_unknown_encoding_are_refused(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "set", [2], index=False)
    (folder / "train" / "classnames.txt").write_bytes("犬\n猫の子\n".encode("shift_jis"))
    with pytest.raises(DataError, match=r"classnames\.txt is in an encoding that is not known"):
        find(folder, "train")


def test_members_that_belong_to_no_sample_are_counted(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "0.tar", [*good_members(2), ("README", b"x"), ("._000001.png", b"x"), ("a/.hidden", b"x"), ("b/000002", IMAGE)]
    )
    with tarfile.open(path, "a") as tar:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("p.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    drops: Counter[str] = Counter()
    assert len(next(in_order(find(path, "train"), batch_size=9, drops=drops))) == 2
    assert drops == {"member without an extension": 2, "hidden member": 2, "link, device or sparse file in a tar": 3}


def test_what_is_not_read_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "set" / "0.tar", [*good_members(2), *good_members(2, start=5), ("000006.npy", b"x"), ("000006.wav", b"x")])
    assert check(tmp_path / "set", "train")
    assert ".npy in 1, .wav in 1" in capsys.readouterr().out


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    folder = make_split(tmp_path / "set", [2], index=False)
    (folder / "train" / "._00000.tar").write_bytes(b"macOS")
    make_split(folder, [2], split=".val.partial", index=False)
    assert splits(folder) == ["train"]
    assert len(find(folder, "train").urls) == 1


def test_tars_in_one_file_are_all_read(tmp_path: Path) -> None:
    """`cat a.tar b.tar > all.tar`: tarfile stops at the first end."""
    parts = [write_tar(tmp_path / f"{n}.tar", good_members(3, start=10 * n)).read_bytes() for n in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    tally = Tally()
    assert len(list(read_shard(str(tmp_path / "all.tar"), tally))) == 9
    assert not tally.drops


def test_a_key_that_is_not_unicode_can_be_written(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", encoding="latin-1") as tar:
        for name, content in (("café.png", IMAGE), ("café.txt", b"t")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    [members] = read_shard(str(tmp_path / "0.tar"), Tally())
    assert members["__key__"].encode()
    assert {"png", "txt"} <= members.keys()
