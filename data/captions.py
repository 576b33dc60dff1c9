"""Texts and captions in the forms that people store them in."""

from __future__ import annotations

import ast
import codecs
import json
import re
import warnings

MARKS = {  # UTF-32 first, whose little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_ANY_MARK = tuple(MARKS)
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_STRINGS = re.compile(_STRING, re.DOTALL)
_LIST = re.compile(rf"\[\s*{_STRING}(?:[\s,]+{_STRING})*[\s,]*\]|\(\s*{_STRING}\s*,(?:[\s,]*{_STRING})*[\s,]*\)", re.DOTALL)


def decode_text(content: bytes) -> tuple[str, bool]:
    """The text, and whether it is Unicode. UTF-8, or UTF-16 and UTF-32 by their marks or zero bytes.

    Anything else is a guess: Windows-1252, of which Latin-1 is a part, or UTF-8 with replacement characters if more of its letters fit.
    """
    if content.startswith(_ANY_MARK):
        encoding = next(encoding for mark, encoding in MARKS.items() if content.startswith(mark))
        return content.decode(encoding, "replace"), True
    if b"\0" in content:
        zeros = [content[first::2].count(0) for first in (0, 1)]
        if max(zeros) > len(content) // 4 and not min(zeros):
            return content.decode("utf-16-le" if zeros[1] else "utf-16-be", "replace"), True
    try:
        return content.decode(), True
    except UnicodeDecodeError:
        damaged = content.decode("utf-8", "replace")
        bad = damaged.count("\ufffd")
        good = sum(not letter.isascii() for letter in damaged) - bad
        return (damaged if good > bad else content.decode("cp1252", "replace")), False


def lines_of(text: str) -> list[str]:
    """The captions in one text: a list written out, or one a line. Blank ones are left out."""
    listed = list_of(text)
    lines = re.split(r"[\r\n]+", text) if listed is None else listed
    return [line.strip() for line in lines if line.strip()]


def list_of(text: str) -> list[str] | None:
    """The strings of a list that was written out as pandas, numpy and json do (`['a child', 'a kid']`); None if it is not one."""
    text = text.strip()
    if text[:1] not in ("[", "(") or text[-1:] not in ("]", ")"):
        return None
    try:
        found = json.loads(text)
        return found if isinstance(found, list) and all(isinstance(each, str) for each in found) else None
    except (ValueError, RecursionError):
        pass
    if not _LIST.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return [str(ast.literal_eval(each)) for each in _STRINGS.findall(text)]
    except (ValueError, SyntaxError):
        return None
