"""Annotation files: json, tables and texts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from data.importers import table
from data.importers.auto.place import Found, Place, split_in
from data.importers.auto.record import ADDRESSES, CAPTIONS, IDS, LABELS, PATHS, PICTURES, lowered, merged, name_of, row_of
from data.importers.entries import LINES, read_entries
from data.importers.folder import ENDINGS
from data.importers.vqa import FILE, questions_of
from data.importers.write import Row, read_text
from data.sample import Question
from data.shards import DataError

TABLES = (".csv", ".tsv", ".txt", ".tab")
LISTS = ("data", "images", "questions", "annotations", "samples")  # fields of a json object that may hold the records
DOWNLOAD = (
    "{path} lists addresses of pictures, not pictures. {first}Download them with img2dataset (`pip install img2dataset`), whose shards are "
    "read:\n"
    "  img2dataset --url_list {path} --input_format {format} {columns}--output_format webdataset --output_folder {out}\n"
    "  make train-clip DATA={out}"
)
ADDRESS = re.compile(r"https?://\S+")
KINDS = {".txt": "csv", ".tab": "tsv", ".ndjson": "jsonl"}  # img2dataset's names of formats, where they are not the ending
BY_NAME = (  # importers that are not tried here, and the fields by which their files are known
    ("winoground", "Winoground", {"image_0", "image_1", "caption_0", "caption_1"}),
    ("sugarcrepe", "SugarCrepe's foils", {"filename", "caption", "negative_caption"}),
    ("aro", "ARO's swaps", {"image_path", "true_caption", "false_caption"}),
    ("aro", "ARO's orders", {"image", "caption_options"}),
    ("pages", "MMC4's pages", {"text_list", "image_info"}),
    ("pages", "OBELICS's pages", {"texts", "images", "metadata"}),
)


def to_download(path: Path, format: str, columns: Sequence[str]) -> str | None:
    """What to do with a table of addresses, whose `columns` are as they are written; None if it has none."""
    names = {name.strip().lower(): name for name in columns}
    address = next((names[name] for name in ADDRESSES if name in names), None)
    if address is None:
        return None
    caption = next((names[name] for name in CAPTIONS if name in names), None)
    said = f"--url_col {quote(address)} " + (f"--caption_col {quote(caption)} " if caption else "")
    return _download(path, format, said)


def _download(path: Path, format: str, columns: str, first: str = "") -> str:
    return DOWNLOAD.format(path=quote(str(path)), format=format, columns=columns, out=quote(f".data/{path.stem}/train"), first=first)


def for_another_importer(place: Place) -> Found | None:
    """Files that importers read by their names."""
    if place.ending not in (".json", *LINES):
        return None
    content = place.json
    listed = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else [_first_line(place)]
    first = next((lowered(each) for each in listed if isinstance(each, dict)), {})
    for importer, name, fields in BY_NAME:
        if fields <= first.keys():
            raise DataError(f'{place.path}: {name}, which has an importer of its own: make import ARGS="{importer} --help"')
    return None


def _first_line(place: Place) -> Any:
    try:
        return json.loads(next((line for line in place.text.splitlines() if line.strip()), ""))
    except (ValueError, RecursionError):
        return None


def vqa(place: Place) -> Found | None:
    """VQAv2: questions, with the annotations in a file beside them."""
    content = place.json
    if not isinstance(content, dict) or not {"questions", "data_subtype"} <= content.keys() or not isinstance(content["questions"], list):
        return None
    if any(isinstance(entry, dict) and "answer" in entry for entry in content["questions"][:1]):
        return None
    name = re.sub("questions", "annotations", re.sub("OpenEnded_|MultipleChoice_", "", place.path.name, flags=re.I), flags=re.I)
    beside = _beside(place.path, name)
    if beside is None:
        raise DataError(f"{place.path}: VQAv2's questions. Their answers are in {name}: put it beside, or use the importer vqa")
    dropped: Counter[str] = Counter()
    asked = questions_of(content, beside, FILE, dropped)
    rows = [Row(each.file, questions=each.questions, extra={"id": each.id}) for each in asked if each.questions]
    return Found(f"VQAv2's questions, with the answers in {beside.name}", {"": rows}, needs=("questions",), dropped=dropped)


def vqa_answers(place: Place) -> Found | None:
    """VQAv2's answers, which name no question."""
    content = place.json
    listed = content.get("annotations") if isinstance(content, dict) else None
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    if {"question_id", "answers"} <= first.keys() and "question" not in first:
        raise DataError(f"{place.path}: VQAv2's answers. Put the questions beside (v2_OpenEnded_..._questions.json), and import those")
    return None


def _beside(path: Path, name: str) -> Path | None:
    """The file of that name, in any case, in the same folder."""
    return next((each for each in path.parent.iterdir() if each.name.lower() == name.lower()), None)


def clevr_scenes(place: Place) -> Found | None:
    if isinstance(place.json, dict) and "scenes" in place.json and "questions" not in place.json:
        raise DataError(f"{place.path}: CLEVR's scenes, which have no boxes. Import its questions: CLEVR_train_questions.json")
    return None


def addresses(place: Place) -> Found | None:
    """Lists of addresses, such as Conceptual Captions."""
    if place.ending not in (*TABLES, ".jsonl", ".json"):
        return None
    line = next((line for line in place.text[: 1 << 16].splitlines() if line.strip()), "")
    cells = [bool(ADDRESS.fullmatch(cell.strip())) for cell in line.split("\t")]
    if cells == [True]:
        raise DataError(_download(place.path, "txt", ""))
    if len(cells) == 2 and any(cells):  # the captions are in front in CC3M's, behind in CC12M's
        names = "url<tab>caption" if cells[0] else "caption<tab>url"
        first = f"Give it a first line, `{names}`. "
        raise DataError(f"Conceptual Captions' table: {_download(place.path, 'tsv', '--url_col url --caption_col caption ', first)}")
    return None


def flickr_tokens(place: Place) -> Found | None:
    """Flickr8k.token.txt: `name.jpg#0<tab>caption` a line."""
    if place.ending not in (".txt", ".token", ".csv", ".tsv"):
        return None
    line = re.compile(r"(.+\.(?:jpe?g|png)(?:\.\d+)?)#\d+\t(.*)", re.I)
    head = [each for each in place.text[: 1 << 16].splitlines() if each.strip()]
    if not head or not line.fullmatch(head[0].strip()):
        return None
    dropped: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    for each in filter(str.strip, place.text.splitlines()):
        match = line.fullmatch(each.strip())
        if match and match[2].strip():
            rows.setdefault(match[1], Row(match[1])).captions.append(match[2].strip())
        else:
            dropped["line that is not `name.jpg#number<tab>caption`"] += 1
    lemmas = _beside(place.path, place.path.name.replace(".token", ".lemma.token"))
    name, splits = "captions of Flickr8k's token file", _lists_beside(place.path)
    if not splits:
        return Found(name, {"": list(rows.values())}, needs=("captions",), dropped=dropped, read=(lemmas,) if lemmas else ())
    found = {split: [rows[each] for each in listed if each in rows] for split, listed in splits.items()}
    if others := len(rows) - sum(map(len, found.values())):
        dropped["picture that is in no list of a split"] += others
    name += f", with the lists of {', '.join(splits)}"
    return Found(name, found, needs=("captions",), dropped=dropped, read=(lemmas,) if lemmas else ())


def _lists_beside(path: Path) -> dict[str, list[str]]:
    """Split -> names of pictures: Flickr_8k.trainImages.txt, Flickr_8k.devImages.txt, ..."""
    found = {}
    for each in sorted(path.parent.iterdir()):
        if each.name.lower().endswith("images.txt") and (split := split_in(each.stem)):
            found[split] = list(dict.fromkeys(line.strip() for line in read_text(each).splitlines() if line.strip()))
    return found


def records(place: Place) -> Found | None:
    """Any file of records with a picture each: an array or object of json, an object a line, CSV, TSV."""
    dropped: Counter[str] = Counter()
    return of_entries(entries_of(place, dropped), place.path, dropped)


def of_entries(entries: Sequence[Mapping[str, Any]], path: Path, dropped: Counter[str]) -> Found | None:
    """Records by the names of their fields, which hold a picture and a text or a class; None for others."""
    names = {str(name).strip().lower(): str(name) for entry in entries[:100] for name in entry}
    if not names:
        return None
    if not names.keys() & {*PATHS, *IDS, *PICTURES}:
        if said := to_download(path, _kind(path), list(names.values())):
            raise DataError(said)
        return None
    texts = {*CAPTIONS, "question", "conversations", "messages"}
    if not names.keys() & {*texts, *LABELS}:
        return None
    name = name_of(entries[0])
    polls = name == "POPE's questions"
    splits: dict[str, list[Row]] = {}
    contents: dict[str, bytes] = {}
    for entry in entries:
        row = _poll(entry, path, dropped) if polls else row_of(entry, dropped)
        if row and row.content is not None:
            contents[str(entry.get("index"))] = row.content
        elif row and row.file in contents:  # MMBench writes a picture once, and then the row that has it
            row = replace(row, content=contents[row.file], file="")
        if row:
            said = lowered(entry).get("split")
            splits.setdefault(said if isinstance(said, str) else "", []).append(row)
    found = {split: merged(rows) for split, rows in splits.items()}
    needs: tuple[str, ...] = ("captions", "questions") if names.keys() & texts else ("label",)
    if any(row.page for rows in found.values() for row in rows):
        needs = (*needs, "page")
    classes = None if polls else sorted({row.label for rows in found.values() for row in rows if row.label}) or None
    return Found(f"{name}, {len(entries):,} of them", found, needs=needs, classes=classes, dropped=dropped, part_of="POPE" if polls else "")


def _kind(path: Path) -> str:
    """img2dataset's name of the format of a table."""
    ending = path.suffix.lower()
    with path.open(errors="replace") as file:
        return "tsv" if ending == ".txt" and "\t" in file.readline(1 << 16) else KINDS.get(ending, ending[1:])


def _poll(entry: Mapping[str, Any], path: Path, dropped: Counter[str]) -> Row | None:
    fields = lowered(entry)
    file, text, label = fields.get("image"), fields.get("text"), str(fields.get("label")).strip().lower()
    if not isinstance(file, str) or not isinstance(text, str) or label not in ("yes", "no"):
        dropped["entry without image, text and yes or no"] += 1
        return None
    kind = next((kind for kind in ("random", "popular", "adversarial") if kind in path.stem.lower()), path.stem)
    return Row(file, questions=[Question(text, label, f"pope-{kind}")])


def entries_of(place: Place, dropped: Counter[str]) -> list[Mapping[str, Any]]:
    if place.ending in TABLES:
        return list(_table(place, dropped))
    if place.ending not in (".json", *LINES):
        return []
    content = place.json
    if isinstance(content, dict):
        listed = next((content[name] for name in LISTS if isinstance(content.get(name), list) and content[name]), None)
        if listed is not None:
            dropped["entry that is not an object"] += sum(not isinstance(each, dict) for each in listed)
            dropped += Counter()
            return [each for each in listed if isinstance(each, dict)]
        if not any(isinstance(each, dict) for each in content.values()):
            return [content] if place.ending == ".json" else []
    if isinstance(content, list) and not any(isinstance(each, dict) for each in content):
        return []
    return [*read_entries(place.path, dropped)]


def _table(place: Place, dropped: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table: separated by tabs, by bars (Flickr30k's results.csv) or by commas; a first line that is a picture's row is none
    of names."""
    lines = [line for line in place.text.splitlines() if line.strip()]
    if not lines:
        return
    if lines[0].count("|") >= 2:
        names = [name.strip() for name in lines[0].split("|")]
        for line in lines[1:]:
            cells = [cell.strip() for cell in line.split("|", len(names) - 1)]
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            else:
                dropped[f"line without {len(names)} cells"] += 1
        return
    reader = table.READERS[".tsv" if place.ending in (".tsv", ".tab") or "\t" in lines[0] else ".csv"]
    named = not lines[0].split("\t")[0].split(",")[0].strip().strip('"').lower().endswith(ENDINGS)
    text = place.text if named else ("image\tcaption\n" if "\t" in lines[0] else "image,caption\n") + place.text
    yield from reader(place.path, text, (), dropped)
