"""Requests about an image, most for a certain format, with true replies generated from its annotations.

The embedded data set knows its pictures' content; on other data requests are limited to captions, questions and what objects are given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from data.english import with_article
from data.objects import direction, named, unique
from data.sample import Object, Sample
from models.shared.prompts import COUNT, DESCRIBE

Form = Literal["description", "list", "number", "word", "free", "reasoning"]
LIST = ("describe this picture as a list.", "list the objects.")
BRIEFLY = "write a caption."
IN_ONE_WORD = " answer in one word."
EXPLAIN = " explain."
LONGEST_ITEM = 6  # words
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BESIDE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
CLEAR = 2.0  # a direction is clear if the centres of two boxes are this many times as far apart along it as across it


@dataclass(frozen=True)
class Request:
    text: str
    reply: str
    form: Form


def requests(sample: Sample) -> list[Request]:
    """All requests that a picture allows, with true replies; descriptions first."""
    found = [Request(text, sample.captions[0], "description") for text in DESCRIBE if sample.captions]
    if sample.objects:
        listed = ", ".join(with_article(named(each)) for each in sample.objects if named(each))
        found += [Request(text, listed, "list") for text in LIST]
        found += [Request(text, str(len(sample.objects)), "number") for text in COUNT]
    for each in sample.questions:
        found.append(Request(each.question, each.answer, "free"))
        if has_form(each.answer, "word"):
            found.append(Request(each.question + IN_ONE_WORD, each.answer, "word"))
    return found


def reasoning(sample: Sample) -> list[Request]:
    """Questions whose answer takes two steps, with replies that state the first step before the answer. Both are built from the boxes and
    attributes of objects: which object is beside another, and what is true of it. Only objects whose names are unique are mentioned."""
    things = sample.objects
    own = unique(things)
    found = []
    for other in own:
        for name, phrase in BESIDE.items():
            beside = [each for each in things if each is not other and direction(each, other) == name]
            if len(beside) == 1 and beside[0] in own and direction(beside[0], other, CLEAR) == name:
                found += _of_the_object_beside(beside[0], phrase, other)
    return found


def _of_the_object_beside(thing: Object, phrase: str, other: Object) -> list[Request]:
    place = f"the object {phrase} the {named(other)}"
    seen = f"{place} is {with_article(named(thing))}, so"
    found = []
    if colour := thing.attributes.get("colour"):
        found.append(Request(f"what colour is {place}?{EXPLAIN}", f"{seen} it is {colour}.", "reasoning"))
    sizes = thing.attributes.get("size"), other.attributes.get("size")
    if None not in sizes:
        larger = {("large", "small"): "it is larger", ("small", "large"): f"the {named(other)} is larger"}.get(sizes, "neither is larger")  # type: ignore[arg-type]
        seen = f"{place} is {with_article(f'{sizes[0]} {named(thing)}')} and the {named(other)} is {sizes[1]}, so"
        found.append(Request(f"which is larger, {place} or the {named(other)}?{EXPLAIN}", f"{seen} {larger}.", "reasoning"))
    return found


def conclusion(reply: str) -> str:
    """What a reply that reasons comes to: of "the object above the moon is a red star, so it is red." "it is red"."""
    return reply.rpartition(", so ")[2].strip().rstrip(".")


def has_form(reply: str, form: Form) -> bool:
    """Whether a reply has the requested format, regardless of its content."""
    words = _words(reply)
    if form == "description":
        return len(words) >= 3
    if form == "list":
        return all(2 <= len(_words(item)) <= LONGEST_ITEM for item in re.split(r", and |, | and ", reply.rstrip(".")))
    if form == "number":
        return len(words) == 1 and (words[0].isdecimal() or words[0] in NUMBERS)
    if form == "reasoning":
        return re.search(r"\w, so \w", reply) is not None
    return len(words) == 1 if form == "word" else len(words) >= 1


def repeats(text: str) -> bool:
    """Whether some words are repeated in a row: "a red star, a red star"."""
    words = _words(text)
    return any(words[i : i + n] == words[i + n : i + 2 * n] for n in range(1, len(words) // 2 + 1) for i in range(len(words) - 2 * n + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
