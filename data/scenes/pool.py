"""A polluted pool: scenes as the web would have them, with the truth of every sample (`make data DATA=pool`).

Training pictures and captions as in `data.scenes.build`, but only some of them as they should be. `extra["noise"]` says what is wrong:

    clean        nothing
    swapped      the captions of another picture, all of them false of this one
    attribute    captions with one colour or shape wrong, all of them false
    boilerplate  one caption that could be of anything
    blurred      the captions are true, but the picture is too blurred to show it
    duplicate    another sample again, with its captions: every second one exactly, the others moved by a pixel, brighter or darker;
                 `extra["of"]` is the key of that sample, a clean one that comes before it

Filters are judged by it (`recipes/filter`), and no model reads it. Questions, foils and objects stay those of the picture. The other
splits are those of scenes.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from data.sample import Object, Sample
from data.scenes.build import arguments, make_sample, run, scene_of, write_splits
from data.scenes.language import agreement, captions
from data.scenes.world import COLOURS, HELD_OUT, SHAPES, Preset, Scene

POLLUTED_SPLIT = "train"
SHARES = {"clean": 40, "swapped": 20, "attribute": 10, "boilerplate": 10, "blurred": 10, "duplicate": 10}  # in %
BOILERPLATE = (
    "image",
    "a picture",
    "photo {number} of {many}",
    "IMG_{number}{many}",
    "click to enlarge",
    "no description available",
    "a picture of several things on a background",
    "this figure shows an image, all rights reserved",
)
BLUR = 10  # passes of a 3 x 3 mean at 64 px, a standard deviation of 2.6 px


def polluted_sample(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` of a split of the pool. Like those of scenes it depends on (seed, split, index) alone."""
    sample = make_sample(preset, split, index, seed)
    if split != POLLUTED_SPLIT:
        return sample
    noise, rng = noise_of(index, seed), Random(f"pollution/{seed}/{index}")
    if noise == "swapped":
        sample = replace(sample, captions=_of_another(sample, preset, split, index, seed, rng))
    elif noise == "attribute":
        sample = replace(sample, captions=tuple(captions(_one_wrong(scene_of(preset, split, index, seed), rng), rng)))
    elif noise == "boilerplate":
        text = rng.choice(BOILERPLATE).format(number=rng.randrange(1, 1000), many=rng.randrange(1000, 3000))
        sample = replace(sample, captions=(text,))
    elif noise == "blurred":
        sample = replace(sample, image=_blurred(sample.image, BLUR * (preset.pixels // 64) ** 2))
    elif noise == "duplicate":
        sample = _again(preset, split, index, seed, rng)
    return replace(sample, extra=sample.extra | {"noise": noise})


def noise_of(index: int, seed: int) -> str:
    """What is wrong with a training sample of the pool. The first one is clean, so that every duplicate has a clean one before it."""
    return Random(f"noise/{seed}/{index}").choices(list(SHARES), weights=list(SHARES.values()))[0] if index else "clean"


def _of_another(sample: Sample, preset: Preset, split: str, index: int, seed: int, rng: Random) -> tuple[str, ...]:
    """The captions of one of the 1,000 samples around this one, all of them false of this one."""
    while True:
        other = rng.randrange(max(0, index - 500), index + 500)
        texts = make_sample(preset, split, other, seed).captions
        if all(agreement(text, sample) < 1 for text in texts):
            return texts


def _one_wrong(scene: Scene, rng: Random) -> Scene:
    """The scene with another colour or shape of one object: captions name both of every object."""
    while True:
        things = list(scene.things)
        place, (name, values) = rng.randrange(len(things)), rng.choice((("colour", COLOURS), ("shape", SHAPES)))
        things[place] = replace(things[place], **{name: rng.choice(values)})  # type: ignore[arg-type]
        kinds = {(thing.colour, thing.shape) for thing in things}
        if kinds != {(thing.colour, thing.shape) for thing in scene.things} and len(kinds) == len(things) and not kinds & HELD_OUT:
            return replace(scene, things=tuple(things))


def _again(preset: Preset, split: str, index: int, seed: int, rng: Random) -> Sample:
    """A clean sample from before this one, under the key of this one."""
    other = rng.randrange(index)
    while noise_of(other, seed) != "clean":
        other = rng.randrange(index)
    sample = make_sample(preset, split, other, seed)
    dx, dy, brighter = 0, 0, 0
    if rng.random() < 0.5:
        dx, dy, brighter = rng.choice((-1, 1)), rng.choice((-1, 0, 1)), rng.randrange(-8, 9)
    rows, columns = (np.clip(np.arange(preset.pixels) - shift, 0, preset.pixels - 1) for shift in (dy, dx))
    image = np.clip(sample.image.astype(np.int32)[rows][:, columns] + brighter, 0, 255).astype(np.uint8)
    objects = tuple(_moved(each, dx, dy) for each in sample.objects)
    return replace(sample, key=f"{index:08d}", image=image, objects=objects, extra=sample.extra | {"of": sample.key})


def _moved(thing: Object, dx: int, dy: int) -> Object:
    left, top, right, bottom = thing.box
    return replace(thing, box=(left + dx, top + dy, right + dx, bottom + dy))


def _blurred(image: np.ndarray, passes: int) -> np.ndarray:
    """Repeated means over 3 x 3 pixels, in integers of 1/256 level, so that every machine has the same bytes. uint8 `[H, W, 3]`."""
    levels = image.astype(np.int32) * 256
    for _ in range(passes):
        for axis in (0, 1):
            ends = [(1, 1) if each == axis else (0, 0) for each in range(3)]
            padded = np.pad(levels, ends, mode="edge")
            before, here, behind = (np.take(padded, range(start, start + levels.shape[axis]), axis) for start in range(3))
            levels = (before + here + behind) // 3
    return ((levels + 128) // 256).astype(np.uint8)


def main() -> None:
    args = arguments("Write the polluted pool.").parse_args()
    run(args, lambda: write_splits(args.out, f"pool-{args.preset}", args.preset, polluted_sample, args.seed, args.workers))


if __name__ == "__main__":
    main()
