"""Annotation files: json, tables and texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from data.importers import table
from data.importers.auto.place import Found, Place
from data.importers.auto.record import ADDRESSES, CAPTIONS, IDS, PATHS, lowered, merged, name_of, row_of
from data.importers.entries import LINES, read_entries
from data.importers.folder import ENDINGS
from data.importers.vqa import FILE, questions_of
from data.importers.write import Row
from data.sample import Question
from data.shards import DataError

TABLES = (".csv", ".tsv", ".txt", ".tab")
LISTS = ("data", "images", "questions", "annotations", "samples")  # fields of a json object that may hold the records
DOWNLOAD = (
    "lists addresses of pictures, not pictures. Download them with img2dataset (`pip install img2dataset`), whose shards are read:\n"
    "  img2dataset --url_list {path} --input_format {format} {columns}--output_format webdataset --output_folder {out}\n"
    "  make train-clip DATA={out}"
)


def vqa(place: Place) -> Found | None:
    """VQAv2: questions, with the annotations in a file beside them."""
    content = place.json
    if not isinstance(content, dict) or not {"questions", "data_subtype"} <= content.keys() or not isinstance(content["questions"], list):
        return None
    if any(isinstance(entry, dict) and "answer" in entry for entry in content["questions"][:1]):
        return None
    name = place.path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "").replace("questions", "annotations")
    beside = next((each for each in place.path.absolute().parent.iterdir() if each.name.lower() == name.lower()), None)
    if beside is None:
        raise DataError(f"{place.path}: VQAv2's questions. Their answers are in {name}: put it beside, or use the importer vqa")
    dropped: Counter[str] = Counter()
    asked = questions_of(content, beside, FILE, dropped)
    rows = [Row(each.file, questions=each.questions, extra={"id": each.id}) for each in asked if each.questions]
    return Found(f"VQAv2's questions, with the answers in {beside.name}", {"": rows}, needs=("questions",), dropped=dropped)


def clevr_scenes(place: Place) -> Found | None:
    if isinstance(place.json, dict) and "scenes" in place.json and "questions" not in place.json:
        raise DataError(f"{place.path}: CLEVR's scenes, which have no boxes. Import its questions: CLEVR_train_questions.json")
    return None


def addresses(place: Place) -> Found | None:
    """Lists of addresses, such as Conceptual Captions."""
    if place.ending not in (*TABLES, ".jsonl", ".json"):
        return None
    line = next((line for line in place.text[: 1 << 16].splitlines() if line.strip()), "")
    cells = line.split("\t")
    out = f".data/{place.path.stem}/train"
    if re.match(r"https?://\S+$", line.strip()):
        raise DataError(f"{place.path} " + DOWNLOAD.format(path=quote(str(place.path)), format="txt", columns="", out=quote(out)))
    if len(cells) == 2 and re.match(r"https?://\S+$", cells[1].strip()):
        hint = "Conceptual Captions' table. Give it a first line, `caption<tab>url`. It "
        columns = "--url_col url --caption_col caption "
        raise DataError(
            f"{place.path}: {hint}" + DOWNLOAD.format(path=quote(str(place.path)), format="tsv", columns=columns, out=quote(out))
        )
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
    return Found("captions of Flickr8k's token file", {"": list(rows.values())}, needs=("captions",), dropped=dropped)


def records(place: Place) -> Found | None:
    """Any file of records with a picture each: an array or object of json, an object a line, CSV, TSV."""
    dropped: Counter[str] = Counter()
    entries = entries_of(place, dropped)
    if not entries:
        return None
    names = {name for entry in entries[:100] for name in lowered(entry)}
    if not names & {*PATHS, *IDS, "img", "picture"}:
        if address := next((name for name in ADDRESSES if name in names), None):
            caption = next((name for name in CAPTIONS if name in names), "caption")
            columns, kind = f"--url_col {address} --caption_col {caption} ", place.ending[1:].replace("txt", "csv")
            out = f".data/{place.path.stem}/train"
            raise DataError(f"{place.path} " + DOWNLOAD.format(path=quote(str(place.path)), format=kind, columns=columns, out=quote(out)))
        return None
    if not names & {*CAPTIONS, "question", "conversations", "label", "class"}:
        return None
    name = name_of(entries[0])
    polls = name == "POPE's questions"
    splits: dict[str, list[Row]] = {}
    contents: dict[str, bytes] = {}
    for entry in entries:
        row = _poll(entry, place.path, dropped) if polls else row_of(entry, dropped)
        if row and row.content is not None:
            contents[str(entry.get("index"))] = row.content
        elif row and row.file in contents:  # MMBench writes a picture once, and then the row that has it
            row = replace(row, content=contents[row.file], file="")
        if row:
            said = lowered(entry).get("split")
            splits.setdefault("train" if said == "restval" else said if isinstance(said, str) else "", []).append(row)
    found = {split: merged(rows) for split, rows in splits.items()}
    needs: tuple[str, ...] = ("captions", "questions") if names & {*CAPTIONS, "question", "conversations"} else ("label",)
    if any(row.page for rows in found.values() for row in rows):
        needs = (*needs, "page")
    classes = sorted({row.label for rows in found.values() for row in rows if row.label}) or None
    return Found(f"{name}, {len(entries):,} of them", found, needs=needs, classes=None if polls else classes, dropped=dropped)


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
