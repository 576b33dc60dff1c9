"""Several pictures, and requests about all of them (`make data DATA=several`).

    difference   two pictures that differ in one exchange between two objects (data/scenes/pairs.py): "what is different?"
    in a word    the same question, to be answered by the kind of the exchange: "colour", "size", "fill" or "place"
    which        the same two pictures: "which picture shows a red star?"
    odd          three pictures of one object each, alike but for one attribute of one of them: "which picture is the odd one out?"

Requests and replies are the sample's page (data/dialogues.py). All replies follow from the truth about the pictures (`respond`), which is
in `extra["pictures"]`, and none from one picture alone. The other fields are those of scenes, about the first picture.

Every third training sample is of this kind, the others are the samples of scenes. The split `several` is for evaluation; the remaining
splits are those of scenes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from random import Random

from data.dialogues import conversation
from data.english import with_article
from data.objects import direction, named
from data.sample import Object, Sample
from data.scenes.build import arguments, make_sample, run, sample_of, write_splits
from data.scenes.language import ATTRIBUTES, RELATION_PHRASE, captions, foils, questions
from data.scenes.pages import EVERY, VALUES, View, record_of
from data.scenes.pairs import KINDS, sample_pair
from data.scenes.world import HELD_OUT, OPPOSITE, PRESETS, Preset, Scene, fits, sample_scene, sample_thing

SPLIT = "several"  # to evaluate on
COUNTS = {"tiny": 600, "small": 2_000}  # samples in it
PAIRS = 0.7  # share of the samples that are pairs
WHAT, IN_A_WORD, WHICH = "what is different?", "what is different? answer in one word.", "which picture shows {}?"
ODD = "which picture is the odd one out?"
CLEAR = 1.5  # a direction that is asked about is as clear as those of captions
PLURAL = {"colour": "colours", "size": "sizes", "fill": "fills", "place": "places"}


def respond(request: str, views: Sequence[View]) -> str | None:
    """The true reply to a request of this grammar about pictures, from the truth about them or from what has been recognised in them; None
    if it follows from nothing, or the request is another."""
    if request in (WHAT, IN_A_WORD) and len(views) == 2:
        found = difference(*views)
        return found and found[0 if request == IN_A_WORD else 1]
    if request == ODD:
        return _odd(views)
    if match := re.fullmatch(WHICH.replace("?", r"\?").format("(.+)"), request):
        shown = [number for number, view in enumerate(views, 1) if match[1] in _names(view) | _relations(view)]
        return f"picture {shown[0]}" if len(shown) == 1 else None
    return None


def difference(one: View, other: View) -> tuple[str, str] | None:
    """What two objects have exchanged between two pictures that are otherwise alike: its kind, and all of it in words. None if it is not
    clear.

    Objects in the same place are compared. If two pairs of them differ in one attribute, that was exchanged; if in several, the objects
    themselves were, and so changed places.
    """
    pairs = _in_the_same_place(one.objects, other.objects)
    differing = [(a, b, [name for name in ATTRIBUTES if _value(a, name) != _value(b, name)]) for a, b in pairs]
    changed = sorted((each for each in differing if each[2]), key=lambda each: _centre(each[0]))
    if len(changed) != 2:
        return None
    (first, first_after, names), (second, second_after, others) = changed
    if len(names) == len(others) == 1:
        (kind,) = names
        if names != others or _value(first, kind) != _value(second_after, kind) or _value(second, kind) != _value(first_after, kind):
            return None
        if kind == "shape":  # never exchanged alone
            return None
        before, after = (
            " and ".join(with_article(_name(thing, kind)) for thing in two) for two in ((first, second), (first_after, second_after))
        )
        return kind, f"the {PLURAL[kind]}: first {before}, then {after}."
    clear = direction(first, second)
    if clear is None or named(first) != named(second_after) or named(second) != named(first_after):
        return None
    where, then = RELATION_PHRASE[clear], RELATION_PHRASE[OPPOSITE[clear]]
    return "place", f"the places: first the {named(first)} is {where} the {named(second)}, then {then} it."


def _odd(views: Sequence[View]) -> str | None:
    """The picture whose object has a value that those of the others share."""
    if len(views) < 3 or any(len(view.objects) != 1 for view in views):
        return None
    found = []
    for name in ATTRIBUTES:
        values = [_value(view.objects[0], name) for view in views]
        (usual, often), *rest = Counter(values).most_common()
        if often == len(values) - 1:
            found.append(f"picture {values.index(rest[0][0]) + 1}: the {name} is {rest[0][0]}, not {usual}.")
    return found[0] if len(found) == 1 else None


def _in_the_same_place(things: Sequence[Object], others: Sequence[Object]) -> list[tuple[Object, Object]]:
    """Each object with the nearest one of the other picture; [] if that is not one to one."""
    nearest = [min(range(len(others)), key=lambda i, a=a: _apart(a, others[i])) for a in things] if others else []  # type: ignore[misc]
    one_to_one = len(things) == len(others) == len(set(nearest))
    return [(thing, others[place]) for thing, place in zip(things, nearest, strict=True)] if one_to_one else []


def _names(view: View) -> set[str]:
    """What the objects of a picture can be called: by colour and shape, also with size or fill."""
    return {with_article(_name(thing, kind)) for thing in view.objects for kind in ("colour", "size", "fill")}


def _relations(view: View, clear: float = 1.0) -> set[str]:
    """Where one object of a picture is as seen from another."""
    pairs = [(one, other, direction(one, other, clear)) for one, other in permutations(view.objects, 2)]
    return {f"{with_article(named(one))} {RELATION_PHRASE[seen]} {with_article(named(other))}" for one, other, seen in pairs if seen}


def _name(thing: Object, kind: str) -> str:
    """Colour and shape, after the size or fill where these are asked about."""
    return f"{thing.attributes[kind]} {named(thing)}" if kind in ("size", "fill") else named(thing)


def _value(thing: Object, attribute: str) -> str:
    return thing.name if attribute == "shape" else thing.attributes[attribute]


def _centre(thing: Object) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return left + right, top + bottom


def _apart(one: Object, other: Object) -> float:
    (x, y), (u, v) = _centre(one), _centre(other)
    return (x - u) ** 2 + (y - v) ** 2


# --------------------------------------------------------------------------------------------------------------- samples


def several_sample(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` of a split of the data set. Like those of scenes it depends on (seed, split, index) alone."""
    if split == SPLIT:
        return several(preset, split, index, seed)
    if split != "train":
        return make_sample(preset, split, index, seed)
    number, place = divmod(index, EVERY)
    made = several(preset, split, number, seed) if place == EVERY - 1 else make_sample(preset, split, index - number, seed)
    return replace(made, key=f"{index:08d}")


def several(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` with several pictures, of train or of `SPLIT`."""
    rng = Random(f"several/{seed}/{split}/{index}")
    make: Callable[[Preset, Random], tuple[list[Scene], list[tuple[str, str]]]] = _pair if rng.random() < PAIRS else _one_odd
    scenes, asked = make(preset, rng)
    samples = [sample_of(scene, index) for scene in scenes]
    views = [view_of(sample) for sample in samples]
    turns = [(request, respond(request, views) or "", kind) for request, kind in asked]
    first, *_ = samples
    fields = conversation([sample.image for sample in samples], turns)
    return replace(
        first,
        others=fields["others"],
        page=fields["page"],
        captions=tuple(captions(scenes[0], rng)),
        questions=tuple(questions(scenes[0], rng)),
        foils=tuple(foils(scenes[0], rng)),
        extra=first.extra | fields["extra"] | {"pictures": [record_of(view) for view in views]},
    )


def view_of(sample: Sample) -> View:
    """The truth about a sample's only picture."""
    return View(sample.objects, sample.extra["tone"])


def _pair(preset: Preset, rng: Random) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Two pictures whose difference has one explanation, and three requests in any order."""
    kind = rng.choice(KINDS)
    wanted = "place" if kind == "swap_relation" else kind.rpartition("_")[2]
    while True:
        scenes = [scene for scene, _ in sample_pair(preset, kind, rng)]
        views = [view_of(sample_of(scene, 0)) for scene in scenes]
        found, mine = difference(*views), rng.randrange(2)
        one, other = views[mine], views[1 - mine]
        told = _relations(one, CLEAR) - _relations(other) if wanted == "place" else _names(one) - _names(other)
        if found and found[0] == wanted and told:
            break
    asked = [(WHAT, "difference"), (IN_A_WORD, "in a word"), (WHICH.format(rng.choice(sorted(told))), "which")]
    return scenes, rng.sample(asked, len(asked))


def _one_odd(preset: Preset, rng: Random) -> tuple[list[Scene], list[tuple[str, str]]]:
    """Three pictures with one object each, two of which look alike; places and backgrounds are any."""
    attribute = rng.choice(ATTRIBUTES)
    while True:
        scenes = [sample_scene(replace(preset, counts=(1,)), "train", rng) for _ in range(3)]
        usual = scenes[0].things[0]
        values = {name: getattr(usual, name) for name in ATTRIBUTES}
        other = values | {attribute: rng.choice([value for value in VALUES[attribute] if value != values[attribute]])}
        if (other["colour"], other["shape"]) in HELD_OUT:
            continue
        odd = rng.randrange(3)
        things = [sample_thing(preset, rng, **(other if place == odd else values)) for place in range(3)]
        if all(fits((thing,), preset.pixels) for thing in things):
            return [replace(scene, things=(thing,)) for scene, thing in zip(scenes, things, strict=True)], [(ODD, "odd")]


def main() -> None:
    args = arguments("Write samples of several pictures, with the samples of scenes.").parse_args()
    run(
        args,
        lambda: write_splits(args.out, f"several-{args.preset}", args.preset, several_sample, args.seed, args.workers, counts(args.preset)),
    )


def counts(preset: str) -> dict[str, int]:
    """Samples in each split."""
    own = PRESETS[preset].samples
    return own | {"train": own["train"] * EVERY // (EVERY - 1), SPLIT: COUNTS[preset]}


if __name__ == "__main__":
    main()
