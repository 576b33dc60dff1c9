"""Text-to-image: does a drawing show its prompt? A recogniser trained on the embedded data reads the drawings.

Prompts: every pair of colour and shape that training shows, in two of the six sizes and fills ("a large solid red star"), and
60 of two objects in a relation ("a red star above a blue circle"). On the split "heldout": the pairs that training never
shows, in all sizes and fills, and 24 relations that include one of them. The recogniser makes mistakes, too: the oracle's row is
its accuracy on real pictures of the same prompts. Drawings are stored as PNG files, and the records name them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from itertools import product
from math import comb
from random import Random
from typing import Any, ClassVar

from data.english import with_article
from data.sample import Object, Sample
from data.scenes.build import sample_of
from data.scenes.compose import compose
from data.scenes.language import RELATION_PHRASE, VOCABULARY, parse
from data.scenes.world import COLOURS, FILLS, HELD_OUT, PRESETS, RELATIONS, SHAPES, SIZES, direction
from eval.base.capabilities import Drawer, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.scenes.oracle import has_truth, preset_of
from eval.scenes.recogniser import VERSION, looks, recogniser_of

ORDER = 150
HEADLINE = (r"colour\+shape",)

Reader = Callable[[Images], list[tuple[list[Object], dict[str, str]]]]

TWO_OBJECTS = 60
TWO_OBJECTS_HELD_OUT = 24
PAIRS = list(product(COLOURS, SHAPES))
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]
UNSEEN = [pair for pair in PAIRS if pair in HELD_OUT]


def plan(source: Source) -> list[Drawing]:
    if "train" not in source.streams or not has_truth(source.samples(source.primary)):
        return []
    read = _reader(source)
    preset = preset_of(source.samples(source.primary)[0].image)
    tasks = []
    for split in source.evaluated:
        if split not in (source.primary, "heldout"):
            continue  # the style shift changes pictures, not prompts
        prompts = spread(held_out_prompts() if split == "heldout" else seen_prompts(), source.limit)
        tasks.append(Drawing(split, list(_drawn(tuple(prompts), preset.pixels)), read))
    return tasks


@lru_cache(maxsize=8)  # the same for all models
def _drawn(prompts: tuple[str, ...], pixels: int) -> list[Sample]:
    """Each prompt as the renderer draws it at this size."""
    preset = next(each for each in PRESETS.values() if each.pixels == pixels)
    scenes = [sample_of(compose(prompt, preset, Random(prompt)), number) for number, prompt in enumerate(prompts)]
    return [replace(scene, captions=(prompt,)) for scene, prompt in zip(scenes, prompts, strict=True)]


def seen_prompts() -> list[str]:
    rng = Random("drawing")
    styles = list(product(SIZES, FILLS))
    singles = [(*styles[j % 6], *pair) for i, pair in enumerate(rng.sample(SEEN, len(SEEN))) for j in (i, i + 4)]
    return [f"a {' '.join(words)}" for words in singles] + _two_objects(SEEN, SEEN, TWO_OBJECTS, rng)


def held_out_prompts() -> list[str]:
    singles = [f"a {size} {fill} {colour} {shape}" for colour, shape in UNSEEN for size, fill in product(SIZES, FILLS)]
    return singles + _two_objects(UNSEEN, SEEN, TWO_OBJECTS_HELD_OUT, Random("drawing/heldout"))


def _two_objects(some: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]], count: int, rng: Random) -> list[str]:
    """Different colours and different shapes, every relation equally often."""
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        pairs = [rng.choice(some), rng.choice(others)]
        rng.shuffle(pairs)
        (colour, shape), (other_colour, other_shape) = pairs
        if colour == other_colour or shape == other_shape:
            continue
        first, second = map(with_article, (colour, other_colour))
        phrase = RELATION_PHRASE[RELATIONS[len(prompts) % len(RELATIONS)]]
        prompts[f"{first} {shape} {phrase} {second} {other_shape}"] = None
    return list(prompts)


@dataclass
class Drawing:
    """`samples` are the prompts, each the caption of a real picture of it; `read` finds the objects in drawings."""

    split: str
    samples: Sequence[Sample]
    read: Reader
    name: ClassVar[str] = "drawing"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Drawer
    needed_method: ClassVar[str] = "draw"

    def __post_init__(self) -> None:
        one = sum(len(sample.objects) == 1 for sample in self.samples)
        single, double = f"{one} prompts of one object", f"{len(self.samples) - one} prompts of two objects"
        self.measures: Sequence[Measure] = [
            *[Measure(name, single) for name in ("colour+shape", "colour", "shape", "size", "fill") if one],
            *[Measure("two objects", f"{double}: colour and shape of both")] * (one < len(self.samples)),
            *[Measure("relation", f"{double}: both, and in the relation of the prompt")] * (one < len(self.samples)),
            Measure("count", "as many objects as in the prompt"),
            Measure("blank", "no object at all", better="lower"),
        ]

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "recogniser": VERSION, "prompts": self.texts()}

    def texts(self) -> list[str]:
        return [sample.captions[0] for sample in self.samples]

    def ask(self, drawer: Drawer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        drawings = drawer.drawings([self.samples[row].captions[0] for row in rows])
        found = [things for things, _ in self.read(drawings)]
        return [
            [{"prompt": self.samples[row].captions[0], "drawing": drawing, "found": _words(things)} | judge(self.samples[row], things)]
            for row, drawing, things in zip(rows, drawings, found, strict=True)
        ]

    def chance(self) -> list[list[Record]]:
        """A model that does not read the prompt but draws the right number of different objects, in a clear relation."""
        shares = {name: 1 / len(values) for name, values in VOCABULARY.items()}
        one = shares | {"colour+shape": 1 / len(PAIRS)}
        two = {"two objects": 1 / comb(len(PAIRS), 2), "relation": 1 / comb(len(PAIRS), 2) / len(RELATIONS)}
        return [[{"count": 1.0, "blank": 0.0} | (one if len(sample.objects) == 1 else two)] for sample in self.samples]


def judge(sample: Sample, found: Sequence[Object]) -> Record:
    """Whether a drawing shows its prompt, given the objects found in it, most certain first. For a prompt of one object only the
    most certain one counts."""
    record: Record = {"count": float(len(found) == len(sample.objects)), "blank": float(not found)}
    if len(sample.objects) == 1:
        true, seen = looks(sample.objects[0]), looks(found[0]) if found else {}
        record |= {name: float(seen.get(name) == value) for name, value in true.items()}
        return record | {"colour+shape": record["colour"] * record["shape"]}
    pairs = {(looks(thing)["colour"], looks(thing)["shape"]): thing for thing in reversed(found)}
    asked = [pairs.get((looks(thing)["colour"], looks(thing)["shape"])) for thing in sample.objects]
    both = [thing for thing in asked if thing is not None]
    complete = len(both) == len(asked)
    related = complete and all(_direction(both[i], both[j]) == name for i, name, j in parse(sample.captions[0]).relations)
    return record | {"two objects": float(complete), "relation": float(related)}


def _direction(a: Object, b: Object) -> str | None:
    """The direction of `a` from `b`."""
    return direction(a.box[0] + a.box[2] - b.box[0] - b.box[2], a.box[1] + a.box[3] - b.box[1] - b.box[3])


def _words(things: Sequence[Object]) -> list[str]:
    return [" ".join(looks(thing).values()) for thing in things]


def _reader(source: Source) -> Reader:
    """The data set's recogniser, trained or read from disk when the first drawing is there."""
    model = cache(partial(recogniser_of, source))
    return lambda images: model().recognise(images)
