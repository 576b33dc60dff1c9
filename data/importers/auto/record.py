"""One record of a table, a json file or a parquet file: its picture, captions, questions and label by the usual names of their fields."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data.captions import is_missing, list_of, usable
from data.decode import MAX_BYTES
from data.importers.folder import ENDINGS
from data.importers.write import Row
from data.sample import Question

Record = Mapping[str, Any]

PATHS = (
    *("image_path", "image_file", "image_filename", "image_name", "file_name", "filename", "filepath", "file", "path"),
    *("img_path", "img", "image"),
)
PICTURES = ("image", "images", "img", "picture", "jpg", "jpeg", "png", "webp")  # encoded, or their paths
IDS = ("imageid", "image_id", "cocoid", "img_id")
CAPTIONS = (
    *("captions", "caption", "sentences", "texts", "text", "sentence", "descriptions", "description", "alt_text", "comment", "title"),
    *("raw", "reference_strs", "caption_str"),  # Flickr30k's on the hub, TextCaps'
)
LABELS = ("label", "class", "class_name", "fine_label")
KINDS = ("answer_type", "question_type", "category")
ADDRESSES = ("url", "image_url", "img_url", "image_link")
OPTIONS = tuple("abcdefgh")
DESCRIBE = re.compile(r"describ|caption|depict|summar|what (is|are) (in|this)|what's in|portray|illustrat|express|narrate|outline", re.I)


def lowered(record: Record) -> dict[str, Any]:
    """The fields that have a value, by their names in lower case."""
    return {str(name).strip().lower(): value for name, value in record.items() if not is_missing(value) and value != ""}


def first(record: Record, names: Iterable[str]) -> Any:
    return next((record[name] for name in names if name in record), None)


def row_of(record: Record, dropped: Counter[str], label_of: Callable[[Any], str] = str) -> Row | None:
    """The row of a record; None, counted, without a picture. What is wrong with its texts is counted as well."""
    fields = lowered(record)
    fields |= _alone(fields) | _talk(fields)
    if files := _several(fields):
        return _about_several(files, fields["conversations"], dropped)
    file, content = _picture(fields)
    if content is not None and len(content) > MAX_BYTES:
        dropped["image too large"] += 1
        return None
    if file is None and content is None:
        several = any(isinstance(fields.get(name), list) for name in ("image", "images"))
        dropped["record with several pictures" if several else "record without a picture"] += 1
        return None
    captions, others = usable(_captions(fields))
    dropped.update(f"bad {kind}" for kind in others.elements())
    questions = _questions(fields, captions, dropped)
    label = first(fields, LABELS)
    return Row(
        file or "",
        content=content,
        captions=captions,
        questions=questions,
        label=None if label is None or isinstance(label, list | dict) else label_of(label),
    )


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row for each picture: its captions and questions together."""
    found: dict[str, Row] = {}
    kept = []
    for row in rows:
        known = found.setdefault(row.file, row) if row.file and not row.page else row
        if known is row:
            kept.append(row)
        else:
            known.captions.extend(caption for caption in row.captions if caption not in known.captions)
            known.questions.extend(row.questions)
    return kept


def name_of(record: Record) -> str:
    """What a record's fields tell of its format."""
    has = lowered(record).keys()
    kinds = {
        "LLaVA's conversations": {"conversations"},
        "a chat's messages": {"messages"},
        "Karpathy's splits": {"sentences", "split"},
        "GQA's questions": {"imageid", "question"},
        "CLEVR's questions": {"image_filename", "question"},
        "MMBench's multiple choice": {"question", "a", "b"},
        "VizWiz's questions": {"answerable", "question"},
        "TextVQA's questions": {"flickr_original_url", "question"},
        "POPE's questions": {"question_id", "text", "label"},
        "questions": {"question"},
    }
    for name, fields in kinds.items():
        if fields <= has:
            return name
    return f"records with the fields {', '.join(list(record)[:8])}"


def _alone(fields: Record) -> dict[str, Any]:
    """The only picture of a list, as the picture."""
    lists = {name: fields[name] for name in ("image", "images") if isinstance(fields.get(name), list)}
    alone = [value[0] for value in lists.values() if len(value) == 1]
    return {"image": alone[0]} if alone else {}


def _talk(fields: Record) -> dict[str, Any]:
    """What is said in `messages`, as of chat templates, and in pairs of `user` and `assistant`, as of The Cauldron."""
    if isinstance(fields.get("messages"), list) and "conversations" not in fields:
        return {"conversations": fields["messages"]}
    texts = fields.get("texts")
    if isinstance(texts, list) and texts and all(isinstance(each, Mapping) and {"user", "assistant"} <= each.keys() for each in texts):
        return {"texts": None, "conversations": [{"role": who, "content": each[who]} for each in texts for who in ("user", "assistant")]}
    return {}


def _several(fields: Record) -> list[str]:
    """The pictures of a conversation about more than one."""
    value = first(fields, ("image", "images"))
    talks = isinstance(value, list) and len(value) > 1 and isinstance(fields.get("conversations"), list)
    return value if talks and all(isinstance(each, str) for each in value) else []


def _about_several(files: list[str], turns: list[Any], dropped: Counter[str]) -> Row | None:
    """A conversation about several pictures is the sample's page (data/dialogues.py). None, counted, without a reply."""
    found = _conversation(turns, None, dropped)
    if not found:
        dropped["conversation without a reply"] += 1
        return None
    page = [*range(len(files)), *(text for each in found for text in (each.question, each.answer))]
    return Row(files[0], others=files[1:], page=page, extra={"kinds": [each.kind for each in found]})


def _picture(fields: Record) -> tuple[str | None, bytes | None]:
    """File name and encoded image, either of which may be None."""
    for name in (*PICTURES, *PATHS):
        value = fields.get(name)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):  # the hub's image column
            return value.get("path"), value["bytes"]
        if isinstance(value, Mapping) and isinstance(value.get("path"), str):
            return value["path"], None
        if isinstance(value, bytes):
            return first(fields, ("__key__", "key")), value
        if isinstance(value, str) and len(value) > 64 and not value.lower().endswith(ENDINGS) and (decoded := _base64(value)):
            return None, decoded
    folder, file = fields.get("filepath"), fields.get("filename")
    if isinstance(folder, str) and isinstance(file, str):  # Karpathy's: a folder and a name
        return (file if folder.lower().endswith(ENDINGS) else f"{folder}/{file}"), None
    path = next((fields[name] for name in (*PATHS, *PICTURES) if isinstance(fields.get(name), str)), None)
    if path is not None:
        return path, None
    number = next((fields[name] for name in IDS if isinstance(fields.get(name), str | int)), None)
    return (None if number is None else str(number)), None  # found by its name without the ending


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.split(",", 1)[1] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError, IndexError):
        return None


def _captions(fields: Record) -> list[Any]:
    value = first(fields, CAPTIONS)
    if "question" in fields and not any(name in fields for name in ("captions", "caption")):
        return []  # a text beside a question is something else
    listed = list_of(value) if isinstance(value, str) else value
    values = listed if isinstance(listed, list) else [] if value is None else [value]
    return [each.get("raw", each.get("caption")) if isinstance(each, Mapping) else each for each in values]


def _questions(fields: Record, captions: list[str], dropped: Counter[str]) -> list[Question]:
    if isinstance(fields.get("conversations"), list):
        return _conversation(fields["conversations"], captions, dropped)
    question = fields.get("question")
    if question is None:
        return []
    answers = _answers(fields)
    if not isinstance(question, str) or not question.strip() or not answers:
        dropped["question without an answer" if isinstance(question, str) and question.strip() else "question that is not a text"] += 1
        return []
    kind = first(fields, KINDS)
    options = [(letter.upper(), str(fields[letter])) for letter in OPTIONS if letter in fields]
    if len(options) > 1:
        question = " ".join([*([str(fields["hint"])] if "hint" in fields else []), question, *(f"{a}. {text}" for a, text in options)])
        answers = [dict(options).get(answer.strip().upper(), answer) for answer in answers]
    usual = Counter(answers).most_common(1)[0][0]
    return [Question(question, usual, kind if isinstance(kind, str) else "open", tuple(answers) if len(answers) > 1 else ())]


def _answers(fields: Record) -> list[str]:
    value = first(fields, ("answers", "answer", "multiple_choice_answer"))
    if isinstance(value, str) and (listed := list_of(value)) is not None:
        value = listed
    values = value if isinstance(value, list) else [value]
    texts = [each.get("answer") if isinstance(each, Mapping) else each for each in values]
    return [str(each) for each in texts if isinstance(each, str | int) and str(each).strip()]


def _conversation(turns: list[Any], captions: list[str] | None, dropped: Counter[str]) -> list[Question]:
    """A turn of the user and the reply to it. A request to describe the picture, alone in its conversation, makes its reply a caption,
    where there are to be any."""
    said = [(str(turn.get("from", turn.get("role"))).lower(), turn.get("value", turn.get("content"))) for turn in turns if _is_dict(turn)]
    said = [(who, _text(text)) for who, text in said if who != "system"]
    found = []
    for (asks, question), (replies, answer) in zip(said[::2], said[1::2], strict=False):
        known = asks in ("human", "user") and replies in ("gpt", "assistant")
        if not known or not isinstance(question, str) or not isinstance(answer, str) or not answer.strip():
            dropped["turn of a conversation that is no question with a reply"] += 1
            continue
        request = " ".join(question.replace("<image>", " ").split())
        if captions is not None and len(said) == 2 and (not request or DESCRIBE.search(request)):
            captions.append(answer)
        else:
            found.append(Question(request, answer))
    return found


def _text(content: Any) -> Any:
    """Of a chat's message, whose parts are {"type": "text", "text": ...} and pictures."""
    if not isinstance(content, list) or not all(map(_is_dict, content)):
        return content
    return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))


def _is_dict(turn: Any) -> bool:
    return isinstance(turn, dict)
