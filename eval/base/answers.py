"""Free-form answers: VQA's normalisation and soft accuracy; yes or no in a free answer is read in eval/base/yesno.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from eval.base.yesno import yes_or_no

__all__ = ["normalised", "published_accuracy", "soft_accuracy", "yes_or_no"]

ENOUGH = 3  # annotators who agree make an answer right (Antol et al. 2015, section 3)

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
ARTICLES = frozenset(("a", "an", "the"))
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


@lru_cache(maxsize=100_000)
def normalised(answer: str) -> str:
    """An answer as VQA compares answers: lower case, digits, no articles, no punctuation, apostrophes restored.

    The rules of the official evaluation (VQAv2): a punctuation mark is deleted next to a space, or anywhere when the text
    holds a number with a thousands comma, and otherwise becomes a space; a full stop is deleted unless a digit follows. The
    official code compares unanimous answers as they were typed (`published_accuracy`); here every answer is normalised.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    has_thousands = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or has_thousands else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)  # the official code passes re.UNICODE, which is 32, where the count belongs
    words = [NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """min(n / 3, 1) for n annotators with the same answer, averaged over all ways to leave one annotator out (VQAv2's metric).

    With fewer than four annotators all the others must agree; a single annotator's answer must match exactly. Raises ValueError
    without answers.
    """
    people = len(answers)
    if not people:
        raise ValueError("soft accuracy needs the answer of at least one annotator")
    agree = sum(normalised(answer) == normalised(said) for answer in answers)
    if people == 1:
        return float(agree)
    enough = min(ENOUGH, people - 1)
    return (agree * min((agree - 1) / enough, 1) + (people - agree) * min(agree / enough, 1)) / people


def published_accuracy(said: str, answers: Sequence[str]) -> float:
    """`soft_accuracy` to the letter of the official evaluation (vqaEval.py of github.com/GT-Vision-Lab/VQA), for published scores.

    Unanimous answers, and then what was said, are compared as they were typed. Three annotators make an answer right however many
    there are.
    """
    given = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    answer = said.replace("\n", " ").replace("\t", " ").strip()
    if len(set(given)) > 1:
        given, answer = list(map(normalised, given)), normalised(answer)
    agree = sum(each == answer for each in given)
    return (agree * min((agree - 1) / ENOUGH, 1) + (len(given) - agree) * min(agree / ENOUGH, 1)) / len(given)


def _without_apostrophes(word: str) -> list[str]:
    """Every spelling of a word with one of its apostrophes left out."""
    return [word[:place] + word[place + 1 :] for place, mark in enumerate(word) if mark == "'"]


_APOSTROPHES = {spelling: word for word in CONTRACTED.split() for spelling in _without_apostrophes(word)}
