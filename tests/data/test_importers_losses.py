"""Imports lose nothing in silence: what is read has its right value, and what is not is counted."""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.decode import Unusable, open_image
from data.importers.coco import import_coco
from data.importers.folder import import_folder
from data.importers.pope import import_pope
from data.importers.table import import_table
from data.importers.vqa import import_vqa
from data.importers.write import SOURCES
from data.shards import DataError, find
from tests.data.kit import encode, picture
from tests.data.test_importers import coco_json, dropped, read


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        (folder / name).write_bytes(encode(picture(number)))
    return folder


def captions_of(tmp_path: Path, pictures: Path, content: str | bytes, name: str) -> dict[str, tuple[str, ...]]:
    table = tmp_path / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    import_table(table=table, images=pictures, out=tmp_path / "out", split="train")
    return {sample.extra["file"]: sample.captions for sample in read(tmp_path / "out", "train")}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_quotation_mark_in_a_tsv_is_a_letter(tmp_path: Path, pictures: Path, ending: str) -> None:
    rows = ["path\tcaption", 'a.png\t"Stop" says the sign', 'b.png\t"', 'c.png\t"never closed', 'a.png\t5" tall', 'b.png\t"a quoted one"']
    assert captions_of(tmp_path, pictures, ending.join(rows), "t.tsv") == {
        "a.png": ('"Stop" says the sign', '5" tall'),
        "b.png": ('"', '"a quoted one"'),
        "c.png": ('"never closed',),
    }
    assert dropped(tmp_path / "out", "train") == {}


def test_cells_that_a_csv_writer_quoted_in_a_tsv_are_what_they_were(tmp_path: Path, pictures: Path) -> None:
    rows = ["path\tcaption", 'a.png\t"He says ""stop"" twice"', 'b.png\t"""Stop"""', 'c.png\t""Stop""']
    assert captions_of(tmp_path, pictures, "\n".join(rows), "t.tsv") == {
        "a.png": ('He says "stop" twice',),
        "b.png": ('"Stop"',),
        "c.png": ('""Stop""',),
    }


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_ragged_rows_are_counted_and_named(tmp_path: Path, pictures: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("path", "caption"), ("a.png", "a dog", " running"), ("b.png", "two", ""), ("c.png",), ("a.png", "one"), (), ("b.png", "three")]
    text = "\n".join(("\t" if name == "t.tsv" else ",").join(row) for row in rows)
    assert captions_of(tmp_path, pictures, text, name) == {"a.png": ("one",), "b.png": ("two", "three")}
    assert dropped(tmp_path / "out", "train") == {"row with more cells than columns": 1, "row without a caption": 1}
    assert f"{name}, line 2: 3 cells in 2 columns" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['a.png,"unclosed', "b.png,two", "c.png,three"], 2),
        (["a.png,one", 'b.png,"unclosed', 'c.png,"three"'], 3),
        (["a.png,one", 'b.png,"closed" too early', "c.png,three"], 3),
        (['a.png,"two', 'lines"', 'b.png,"unclosed'], 4),
    ],
)
def test_an_unclosed_quote_in_a_csv_is_an_error_with_its_line(tmp_path: Path, pictures: Path, rows: list[str], line: int) -> None:
    with pytest.raises(DataError, match=rf"t\.csv, line {line}: .*quotation mark"):
        captions_of(tmp_path, pictures, "\n".join(["path,caption", *rows]), "t.csv")
    assert not (tmp_path / "out" / "train").exists()


def test_a_csv_keeps_lines_commas_and_quotes_in_quotes(tmp_path: Path, pictures: Path) -> None:
    text = 'path,caption\r\na.png,"two\r\nlines, and a ""quote"""\r\nb.png,5" tall\r\n'
    assert captions_of(tmp_path, pictures, text, "t.csv") == {"a.png": ('two\r\nlines, and a "quote"',), "b.png": ('5" tall',)}


def test_a_column_twice_or_no_header_is_an_error(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="2 columns called 'caption'"):
        captions_of(tmp_path, pictures, "path,caption,caption\na.png,one,two\n", "t.csv")
    with pytest.raises(DataError, match=r"no column 'path', only 'a.png', 'one'.*first line"):
        captions_of(tmp_path, pictures, "a.png,one\nb.png,two\n", "t.csv")
    for mark in "|;\t":
        with pytest.raises(DataError, match="separated by " + re.escape(repr(mark))):
            captions_of(tmp_path, pictures, f"path{mark}caption\na.png{mark}one\n", "t.csv")
    with pytest.raises(DataError, match="separated by ','"):
        captions_of(tmp_path, pictures, "path,caption\na.png,one\n", "t.tsv")
    assert captions_of(tmp_path, pictures, " path , caption ,,\na.png,one,,\n", "t.csv") == {"a.png": ("one",)}


def test_a_space_before_a_quotation_mark_is_no_part_of_a_cell(tmp_path: Path, pictures: Path) -> None:
    text = 'path, caption\na.png, "one, and two"\nb.png, two\n'
    assert captions_of(tmp_path, pictures, text, "t.csv") == {"a.png": ("one, and two",), "b.png": ("two",)}


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("lines", [True, False])
def test_objects_in_an_array_or_on_lines_of_their_own(tmp_path: Path, pictures: Path, name: str, lines: bool) -> None:
    rows = [{"path": "a.png", "caption": "one"}, 5, {"path": "b.png", "caption": "two"}]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1)
    assert captions_of(tmp_path, pictures, text, name) == {"a.png": ("one",), "b.png": ("two",)}
    assert dropped(tmp_path / "out", "train") == {"line that is not a json object": 1}


@pytest.mark.parametrize("caption", ["a\0b", "a\0", "\0ab", "ab\0c"])
def test_a_zero_byte_in_a_text_makes_no_second_caption(tmp_path: Path, pictures: Path, caption: str) -> None:
    row = json.dumps({"path": "a.png", "caption": caption})
    assert captions_of(tmp_path, pictures, row, "t.jsonl") == {"a.png": (caption.replace("\0", ""),)}


def test_a_table_without_rows_says_so(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="none of 0 images could be used: there are no rows"):
        captions_of(tmp_path, pictures, "path,caption\n", "t.csv")


def test_ids_that_pandas_wrote_as_floats(tmp_path: Path, pictures: Path) -> None:
    images = [{"id": 7.0, "file_name": "a.png"}, {"id": True, "file_name": "b.png"}]
    captions = coco_json(tmp_path / "c.json", images, [{"image_id": 7, "caption": "one"}, {"image_id": 7.0, "caption": "two"}])
    import_coco(captions=captions, images=pictures, out=tmp_path / "out", split="train")
    assert [sample.captions for sample in read(tmp_path / "out", "train")] == [("one", "two")]
    assert dropped(tmp_path / "out", "train") == {"image entry without id or file_name": 1}


LISTS = {"a.png": "['a child', 'a kid']", "b.png": '["a", "it\'s"]', "c.png": "[a dog]"}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_list_in_a_cell_is_several_captions(tmp_path: Path, pictures: Path, name: str) -> None:
    quoted = {path: cell.replace('"', '""') for path, cell in LISTS.items()}
    text = {
        "t.csv": "path,caption\n" + "\n".join(f'{path},"{cell}"' for path, cell in quoted.items()),
        "t.tsv": "path\tcaption\n" + "\n".join(f"{path}\t{cell}" for path, cell in LISTS.items()),
        "t.jsonl": "\n".join(json.dumps({"path": path, "caption": cell}) for path, cell in LISTS.items()),
    }[name]
    wanted = {"a.png": ("a child", "a kid"), "b.png": ("a", "it's"), "c.png": ("[a dog]",)}
    assert captions_of(tmp_path, pictures, text, name) == wanted


def test_a_list_in_jsonl_is_several_captions(tmp_path: Path, pictures: Path) -> None:
    rows = [{"path": "a.png", "caption": ["a child", "a kid", 5, " "]}, {"path": "b.png", "caption": [5]}]
    assert captions_of(tmp_path, pictures, "\n".join(map(json.dumps, rows)), "t.jsonl") == {"a.png": ("a child", "a kid")}
    assert dropped(tmp_path / "out", "train") == {"row without a caption": 1, "bad captions": 2, "bad captions (empty)": 1}


CELLS = {  # cell -> captions of its row, and what is counted
    "a child": (["a child"], {}),
    "nan": ([], {"bad captions (None or nan)": 1, "row without a caption": 1}),
    "None": ([], {"bad captions (None or nan)": 1, "row without a caption": 1}),
    "<NA>": ([], {"bad captions (None or nan)": 1, "row without a caption": 1}),
    "": ([], {"row without a caption": 1}),
    "['a child' None]": (["a child"], {"bad captions (None or nan)": 1}),
    "['a child', nan, '', 'a kid']": (["a child", "a kid"], {"bad captions (None or nan)": 1, "bad captions (empty)": 1}),
    "[['a child', 'a kid']]": ([], {"bad captions (a list)": 1, "row without a caption": 1}),
}
VALUES: list[tuple[Any, list[str], dict[str, int]]] = [
    (None, [], {"row without a caption": 1}),
    (float("nan"), [], {"bad captions (None or nan)": 1, "row without a caption": 1}),
    (["a child", None, float("nan")], ["a child"], {"bad captions (None or nan)": 2}),
    ([["a child"], "a kid"], ["a kid"], {"bad captions (a list)": 1}),
    ({"en": "a child"}, [], {"bad captions": 1, "row without a caption": 1}),
]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_without_a_caption_are_counted_by_kind(tmp_path: Path, pictures: Path, name: str, cell: str) -> None:
    rows = {"b.png": "a dog", "a.png": cell}
    text = {
        "t.csv": "path,caption\n" + "".join(f'{path},"{value}"\n' for path, value in rows.items()),
        "t.tsv": "path\tcaption\n" + "".join(f"{path}\t{value}\n" for path, value in rows.items()),
        "t.jsonl": "".join(json.dumps({"path": path, "caption": value}) + "\n" for path, value in rows.items()),
    }[name]
    captions, lost = CELLS[cell]
    assert captions_of(tmp_path, pictures, text, name) == {"b.png": ("a dog",)} | ({"a.png": tuple(captions)} if captions else {})
    assert dropped(tmp_path / "out", "train") == lost


@pytest.mark.parametrize(("value", "captions", "lost"), VALUES)
def test_values_without_a_caption_are_counted_by_kind(
    tmp_path: Path, pictures: Path, value: Any, captions: list[str], lost: dict[str, int]
) -> None:
    rows = [{"path": "b.png", "caption": "a dog"}, {"path": "a.png", "caption": value}, {"path": None, "caption": "lost"}]
    found = captions_of(tmp_path, pictures, "\n".join(map(json.dumps, rows)), "t.jsonl")
    assert found == {"b.png": ("a dog",)} | ({"a.png": tuple(captions)} if captions else {})
    assert dropped(tmp_path / "out", "train") == lost | {"row without a path": 1}


def test_coco_captions_that_are_none_are_counted_and_the_picture_keeps_the_others(tmp_path: Path, pictures: Path) -> None:
    values = ["a dog", None, float("nan"), "nan", "", " ", ["a dog"], 5, "a pet"]
    captions = coco_json(tmp_path / "c.json", [{"id": 0, "file_name": "a.png"}], [{"image_id": 0, "caption": value} for value in values])
    import_coco(captions=captions, images=pictures, out=tmp_path / "out", split="train")
    [sample] = read(tmp_path / "out", "train")
    assert sample.captions == ("a dog", "a pet")
    assert dropped(tmp_path / "out", "train") == {
        "bad captions (None or nan)": 3,
        "bad captions (empty)": 2,
        "bad captions (a list)": 1,
        "annotation whose caption is not a string": 1,
    }


def test_a_label_that_is_none_makes_no_class(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption,kind\na.png,one,x\nb.png,two,nan\n")
    import_table(table=tmp_path / "t.csv", images=pictures, out=tmp_path / "out", split="train", label_column="kind")
    assert [sample.label for sample in read(tmp_path / "out", "train")] == ["x", None]
    assert find(tmp_path / "out", "train").classes == ("x",)
    assert dropped(tmp_path / "out", "train") == {"row without a label": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
def test_tables_of_any_encoding(tmp_path: Path, pictures: Path, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = "path\tcaption\na.png\tein Café\n".encode(encoding)
    assert captions_of(tmp_path, pictures, content, "t.tsv") == {"a.png": ("ein Café",)}
    assert ("read as Windows-1252" in capsys.readouterr().out) == (encoding in ("latin-1", "cp1252"))


WESTERN = ["un chien brun à côté d'une fenêtre", "« très jolie »", "Straße, Übergröße", "¿qué más?", "“20 °C”…", "ÉCOLE À PARIS", "å"]
FOREIGN = [
    ("shift_jis", "犬が草の上を走っている"),
    ("shift_jis", "テレビ"),
    ("shift_jis", "a dog 犬 runs"),
    ("cp932", "①髙橋さんの犬"),
    ("euc_jp", "犬が草の上を走っている"),
    ("iso2022_jp", "犬が草の上を走っている"),
    ("gb18030", "一只狗在草地上奔跑"),
    ("gb18030", "a dog 狗 runs"),
    ("gb18030", "𠮷野家的狗"),
    ("big5", "一隻狗在草地上"),
    ("euc_kr", "개가 풀밭에서 달린다"),
    ("cp1251", "Собака бежит по траве"),
    ("koi8_r", "Собака бежит по траве"),
    ("iso8859_7", "ένας σκύλος τρέχει"),
    ("cp1256", "كلب يركض على العشب"),
    ("cp1250", "żółty pies biegnie po trawie, gęś"),
    ("mac_roman", "un café à côté"),
    ("cp437", "un café à côté"),
    ("utf-16-le", "一只狗在草地上奔跑"),
]


@pytest.mark.parametrize("text", WESTERN)
def test_windows_1252_is_read_and_said(text: str, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = f"path\tcaption\na.png\t{text}\n".encode("cp1252")
    assert captions_of(tmp_path, pictures, content, "t.tsv") == {"a.png": (text,)}
    assert f"{tmp_path / 't.tsv'} is not UTF-8: it is read as Windows-1252" in capsys.readouterr().out


@pytest.mark.parametrize(("encoding", "text"), FOREIGN)
def test_an_encoding_that_is_not_known_is_refused(encoding: str, text: str, tmp_path: Path, pictures: Path) -> None:
    for name, content in (
        ("t.tsv", f"path\tcaption\na.png\t{text}\n"),
        ("t.jsonl", json.dumps({"path": "a.png", "caption": text}, ensure_ascii=False)),
    ):
        with pytest.raises(DataError) as caught:
            captions_of(tmp_path, pictures, content.encode(encoding), name)
        assert str(caught.value).startswith(f"{tmp_path / name} is in an encoding that is not known: neither UTF-8 nor UTF-16")
        assert "Save it as UTF-8, for example with `iconv -f SHIFT_JIS -t UTF-8`" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_utf8_is_read_and_said(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "path\tcaption\na.png\t犬が草の上を走っている\n".encode().replace("草".encode(), "草".encode()[:2])
    assert captions_of(tmp_path, pictures, content, "t.tsv") == {"a.png": ("犬が\ufffdの上を走っている",)}
    assert "t.tsv is damaged UTF-8: 1 bytes are invalid" in capsys.readouterr().out


def test_a_label_that_changes_is_counted(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "t.csv").write_text("path,caption,kind\na.png,one,x\na.png,two,y\nb.png,three,z\n")
    import_table(table=tmp_path / "t.csv", images=pictures, out=tmp_path / "out", split="train", label_column="kind")
    assert [sample.label for sample in read(tmp_path / "out", "train")] == ["x", "z"]
    assert dropped(tmp_path / "out", "train") == {"label unlike that of the picture's first row": 1}


@pytest.fixture
def two_folders(tmp_path: Path) -> Path:
    """Pictures of equal names in two folders."""
    for folder, first in (("a", 0), ("b", 10)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / folder / f"{number}.png").write_bytes(encode(picture(first + number)))
    return tmp_path / "photos"


FILES = [f"{folder}/{number}.png" for folder in "ab" for number in range(3)]


def pope_file(path: Path, files: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"image": file, "text": f"Is there a {n}?", "label": "yes"}) for n, file in enumerate(files)))
    return path


def test_equal_names_in_two_folders_are_two_samples(tmp_path: Path, two_folders: Path) -> None:
    import_pope(questions=(pope_file(tmp_path / "pope.json", FILES),), images=two_folders, out=tmp_path / "pope")
    table = tmp_path / "t.csv"
    table.write_text("path,caption\n" + "".join(f"{file},{file}\n" for file in FILES))
    import_table(table=table, images=two_folders, out=tmp_path / "table", split="test")
    import_folder(images=two_folders, out=tmp_path / "folder", split="test")
    entries = [{"id": n, "file_name": file} for n, file in enumerate(FILES)]
    captions = coco_json(tmp_path / "c.json", entries, [{"image_id": n, "caption": file} for n, file in enumerate(FILES)])
    import_coco(captions=captions, images=two_folders, out=tmp_path / "coco", split="test")
    about = {"questions": [{"question_id": n, "image_id": n, "question": "?"} for n in range(6)], "data_subtype": ""}
    (tmp_path / "q.json").write_text(json.dumps(about))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [{"question_id": n, "answers": ["x"]} for n in range(6)]}))
    import_vqa(questions=tmp_path / "q.json", annotations=tmp_path / "a.json", onto=tmp_path / "coco", out=tmp_path / "vqa", split="test")
    for name in ("pope", "table", "folder", "coco", "vqa"):
        samples = read(tmp_path / name, "test")
        assert len(samples) == find(tmp_path / name, "test").samples == len({sample.key for sample in samples}) == 6
        assert all(
            (sample.image == picture(10 * ("b/" in sample.extra["file"]) + int(sample.extra["file"][2]))).all() for sample in samples
        )
    keys = {sample.extra["file"]: sample.key for sample in read(tmp_path / "pope", "test")}
    assert [keys[file] for file in FILES] == ["0", "1", "2", "0-2", "1-2", "2-2"]


def test_questions_find_their_picture_by_its_folder(tmp_path: Path, two_folders: Path) -> None:
    entries = [{"id": n, "file_name": file} for n, file in enumerate(FILES)]
    captions = coco_json(tmp_path / "c.json", entries, [{"image_id": n, "caption": file} for n, file in enumerate(FILES)])
    import_coco(captions=captions, images=two_folders, out=tmp_path / "coco", split="test")
    import_pope(questions=(pope_file(tmp_path / "p.jsonl", FILES),), onto=tmp_path / "coco", out=tmp_path / "exact")
    for sample in read(tmp_path / "exact", "test"):
        assert [question.question for question in sample.questions] == [f"Is there a {FILES.index(sample.extra['file'])}?"]
    import_pope(questions=(pope_file(tmp_path / "p.jsonl", ["a/0.png", "0.png"]),), onto=tmp_path / "coco", out=tmp_path / "mixed")
    asked = {sample.extra["file"]: [question.question[-2] for question in sample.questions] for sample in read(tmp_path / "mixed", "test")}
    assert asked == {"a/0.png": ["0"], "b/0.png": ["1"]}
    import_pope(questions=(pope_file(tmp_path / "p.jsonl", ["0.png"]),), onto=tmp_path / "coco", out=tmp_path / "bare")
    assert dropped(tmp_path / "bare", "test") == {"no questions": 4, "questions about a file name in several folders": 1}


@pytest.mark.parametrize("name", ["x" * 120, "caf\u00e9 " * 30])
def test_long_file_names_are_no_keys(tmp_path: Path, two_folders: Path, name: str) -> None:
    (two_folders / "a" / "0.png").rename(two_folders / f"{name}.png")
    import_pope(questions=(pope_file(tmp_path / "p.jsonl", [f"{name}.png"]),), images=two_folders, out=tmp_path / "out")
    assert [sample.key for sample in read(tmp_path / "out", "test")] == ["00000000"]


def test_files_that_are_no_pictures_are_counted_by_their_ending(tmp_path: Path, two_folders: Path) -> None:
    for name in ("a/.DS_Store", "a/._0.png", "a/0001", "b/photo.heic", "b/x.avif", "b/y.avif", "outside.jpg", ".git/config"):
        (two_folders / name).parent.mkdir(exist_ok=True)
        (two_folders / name).write_bytes(b"x")
    import_folder(images=two_folders, out=tmp_path / "out", split="test")
    assert find(tmp_path / "out", "test").classes == ("a", "b")
    assert dropped(tmp_path / "out", "test") == {
        "hidden file": 2,
        "file without an ending": 1,
        "file ending in .heic": 1,
        "file ending in .avif": 2,
        "picture outside of the class folders": 1,
        "hidden folder": 1,
    }


RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # from black to white
GREY = np.rint(RAMP * 255)


SIGNED, UNSIGNED = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # TIFF's sample format; PIL writes all as signed


def saved(array: np.ndarray, format: str = "TIFF", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        saved(RAMP.astype(np.float32)),
        saved((RAMP * 255).astype(np.float32)),
        saved((RAMP * 65535).astype(np.float32)),
        saved((RAMP * 255).astype(np.int32)),
        saved((RAMP * 65535).astype(np.int32)),
        saved((RAMP * (2**32 - 1)).astype(np.uint32)).replace(SIGNED, UNSIGNED),
        saved((RAMP * 255).astype(np.uint16)),
        saved((RAMP * 65535).astype(np.uint16)),
        saved((RAMP * 4095).astype(np.uint16)),
        saved((RAMP * 1023).astype(np.float32)),
        saved((RAMP * (2**20 - 1)).astype(np.int32)),
        saved((RAMP * 65535).astype(np.uint16), "PNG"),
        saved((RAMP * 255).astype(np.uint8), "BMP"),
    ],
    ids=["f1", "f255", "f65535", "i255", "i65535", "u32", "u16 of 8 bits", "u16", "u12", "f1023", "i20", "png16", "bmp"],
)
def test_grey_of_any_depth_keeps_its_brightness(encoded: bytes) -> None:
    image = np.asarray(open_image(encoded, SOURCES)[0]).astype(int)
    assert image.shape == (8, 8, 3)
    assert np.abs(image[:, :, 0] - GREY).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        (RAMP - 0.5).astype(np.float32),
        (RAMP * 1e6).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
        (RAMP * -5000).astype(np.int32),
    ],
    ids=["negative", "large", "nan", "infinite", "negative integers"],
)
def test_numbers_that_are_no_brightness_are_counted_and_not_black(array: np.ndarray) -> None:
    with pytest.raises(Unusable, match="not brightness"):
        open_image(saved(array), SOURCES)


def test_a_dark_png_of_16_bits_stays_dark() -> None:
    image = np.asarray(open_image(saved((RAMP * 4095).astype(np.uint16), "PNG"), SOURCES)[0])
    assert image.max() == 15


def test_the_first_picture_of_several_is_taken(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("P", (4, 4), 0).save(buffer, "GIF", save_all=True, append_images=[Image.new("P", (4, 4), 9)], duration=5)
    assert open_image(buffer.getvalue(), SOURCES)[0].size == (4, 4)


def test_a_header_that_claims_a_huge_picture_is_not_believed() -> None:
    gif = bytearray(b"GIF89a" + (65535).to_bytes(2, "little") * 2 + b"\x80\0\0" + bytes(6) + b";")
    bmp = bytearray(saved((RAMP * 255).astype(np.uint8), "BMP"))
    bmp[18:26] = (2**31 - 1).to_bytes(4, "little") * 2
    for encoded in (bytes(gif), bytes(bmp)):
        with pytest.raises(Unusable, match=r"image too large|undecodable"):
            open_image(encoded, SOURCES)


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_that_no_picture_can_have_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "images" / "dog").mkdir(parents=True)
    (tmp_path / "images" / "dog" / "a.png").write_bytes(encode(picture(1)))
    with pytest.raises(DataError, match=f"--size is {size}, expected 1 or more"):
        import_folder(images=tmp_path / "images", out=tmp_path / "out", split="train", size=size)
