"""Scene -> text (captions, questions, foils), and text -> claims that can be checked against the truth.

Captions name every object of a picture, so a caption is false when the number of objects differs. Every sentence written
here is read back by `parse`, which is what makes oracles and attribute-level caption scores possible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, permutations
from random import Random
from typing import Any

from data.english import with_article
from data.sample import Foil, Object, Question, Sample
from data.scenes.world import (
    COLOURS,
    FILLS,
    HELD_OUT,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    Scene,
    Thing,
    position,
    relation,
)

NUMBERS = ("no", "one", "two", "three", "four", "five")
RELATION_PHRASE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
ATTRIBUTES = ("size", "fill", "colour", "shape")
VOCABULARY = {"size": SIZES, "fill": FILLS, "colour": COLOURS, "shape": SHAPES}


# ---------------------------------------------------------------------------------------------------- captions


def captions(scene: Scene, rng: Random) -> list[str]:
    """Five references of one picture. The first is canonical: every object, every attribute, from left to right."""
    ordered = sorted(scene.things, key=lambda thing: (thing.x, thing.y))
    canonical = listed(ordered, ATTRIBUTES)
    makers: list[Callable[[], str | None]] = [
        lambda: _opening(rng) + _described(ordered, rng),
        lambda: _opening(rng) + _described(ordered, rng),
        lambda: _counted(ordered, rng),
        lambda: f"{_described(ordered, rng)} on a {scene.tone} background",
        lambda: f"{_described(ordered, rng)} on a {_texture(scene)} background",
        lambda: _placed(scene, _detail(rng)),
    ]
    rng.shuffle(makers)
    texts = [canonical]
    while len(texts) < 5:
        for make in makers:
            text = make()
            if text and text not in texts and len(texts) < 5:
                texts.append(text)
    return texts


def noun_phrase(thing: Thing, detail: Sequence[str]) -> str:
    words = " ".join(getattr(thing, attribute) for attribute in ATTRIBUTES if attribute in detail)
    return with_article(words)


def listed(things: Sequence[Thing], detail: Sequence[str]) -> str:
    *front, last = (noun_phrase(thing, detail) for thing in things)
    return f"{', '.join(front)} and {last}" if front else last


def related(a: Thing, name: str, b: Thing, things: Sequence[Thing], detail: Sequence[str]) -> str:
    """'a red star above a blue circle', and the rest of the picture's objects after it: ', with a green moon'."""
    rest = [thing for thing in things if thing not in (a, b)]
    tail = f", with {listed(rest, detail)}" if rest else ""
    return f"{noun_phrase(a, detail)} {RELATION_PHRASE[name]} {noun_phrase(b, detail)}{tail}"


def _counted(things: Sequence[Thing], rng: Random) -> str:
    noun = "object" if len(things) == 1 else "objects"
    return f"{NUMBERS[len(things)]} {noun}: {_described(things, rng)}"


def _described(things: Sequence[Thing], rng: Random) -> str:
    """All the objects: 'a red star above a blue circle, with a green moon' three times in four, where a direction is clear;
    otherwise a list. Three in four, because models do not learn relations that captions seldom state."""
    detail = _detail(rng)
    pairs = [(a, b) for a, b in permutations(things, 2) if relation(a, b)]
    if not pairs or rng.random() < 0.25:
        return listed(_shuffled(things, rng), detail)
    a, b = rng.choice(pairs)
    return related(a, relation(a, b) or "", b, things, detail)


def _placed(scene: Scene, detail: Sequence[str]) -> str | None:
    if len(scene.things) > 1:
        return None
    thing = scene.things[0]
    place = position(thing.x, thing.y, scene.pixels)
    return f"{noun_phrase(thing, detail)} {'in' if place == 'middle' else 'at'} the {place}"


def _opening(rng: Random) -> str:
    return rng.choice(("there is ", "a picture of ", "this figure shows ", ""))


def _detail(rng: Random) -> tuple[str, ...]:
    return rng.choice((("colour", "shape"), ("size", "colour", "shape"), ("fill", "colour", "shape"), ATTRIBUTES, ATTRIBUTES))


def _texture(scene: Scene) -> str:
    return "checkered" if scene.shifted else scene.texture


def _shuffled(things: Sequence[Thing], rng: Random) -> list[Thing]:
    return rng.sample(list(things), len(things))


# --------------------------------------------------------------------------------------------------- questions


def questions(scene: Scene, rng: Random) -> list[Question]:
    """One question of each kind the picture allows. Answers are balanced, so that the question does not give them away."""
    things = scene.things
    asked = [_exist(things, rng), _count(things, rng)]
    for kind, given in (("colour", "shape"), ("shape", "colour")):
        unique = [thing for thing in things if _is_unique(thing, things, (given,))]
        if unique:
            thing = rng.choice(unique)
            name = f"the {thing.shape}" if given == "shape" else f"the {thing.colour} object"
            asked.append(Question(f"what {kind} is {name}?", getattr(thing, kind), kind))
    pairs = [(a, b) for a, b in permutations(things, 2) if relation(a, b)]
    if pairs:
        a, b = rng.choice(pairs)
        true = relation(a, b) or ""
        first, second = _referent(a, things), _referent(b, things)
        asked.append(Question(f"where is {first} as seen from {second}?", true, "relation"))
        named = rng.choice((true, OPPOSITE[true]))
        asked.append(Question(f"is {first} {RELATION_PHRASE[named]} {second}?", "yes" if named == true else "no", "relation"))
    return asked


def match_question(foils: Sequence[Foil], rng: Random) -> list[Question]:
    """Whether a text fits the picture, with a true caption or its foil: the question that VQAScore puts about a drawing."""
    if not foils:
        return []
    foil, true = rng.choice(foils), rng.random() < 0.5
    return [Question(f'does this figure show "{foil.caption if true else foil.foil}"?', "yes" if true else "no", "match")]


def _exist(things: Sequence[Thing], rng: Random) -> Question:
    present = {(thing.colour, thing.shape) for thing in things}
    if rng.random() < 0.5:
        colour, shape = rng.choice(sorted(present))
        return Question(f"is there {with_article(colour)} {shape}?", "yes", "exist")
    near = {(colour, thing.shape) for thing in things for colour in COLOURS} | {
        (thing.colour, shape) for thing in things for shape in SHAPES
    }
    mixed = {(a.colour, b.shape) for a in things for b in things}
    pool = rng.choice([pool for pool in (near, mixed) if pool - present - HELD_OUT])
    colour, shape = rng.choice(sorted(pool - present - HELD_OUT))
    return Question(f"is there {with_article(colour)} {shape}?", "no", "exist")


def _count(things: Sequence[Thing], rng: Random) -> Question:
    asked = rng.choice(("all", "colour", "shape", "fill", "size"))
    if asked == "all":
        return Question("how many objects are there?", str(len(things)), "count")
    value = rng.choice([*(getattr(thing, asked) for thing in things), rng.choice(VOCABULARY[asked])])
    noun = _plural(value) if asked == "shape" else f"{value} objects"
    return Question(f"how many {noun} are there?", str(sum(getattr(thing, asked) == value for thing in things)), "count")


def _referent(thing: Thing, things: Sequence[Thing]) -> str:
    """The shortest name that only this object answers to: its colour, its shape, or both."""
    if _is_unique(thing, things, ("colour",)):
        return f"the {thing.colour} object"
    if _is_unique(thing, things, ("shape",)):
        return f"the {thing.shape}"
    return f"the {thing.colour} {thing.shape}"


def _is_unique(thing: Thing, things: Sequence[Thing], attributes: Sequence[str]) -> bool:
    return sum(all(getattr(other, name) == getattr(thing, name) for name in attributes) for other in things) == 1


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


# ------------------------------------------------------------------------------------------------------- foils


def foils(scene: Scene, rng: Random) -> list[Foil]:
    """Hard negatives. A swap keeps exactly the words of its caption; a replacement changes one word; all are false.

    A picture without a held-out pair of colour and shape has no foil with one: otherwise a model trained on foils would learn
    that these pairs are always wrong.
    """
    made = [_replacement(scene, attribute, rng) for attribute in ATTRIBUTES]
    made += [_swapped_attribute(scene, attribute, rng) for attribute in ("colour", "size", "fill")]
    made += _swapped_relation(scene, rng)
    return [foil for foil in made if foil is not None]


def _replacement(scene: Scene, attribute: str, rng: Random) -> Foil | None:
    things = list(scene.things)
    detail = tuple(name for name in ATTRIBUTES if name in (attribute, "colour", "shape"))
    index = rng.randrange(len(things))
    wrong = things[:]
    while wrong[index] == things[index] or (_has_held_out(wrong) and not _has_held_out(things)):
        wrong[index] = replace(things[index], **{attribute: rng.choice(VOCABULARY[attribute])})  # type: ignore[arg-type]
    return _foil(things, wrong, detail, f"replace_attribute_{attribute}")


def _swapped_attribute(scene: Scene, attribute: str, rng: Random) -> Foil | None:
    """'a red star and a blue circle' -> 'a blue star and a red circle'."""
    if len(scene.things) < 2:
        return None
    things = _shuffled(scene.things, rng)
    wrong = things[:]
    wrong[0] = replace(things[0], **{attribute: getattr(things[1], attribute)})
    wrong[1] = replace(things[1], **{attribute: getattr(things[0], attribute)})
    detail = tuple(name for name in ATTRIBUTES if name in (attribute, "colour", "shape"))
    return _foil(things, wrong, detail, f"swap_attribute_{attribute}")


def _foil(things: Sequence[Thing], wrong: Sequence[Thing], detail: Sequence[str], kind: str) -> Foil | None:
    def seen(group: Sequence[Thing]) -> list[tuple[str, ...]]:
        return sorted(tuple(getattr(thing, name) for name in detail) for thing in group)

    if seen(things) == seen(wrong):
        return None  # the other caption would be just as true
    if _has_held_out(wrong) and not _has_held_out(things):
        return None
    return Foil(listed(things, detail), listed(wrong, detail), kind)


def _has_held_out(things: Sequence[Thing]) -> bool:
    return any((thing.colour, thing.shape) in HELD_OUT for thing in things)


def _swapped_relation(scene: Scene, rng: Random) -> list[Foil]:
    """Roles swapped ('a above b' -> 'b above a', same words), and the relation replaced by its opposite."""
    pairs = [(a, b) for a, b in permutations(scene.things, 2) if relation(a, b)]
    if not pairs:
        return []
    a, b = rng.choice(pairs)
    true = relation(a, b) or ""
    detail = ("colour", "shape")
    caption = related(a, true, b, scene.things, detail)
    return [
        Foil(caption, related(b, true, a, scene.things, detail), "swap_relation"),
        Foil(caption, related(a, OPPOSITE[true], b, scene.things, detail), "replace_relation"),
    ]


# ------------------------------------------------------------------------------------------- reading text back


@dataclass(frozen=True, slots=True)
class Claims:
    """The content of a caption: objects as {attribute: value}, relations as (index, relation, index), and the rest."""

    objects: tuple[dict[str, str], ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    count: int | None = None
    background: str | None = None
    place: str | None = None


_OBJECT = re.compile(rf"\b(?:({'|'.join(SIZES)}) )?(?:({'|'.join(FILLS)}) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})\b")
_COUNT = re.compile(rf"\b({'|'.join(NUMBERS)}) objects?\b")
_BACKGROUND = re.compile(rf"\bon an? ({'|'.join((*TONES, *TEXTURES, 'checkered'))}) background")
_PLACE = re.compile(r"\b(?:at|in) the ((?:top|bottom)(?: left| right)?|left|right|middle)(?! of)\b")


@lru_cache(maxsize=100_000)
def parse(caption: str) -> Claims:
    """Parse a caption. Text outside of this grammar yields the claims that could be found, possibly none."""
    text = caption.lower()
    found = list(_OBJECT.finditer(text))
    objects = tuple({name: value for name, value in zip(ATTRIBUTES, match.groups(), strict=True) if value} for match in found)
    relations = []
    for index, (first, second) in enumerate(pairwise(found)):
        between = re.sub(r"\b(?:an?|the)\b", " ", text[first.end() : second.start()].replace("to the ", "to ")).split()
        for name in RELATIONS:
            if between == RELATION_PHRASE[name].replace("to the ", "to ").split():
                relations.append((index, name, index + 1))
    count, background, place = _COUNT.search(text), _BACKGROUND.search(text), _PLACE.search(text)
    return Claims(
        objects=objects,
        relations=tuple(relations),
        count=NUMBERS.index(count[1]) if count else None,
        background=background[1] if background else None,
        place=place[1] if place else None,
    )


def agreement(caption: str, sample: Sample) -> float:
    """Share of a caption's claims that are true of a scenes sample, in [0, 1]: 1 when all are true, 0 without claims.

    A mentioned object is looked up by its colour and shape, since no two objects share both; if there is none, all claims about
    it are false. Mentioning too few or too many objects is one false claim.
    """
    claims = parse(caption)
    found, checks = _checked(claims, sample.objects, sample.extra["relations"])
    if not found:
        return 0.0
    if claims.background is not None:
        checks.append(claims.background in (sample.extra["tone"], sample.extra["texture"]))
    if claims.place is not None:
        checks.append(found[0] is not None and sample.objects[found[0]].attributes["place"] == claims.place)
    return sum(checks) / len(checks)


def meant(claims: Claims, objects: Sequence[Object]) -> list[int | None]:
    """The true object for each mentioned one, by colour and shape, each matched once; None where there is none."""
    found: list[int | None] = []
    for said in claims.objects:
        found.append(_look_up(said, objects, taken=found))
    return found


def _checked(claims: Claims, objects: Sequence[Object], relations: Sequence[Sequence[Any]]) -> tuple[list[int | None], list[bool]]:
    """The true object for each mentioned one, if any; and whether each claim about objects is true."""
    found = meant(claims, objects)
    checks = [len(claims.objects) == len(objects)]
    for said, index in zip(claims.objects, found, strict=True):
        checks += [index is not None and _value(objects[index], name) == value for name, value in said.items()]
    checks += [[found[i], name, found[j]] in [list(relation) for relation in relations] for i, name, j in claims.relations]
    if claims.count is not None:
        checks.append(claims.count == len(objects))
    return found, checks


def answer(question: str, objects: Sequence[Object], relations: Sequence[Sequence[Any]]) -> str | None:
    """The true answer to a question of this grammar about objects and their `[i, relation, j]`; None for other questions."""

    def all_with(words: str) -> list[int]:
        wanted = [word if word in SHAPES else _SINGULAR.get(word, word) for word in words.split() if not word.startswith("object")]
        return [i for i, thing in enumerate(objects) if set(wanted) <= {thing.name, *thing.attributes.values()}]

    def relation_of(first: str, second: str) -> str | None:
        one, two = all_with(first), all_with(second)
        return next((name for i, name, j in relations if i in one and j in two), None)

    text = question.lower()
    if match := re.fullmatch(r'does this figure show "(.+)"\?', text):
        return "yes" if all(_checked(parse(match[1]), objects, relations)[1]) else "no"
    if match := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if all_with(match[1]) else "no"
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return str(len(all_with(match[1])))
    if match := re.fullmatch(r"what (colour|shape) is the (.+)\?", text):
        found = all_with(match[2])
        return _value(objects[found[0]], match[1]) if found else None
    if match := re.fullmatch(r"where is the (.+) as seen from the (.+)\?", text):
        return relation_of(match[1], match[2])
    for name, phrase in RELATION_PHRASE.items():
        if match := re.fullmatch(rf"is the (.+) {phrase} the (.+)\?", text):
            return "yes" if relation_of(match[1], match[2]) == name else "no"
    return None


_SINGULAR = {_plural(shape): shape for shape in SHAPES}


def _look_up(said: dict[str, str], objects: Sequence[Object], taken: Sequence[int | None]) -> int | None:
    for index, thing in enumerate(objects):
        if index not in taken and all(_value(thing, name) == said[name] for name in ("colour", "shape") if name in said):
            return index
    return None


def _value(thing: Object, attribute: str) -> str:
    return thing.name if attribute == "shape" else thing.attributes[attribute]
