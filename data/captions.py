"""Texts and captions in the forms that people store them in."""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

MARKS = {  # UTF-32 first, whose little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_ANY_MARK = tuple(MARKS)
_SHIFTED = re.compile(rb"\x1b(?:\$|\([BIJ])")  # what turns ASCII into other letters in ISO-2022-JP and its relatives
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_QUOTES = frozenset(b"\x91\x92\x93\x94\x96\x97\x85\xab\xbb\xbf\xa1".decode("cp1252"))  # signs that stand beside other ones
_INSIDE = frozenset(b"\x91\x92\xb4\x96\x97\x85\xb7\x95".decode("cp1252"))  # signs that join words
_SIGNS = _QUOTES | _INSIDE | frozenset(b"\x80\xa3\xa7\xa9\xae\xb0\xb1\xb2\xb3\xbc\xbd\xbe\x99\xaa\xba\xa0\xd7".decode("cp1252"))
_RARE = frozenset(b"\x83\x88\xaa\xba".decode("cp1252"))  # letters of Windows-1252 that no language has in its words
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ITEM = rf"(?:{_STRING}|None|nan|NaN|<NA>)"
_ITEMS = re.compile(_ITEM, re.DOTALL)
_LIST = re.compile(rf"\[\s*{_ITEM}(?:[\s,]+{_ITEM})*[\s,]*\]|\(\s*{_ITEM}\s*,(?:[\s,]*{_ITEM})*[\s,]*\)", re.DOTALL)
_NESTED = re.compile(rf"[\[(]\s*[\[(]\s*{_ITEM}.*[\])][\s,]*[\])]", re.DOTALL)
NO_VALUE = frozenset(("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "N/A", "#N/A"))  # placeholders for a missing caption


def decode_text(content: bytes) -> tuple[str, str]:
    """The text and its encoding: UTF-8, or UTF-16 and UTF-32 by their marks or zero bytes.

    Anything else is a guess: "damaged UTF-8" with replacement characters if more of its letters fit; "Windows-1252", of which Latin-1 is a
    part, if it then reads like a text of Western Europe; else ("", ""), as other encodings (Shift-JIS, GB18030) cannot be told apart.
    """
    if content.startswith(_ANY_MARK):
        encoding = next(encoding for mark, encoding in MARKS.items() if content.startswith(mark))
        return content.decode(encoding, "replace"), encoding.removesuffix("-sig").upper()
    if b"\0" in content and len(content) % 2 == 0:
        zeros = [content[first::2].count(0) for first in (0, 1)]
        if max(zeros) > len(content) // 4 and not min(zeros):
            return content.decode("utf-16-le" if zeros[1] else "utf-16-be", "replace"), "UTF-16"
    try:
        return ("", "") if _SHIFTED.search(content) else (content.decode(), "UTF-8")
    except UnicodeDecodeError:
        damaged = content.decode("utf-8", "replace")
        bad = damaged.count("\ufffd")
        if sum(not letter.isascii() for letter in damaged) - bad > 2 * bad:
            return damaged, "damaged UTF-8"
    try:
        western = content.decode("cp1252")
    except UnicodeDecodeError:
        return "", ""
    return (western, "Windows-1252") if _reads_western(western) else ("", "")


def _reads_western(text: str) -> bool:
    """Whether the letters and signs beyond ASCII are where languages of Western Europe have them, apart from a tenth."""
    places = [match.start() + 1 for match in _BEYOND_ASCII.finditer(text)]
    padded = f" {text} "
    return 10 * sum(_is_odd(*padded[place - 1 : place + 2]) for place in places) <= len(places)


def _is_odd(before: str, sign: str, behind: str) -> bool:
    """Inside a run of letters or signs beyond ASCII, a capital behind a small letter, a sign between letters, or a rare one."""
    if not before.isascii() and not behind.isascii() and not {before, behind} & _QUOTES:
        return True
    if sign.isalpha() and sign not in _RARE:
        return sign.isupper() and before.islower()
    return sign not in _SIGNS or (sign not in _INSIDE and before.isalpha() and behind.isalpha())


def usable(values: Iterable[Any]) -> tuple[list[str], Counter[str]]:
    """The captions among these values, and the number of the others by kind."""
    captions: list[str] = []
    others: Counter[str] = Counter()
    for value in values:
        if is_missing(value):
            others["captions (None or nan)"] += 1
        elif isinstance(value, list | tuple):
            others["captions (a list)"] += 1
        elif not isinstance(value, str):
            others["captions"] += 1
        elif not value.strip():
            others["captions (empty)"] += 1
        else:
            captions.append(value.replace("\0", ""))  # which a text file cannot hold
    return captions, others


def is_missing(value: Any) -> bool:
    """Whether a value is none: None, the float nan, or how pandas and spreadsheets write them."""
    nan = isinstance(value, float) and math.isnan(value)
    return value is None or nan or (isinstance(value, str) and value.strip() in NO_VALUE)


def lines_of(text: str) -> list[Any]:
    """The values in one text: those of a list written out, or one a line without blank ones."""
    listed = list_of(text)
    if listed is not None:
        return [value.strip() if isinstance(value, str) else value for value in listed]
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def list_of(text: str) -> list[Any] | None:
    """The strings, None and lists of a list that was written out as pandas, numpy and json do (`['a child', None]`); None if it is not
    one. Lists in it are empty unless json wrote them."""
    text = text.strip()
    if text[:1] not in ("[", "(") or text[-1:] not in ("]", ")"):
        return None
    try:
        found = json.loads(text)
        return found if isinstance(found, list) and all(is_missing(each) or isinstance(each, str | list) for each in found) else None
    except (ValueError, RecursionError):
        pass
    if _NESTED.fullmatch(text):
        return [[]]
    if not _LIST.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return [None if each in NO_VALUE else str(ast.literal_eval(each)) for each in _ITEMS.findall(text)]
    except (ValueError, SyntaxError):
        return None
