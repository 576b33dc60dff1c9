"""Yes or no in a free answer: "Yes.", "Definitely not.", "So the answer is no", "The image contains a car.", "I don't see a car".

The rules, in this order:

1. What is read is the model's own first turn: without its thinking, tags, and the question if it is repeated. It ends at the next
   question: "yes Question: ... Answer: no" is a yes.
2. `SAME` turns wordings of the same meaning into one. The turn is then read clause by clause. A clause is one of
   - *doubt*, a refusal or a condition: "I cannot tell", "it is unclear", "there might be a dog";
   - an *offer* to look or to help, which says nothing, as does an adverb beside it: "certainly, let me look";
   - a *word*: one that ends in yes, no, true or correct, or a plain denial: "yes", "the answer is no", "definitely not";
   - an *adverb* that affirms: "of course", "certainly";
   - a *statement* that names what the question asks for, or nothing ("there is one"): "there is a dog", "no dog", "I see none", and
     where it asks about a thing in the picture, "it" for the thing: "it is not under the table";
   - a *guess*: a statement that names only its last word ("a table" for "a dining table"), or anything if no question is known.
3. A negation turns a clause, and two cancel. It reaches the object unless a preposition, or an article behind a noun or verb, is
   between them: "no dog on the chair" and "he is not riding a horse" say nothing about chair and horse. Behind the object it counts
   if it denies existence: "the dog is not visible", but not "the dog is not looking". A list's items take the polarity of the first.
4. Words count before statements, these before guesses, and adverbs last: they may be politeness ("certainly, there is no dog").
   Words and statements that differ leave the answer unparsed ("yes and no"). A correction ("wait", "actually") takes back what was
   before it, a conclusion ("so the answer is") only statements. After doubt only words count, except behind "but".
5. A sign such as a thumb, a check mark or a cross is the word for which it stands, but not beside doubt; and one for yes may be politeness
   ("there is no dog \N{THUMBS UP SIGN}").

Both polarities are read by the same rules. What is neither is None. There are no synonyms: "a man" is not "a person".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from eval.base.wordings import (
    AFFIRMING,
    ANSWER,
    ARTICLE,
    BE,
    CONCLUSION,
    CORRECTION,
    DOUBT,
    FILLER,
    HERE,
    NEGATION,
    OFFER,
    PREPOSITION,
    PRONOUN,
    SEE,
    SHOW,
    SIGN,
    SIGNS,
    STATES,
    TURN,
    VERDICTS,
    WHO,
    is_function,
    letters,
    plain,
    stem,
)

Words = Sequence[str]


def yes_or_no(answer: str, question: str = "") -> bool | None:
    """The verdict of a free answer; None when it is neither yes nor no, or both. The question tells what statements are about."""
    text = letters(answer)
    said = {SIGNS[sign] for sign in SIGN.findall(text)}
    bare = SIGN.sub(" ", text)
    verdict, words = _read_words(bare, question), plain(bare)
    if not said or (said == {"yes"} and verdict is not None) or DOUBT.search(words):
        return verdict
    joint = "," if STATES.search(words) or not NEGATION.isdisjoint(words.split()) else ""  # else "no" for a cross would negate a statement
    return _read_words(SIGN.sub(lambda found: f" {joint} {SIGNS[found[0]]} {joint} ", text), question)


def _read_words(answer: str, question: str) -> bool | None:
    asked = Asked.of(question, answer)
    turns: list[list[tuple[str, bool]]] = [[]]  # (kind, verdict) of the clauses; a correction begins a new list
    doubted = False
    for sentence in _sentences(answer):
        if sentence.endswith("?"):
            if any(kind == "word" for kind, _ in turns[-1]):
                break
            continue
        denied = False  # by the clause before
        for part in filter(None, map(str.strip, sentence.split(","))):
            if CORRECTION.search(part):
                turns.append([])
            if part.startswith("but"):
                doubted = denied = False
            if not (clause := FILLER.sub("", part)):
                continue
            kind, verdict, denied = _read(clause, asked, denied)
            if kind == "word" and CONCLUSION.search(clause):
                turns[-1] = [reading for reading in turns[-1] if reading[0] == "word"]
            if kind and not (doubted and kind in ("statement", "guess")):
                turns[-1].append((kind, verdict))
            doubted = doubted or kind == "doubt"
    said: dict[str, list[bool]] = {"word": [], "statement": [], "guess": [], "adverb": [], "doubt": [], "offer": []}
    for kind, verdict in next((turn for turn in reversed(turns) if turn), []):
        said[kind].append(verdict)
    if len({*said["word"], *said["statement"]}) == 2:
        return None
    sure = said["word"] + said["statement"] + said["guess"] + ([] if said["doubt"] or said["offer"] else said["adverb"])
    return sure[0] if sure else None


def _sentences(answer: str) -> Iterator[str]:
    """Of the model's own first turn, in plain lower-case words, commas and question marks."""
    text = re.split(r"</(?:think|thinking|reasoning)>", answer.lower())[-1]
    text = re.sub(r"<answer>|\\boxed\b", "\nanswer is ", text)
    first = next((part for part in TURN.split(text) if re.sub(r"<[^<>]*>|\W", "", part)), "")
    if TURN.match(text.lstrip(" #*")):  # the question is repeated
        first = ANSWER.split(first, maxsplit=1)[-1]
    text = re.sub(r"</?[a-z|][^<>]*>|\[/?(?:cls|sep|pad|inst)\]|\\[a-z]+|(?<=\d)\.(?=\d)", " ", first)
    letter = {"y": "yes", "n": "no"}.get(text.strip(" .()\"'*\n"))
    for part in re.findall(r"[^.!?;\n]+[.!?;\n]*", letter or text):
        if sentence := plain(part):
            asks = "?" in part and not VERDICTS.issuperset(sentence.strip(" ,").split())
            yield sentence + "?" * (asks or re.match(rf"{BE} (?:{WHO}|the|an?|any)\b", sentence) is not None)


def _read(clause: str, asked: Asked, inherited: bool) -> tuple[str, bool, bool]:
    """(kind, verdict, whether an item behind it is denied); kind "" for a clause that says nothing."""
    words = clause.split()
    negations = [place for place, word in enumerate(words) if word in NEGATION]
    odd = len(negations) % 2 == 1
    states = STATES.search(clause) is not None
    content = next((place for place, word in enumerate(words) if not is_function(word)), len(words))  # the first word that names something
    listed = not states and not negations  # an item of a list
    opening = inherited if listed else sum(place < content for place in negations) % 2 == 1
    if DOUBT.search(clause):
        return "doubt", False, inherited
    if OFFER.search(clause):
        return "offer", False, inherited
    if AFFIRMING.issuperset(words) or (words[-1] in ("true", "correct", "likely") and not odd):
        return "adverb", True, False
    if words[-1] in VERDICTS or (odd and all(word in AFFIRMING | {"not", "no"} or word.endswith("ly") for word in words)):
        return "word", not odd, odd
    states = states or words[0] in AFFIRMING | {"not"} or (content == len(words) and odd)
    kind, first, end = asked.mention(words, states, content)
    denied = _denied(words, negations, first, end, asked.exists)
    if not kind or denied is None:
        return "", False, opening
    return kind, not (inherited if listed else denied), opening


def _denied(words: Words, negations: Sequence[int], first: int, end: int, exists: bool) -> bool | None:
    """Whether the negations that reach words[first:end] turn it; None if one of them is about something else."""
    denied = False
    for place in negations:
        between = words[place + 1 : first]
        behind = [
            word for word in words[place + 1 :] if word not in AFFIRMING | NEGATION | {"be", "been", "to", "even", "a", "what", "i", "we"}
        ]
        if place >= end:
            denied ^= not exists or not behind or re.fullmatch(f"{HERE}|{SEE}", behind[0]) is not None
        elif place >= first or not _blocked(between):
            denied = not denied
        elif words[place] != "without":  # "a man without a hat sits on a chair" has a chair
            return None
    return denied


def _blocked(between: Words) -> bool:
    behind_noun = any(word in ARTICLE and not is_function(before) for before, word in pairwise(between))
    return behind_noun or not PREPOSITION.isdisjoint(between)


@dataclass(frozen=True)
class Asked:
    """The stems of what a question asks for: "is there a red star in it?" -> red, star."""

    name: tuple[str, ...]
    exists: bool  # asks whether it is there
    whole: bool  # the answer has all of the name; else its last word stands for it
    predicates: frozenset[tuple[str, ...]]  # ends of a question about a thing in the picture; one of them is what it says of the thing

    @staticmethod
    def of(question: str, answer: str) -> Asked:
        words = plain(re.sub(r"[?:]", "", question.lower())).split()
        exists = any(re.fullmatch(f"{SEE}|{SHOW}|{HERE}", word) for word in words)
        if exists:  # what is in the picture, not where
            start = next((i for i, word in enumerate(words) if not is_function(word)), 0)
            words = words[: next((i for i, word in enumerate(words) if i > start and word in PREPOSITION), len(words))]
        name = tuple(stem(word) for word in words if not is_function(word))
        named = [word for word in words if word not in ARTICLE | {"the", "to"}]
        begins = [place for place, (before, word) in enumerate(pairwise(named), 1) if not is_function(before) and not is_function(word)]
        ends = [tuple(stem(word) for word in named[place:] if not is_function(word)) for place in begins]
        predicates = frozenset(() if exists else ends)
        whole = set(name) <= {stem(word) for word in re.findall(r"\w+", answer.lower())}
        return Asked(name if whole else name[-1:], exists, whole, predicates)

    def mention(self, words: Words, states: bool, content: int) -> tuple[str, int, int]:
        """(kind, first, end): words[first:end] name it; kind "" if none do."""
        if content == len(words):
            return ("statement" if states else ""), content, content
        if not self.name:
            return ("guess" if states else ""), content, content + 1
        stems = [stem(word) for word in words]
        places = [stems.index(part) for part in self.name if part in stems]
        if rest := self.predicate(words):
            return "statement", stems.index(rest[0]), stems.index(rest[-1]) + 1
        if len(places) < len(self.name):
            return "", 0, 0
        if self.whole:
            return "statement", min(places), max(places) + 1
        alone = self.exists and (places[0] == 0 or is_function(words[places[0] - 1]))  # not "blue star" for "red star"
        return ("guess" if alone else ""), places[0], places[0] + 1

    def predicate(self, words: Words) -> tuple[str, ...]:
        """What a clause says of "it" or "he", if the question says it of its subject ("under the table" of a ball)."""
        said = tuple(stem(word) for word in words if not is_function(word))
        return said if words[0] in PRONOUN and said in self.predicates else ()
