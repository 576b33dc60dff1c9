"""Pages: three to five pictures with a text each, after a rule that only the earlier pairs reveal (`make data DATA=pages`).

A page is one sample with several pictures. Its rule decides what is said of a picture:

    naming    one or two of its attributes: "red", "star", "red star", or the number of its objects
    word      a new word for one of two colours, shapes or sides: "dax" for red ones, "blicket" for green ones
    whether   "yes" if it has a hidden property, such as being striped, and "no" otherwise
    change    what differs from the picture before: "blue"

Without the earlier pairs nobody knows which of these is asked for. The first two pictures show both words, or both answers, so the
text of every later picture can be inferred. In training a text in ten has nothing to do with its page, as on the web, and on a page in
four the texts precede their pictures.

`extra` has the `rule`, and of each picture the truth (`pictures`). The other fields of a page are those of scenes, about its first picture.
Every third training sample is a page, the others are the samples of scenes. Pages to evaluate on are in splits of their own: `pages`
has the rules and words of training, `rule_heldout` other rules, `word_heldout` other words. The remaining splits are those of scenes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from random import Random
from typing import Any, Protocol

from data.sample import Object, Sample
from data.scenes.build import arguments, make_sample, run, sample_of, write_splits
from data.scenes.language import NUMBERS, captions, foils, questions
from data.scenes.world import COLOURS, FILLS, HELD_OUT, PRESETS, SHAPES, SIZES, TONES, Preset, Scene, Thing, fits, position, sample_scene

EVERY = 3  # the share of pages in training: every third sample
SPLITS = ("pages", "rule_heldout", "word_heldout")  # of pages to evaluate on
COUNTS = {"tiny": 600, "small": 2_000}  # pages in each of these
LENGTHS = (3, 4, 5)  # pictures of a page in training; the longest in evaluation
BEFORE, UNRELATED = 0.25, 0.1  # shares in training
SHOWN = 2  # pictures that show both words or answers

VALUES = {"colour": COLOURS, "shape": SHAPES, "fill": FILLS, "size": SIZES, "tone": TONES, "side": ("left", "right")}
NAMED = (("colour",), ("shape",), ("fill",), ("size",), ("tone",), ("count",), ("colour", "shape"), ("fill", "shape"))
NAMED_HELD_OUT = (("size", "shape"), ("shape", "colour"), ("fill", "colour"))
WORD_FOR = ("colour", "shape", "side")
WHETHER = ("colour", "shape", "fill", "size", "tone")
CHANGING = ("size", "fill", "colour", "shape")
WORDS = ("dax", "blicket", "wug", "toma", "fep", "zav", "modi", "kiki", "bouba", "gorp", "pim", "tulver")
WORDS_HELD_OUT = ("sorn", "lupo", "quib", "narf", "tesk", "yado")
OLD_WORDS = frozenset(value for values in VALUES.values() for value in values) | {*NUMBERS, "yes", "no"}
UNRELATED_TEXTS = (
    "click to enlarge",
    "image",
    "all rights reserved",
    "no description available",
    "a picture of several things on a background",
    "continued on the next page",
)


# ----------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class View:
    """The truth about one picture, or what has been recognised in it."""

    objects: tuple[Object, ...]
    tone: str

    def value(self, attribute: str) -> str | None:
        """Of the picture's first object, or of the picture; None where it has none."""
        if attribute == "count":
            return NUMBERS[len(self.objects)] if len(self.objects) < len(NUMBERS) else None
        if attribute == "tone":
            return self.tone
        if not self.objects:
            return None
        first = self.objects[0]
        if attribute == "side":
            return next((side for side in VALUES["side"] if side in first.attributes.get("place", "")), None)
        return first.name if attribute == "shape" else first.attributes.get(attribute)


class Rule(Protocol):
    @property
    def name(self) -> str: ...

    def text(self, views: Sequence[View]) -> str | None:
        """What is said of the last of these pictures; None if the rule says nothing."""


@dataclass(frozen=True)
class Naming:
    attributes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"naming {' '.join(self.attributes)}"

    def text(self, views: Sequence[View]) -> str | None:
        values = [views[-1].value(attribute) for attribute in self.attributes]
        return " ".join(filter(None, values)) if all(values) else None


@dataclass(frozen=True)
class Words:
    attribute: str
    meanings: tuple[tuple[str, str], ...]  # (value, new word)

    @property
    def name(self) -> str:
        return f"word for {self.attribute}"

    def text(self, views: Sequence[View]) -> str | None:
        return dict(self.meanings).get(views[-1].value(self.attribute) or "")


@dataclass(frozen=True)
class Whether:
    attribute: str
    wanted: str

    @property
    def name(self) -> str:
        return f"whether {self.attribute}"

    def text(self, views: Sequence[View]) -> str | None:
        value = views[-1].value(self.attribute)
        return None if value is None else "yes" if value == self.wanted else "no"


@dataclass(frozen=True)
class Change:
    name: str = "change"

    def text(self, views: Sequence[View]) -> str | None:
        """All attributes of the first picture; of a later one those that the picture before it had not."""
        now = [views[-1].value(attribute) for attribute in CHANGING]
        before = [views[-2].value(attribute) for attribute in CHANGING] if len(views) > 1 else [None] * len(CHANGING)
        return " ".join(value for value, old in zip(now, before, strict=True) if value and value != old) or None


def infer(views: Sequence[View], texts: Sequence[str]) -> str | None:
    """The text of the last picture, inferred from all pictures and the texts of those before it: what most of the rules say that agree best
    with the earlier pairs, each rule by its share of the pages. None where no rule says anything.
    """
    if len(texts) != len(views) - 1:
        raise ValueError(f"{len(views)} pictures with {len(texts)} texts: expected a text for each picture but the last")
    votes: dict[tuple[int, str], float] = defaultdict(float)
    related = [place for place, text in enumerate(texts) if text not in UNRELATED_TEXTS]
    for rule, weight in _candidates(views, [(views[place], texts[place]) for place in related]):
        said = rule.text(views)
        if said is not None:
            votes[sum(rule.text(views[: place + 1]) == texts[place] for place in related), said] += weight
    most = max((agreeing for agreeing, _ in votes), default=0)
    best = {said: weight for (agreeing, said), weight in votes.items() if agreeing == most}
    return max(best, key=lambda said: best[said]) if best else None


def _candidates(views: Sequence[View], pairs: Sequence[tuple[View, str]]) -> list[tuple[Rule, float]]:
    """All rules, trained or not, with their shares. Those of words are learned from the pairs."""
    named = (*NAMED, *NAMED_HELD_OUT)
    found: list[tuple[Rule, float]] = [(Naming(attributes), KINDS["naming"] / len(named)) for attributes in named]
    found += [(Whether(each, value), KINDS["whether"] / len(WHETHER) / len(VALUES[each])) for each in WHETHER for value in VALUES[each]]
    found.append((Change(), KINDS["change"]))
    for attribute in (*WORD_FOR, "fill"):
        meanings = {value: text for view, text in pairs if (value := view.value(attribute)) and not set(text.split()) & OLD_WORDS}
        found.append((Words(attribute, tuple(meanings.items())), KINDS["word"] / len(WORD_FOR)))
    return found


# ----------------------------------------------------------------------------------------------------------------- pages


def page_sample(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` of a split of the data set. Like those of scenes it depends on (seed, split, index) alone."""
    if split in SPLITS:
        return page(preset, split, index, seed)
    if split != "train":
        return make_sample(preset, split, index, seed)
    number, place = divmod(index, EVERY)
    made = page(preset, split, number, seed) if place == EVERY - 1 else make_sample(preset, split, index - number, seed)
    return replace(made, key=f"{index:08d}")


def page(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Page `index` of train or of one of `SPLITS`."""
    rng = Random(f"pages/{seed}/{split}/{index}")
    training = split == "train"
    length = rng.choice(LENGTHS) if training else max(LENGTHS)
    rule, scenes = KIND[_kind(split, rng)](preset, split, length, rng)
    samples = [sample_of(scene, index) for scene in scenes]
    views = [View(sample.objects, sample.extra["tone"]) for sample in samples]
    texts = [rule.text(views[: place + 1]) or "" for place in range(length)]
    before = training and rng.random() < BEFORE
    unrelated = [place for place in range(length) if training and rng.random() < UNRELATED]
    said = [rng.choice(UNRELATED_TEXTS) if place in unrelated else text for place, text in enumerate(texts)]
    pairs = [(text, place) if before else (place, text) for place, text in enumerate(said)]
    first, *others = samples
    return replace(
        first,
        others=tuple(other.image for other in others),
        page=tuple(part for pair in pairs for part in pair),
        captions=tuple(captions(scenes[0], rng)),
        questions=tuple(questions(scenes[0], rng)),
        foils=tuple(foils(scenes[0], rng)),
        extra=first.extra | {"rule": rule.name, "before": before, "unrelated": unrelated, "pictures": [record_of(view) for view in views]},
    )


def views_of(sample: Sample) -> list[View]:
    """The truth about each picture of a sample with several."""
    return [
        View(tuple(Object(each["name"], tuple(each["box"]), each["attributes"]) for each in picture["objects"]), picture["tone"])
        for picture in sample.extra["pictures"]
    ]


def pairs_of(sample: Sample) -> list[tuple[int, str]]:
    """The number of each picture of a page and its text."""
    parts = list(sample.page)
    if len(parts) % 2:
        raise ValueError(f"{sample.key}: expected a text for each picture, found {parts!r:.80}")
    pairs = [(one, other) if isinstance(one, int) else (other, one) for one, other in zip(parts[::2], parts[1::2], strict=True)]
    return [(int(place), str(text)) for place, text in pairs]


def record_of(view: View) -> dict[str, Any]:
    """The truth about a picture in the terms of json."""
    return {"objects": [asdict(thing) | {"box": list(thing.box)} for thing in view.objects], "tone": view.tone}


def _kind(split: str, rng: Random) -> str:
    if split == "word_heldout":
        return "word"
    if split == "rule_heldout":
        return "naming"
    return rng.choices(list(KINDS), weights=list(KINDS.values()))[0]


def _naming(preset: Preset, split: str, length: int, rng: Random) -> tuple[Rule, list[Scene]]:
    rule = Naming(rng.choice(NAMED_HELD_OUT if split == "rule_heldout" else NAMED))
    several = rule.attributes == ("count",)
    return rule, [_scene(preset, rng, several=several) for _ in range(length)]


def _words(preset: Preset, split: str, length: int, rng: Random) -> tuple[Rule, list[Scene]]:
    attribute = rng.choice(WORD_FOR)
    values = rng.sample(VALUES[attribute], 2)
    words = rng.sample(WORDS_HELD_OUT if split == "word_heldout" else WORDS, 2)
    shown = [*rng.sample(values, SHOWN), *(rng.choice(values) for _ in range(length - SHOWN))]
    scenes = [_scene(preset, rng, partial(_has, attribute=attribute, value=value)) for value in shown]
    return Words(attribute, tuple(zip(values, words, strict=True))), scenes


def _whether(preset: Preset, split: str, length: int, rng: Random) -> tuple[Rule, list[Scene]]:
    attribute = rng.choice(WHETHER)
    wanted = rng.choice(VALUES[attribute])
    shown = [*rng.sample((True, False), SHOWN), *(rng.random() < 0.5 for _ in range(length - SHOWN))]
    scenes = [_scene(preset, rng, partial(_has, attribute=attribute, value=wanted, true=true)) for true in shown]
    return Whether(attribute, wanted), scenes


def _change(preset: Preset, split: str, length: int, rng: Random) -> tuple[Rule, list[Scene]]:
    scenes = [_scene(preset, rng)]
    while len(scenes) < length:
        thing = _changed(scenes[-1].things[0], preset, rng)
        if (thing.colour, thing.shape) not in HELD_OUT and fits((thing,), preset.pixels):
            scenes.append(replace(scenes[-1], things=(thing,)))
    return Change(), scenes


def _changed(thing: Thing, preset: Preset, rng: Random) -> Thing:
    """With another value of one attribute."""
    attribute = rng.choice(CHANGING)
    value = rng.choice([value for value in VALUES[attribute] if value != getattr(thing, attribute)])
    if attribute == "size":
        return replace(thing, size=value, radius=rng.choice(preset.radii[value]))
    return replace(thing, **{attribute: value})  # type: ignore[arg-type]


def _scene(preset: Preset, rng: Random, wanted: Callable[[View], bool] = lambda _: True, *, several: bool = False) -> Scene:
    """A scene of one object, or `several`, without pairs of colour and shape that training lacks."""
    one = preset if several else replace(preset, counts=(1,))
    while True:
        scene = sample_scene(one, "pages", rng)
        if wanted(_seen(scene)):
            return scene


def _has(view: View, attribute: str, value: str, true: bool = True) -> bool:
    """Whether the picture has this value or, with `true` False, has it not."""
    return (view.value(attribute) == value) == true


def _seen(scene: Scene) -> View:
    """As `views_of`, without boxes."""
    return View(
        tuple(
            Object(t.shape, (0, 0, 0, 0), {"colour": t.colour, "size": t.size, "fill": t.fill, "place": position(t.x, t.y, scene.pixels)})
            for t in scene.things
        ),
        scene.tone,
    )


KINDS = {"naming": 0.5, "word": 0.25, "whether": 0.15, "change": 0.1}  # shares of the pages
KIND: dict[str, Callable[[Preset, str, int, Random], tuple[Rule, list[Scene]]]] = {
    "naming": _naming,
    "word": _words,
    "whether": _whether,
    "change": _change,
}


def main() -> None:
    args = arguments("Write the pages, with the samples of scenes.").parse_args()
    run(
        args,
        lambda: write_splits(args.out, f"pages-{args.preset}", args.preset, page_sample, args.seed, args.workers, counts(args.preset)),
    )


def counts(preset: str) -> dict[str, int]:
    """Samples in each split."""
    own = PRESETS[preset].samples
    return own | {"train": own["train"] * EVERY // (EVERY - 1)} | dict.fromkeys(SPLITS, COUNTS[preset])


if __name__ == "__main__":
    main()
