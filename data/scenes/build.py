"""Write the embedded data set: `python -m data.scenes.build --preset tiny --out .data/scenes-tiny` (= `make data`).

The same seed gives the same bytes with any number of workers: an image depends only on (seed, split, index) and is drawn
with integers. JPEG is left to libjpeg-turbo, whose baseline coder is integer arithmetic too; the tests compare a whole shard
with the published one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from rich.progress import track

from data.fields import require
from data.files import new_folder, remove_folder
from data.sample import Object, Sample, to_record
from data.scenes.draw import box, draw
from data.scenes.language import captions, foils, match_question, questions
from data.scenes.pairs import KINDS, sample_pair
from data.scenes.planted import PLANTED_SPLITS, group_of, plant
from data.scenes.world import PRESETS, Preset, Scene, position, relation, sample_scene
from data.shards import DataError, Encoded, find, write_index, write_shard

SAMPLES_PER_SHARD = 1000
Make = Callable[..., Sample]  # of a sample, from (preset, split, index, seed=); picklable


def make_sample(preset: Preset, split: str, index: int, seed: int = 0, planted: float | None = None) -> Sample:
    """Sample `index` of a split: picture, five captions, questions, foils, and the whole truth about its objects.

    In the split "pairs" samples 2n and 2n + 1 are partners, with one caption each. `planted` is the share of training pictures whose
    background agrees with their first object (`data.scenes.planted`); every sample's extra["group"] then says whether it does.
    """
    sample = _partner(preset, index, seed) if split == "pairs" else _single(preset, split, index, seed, planted)
    return sample if planted is None else replace(sample, extra=sample.extra | {"group": group_of(sample)})


def _single(preset: Preset, split: str, index: int, seed: int, planted: float | None) -> Sample:
    rng = Random(f"scenes/{seed}/{split}/{index}")
    scene = sample_scene(preset, split, rng)  # as scene_of
    if planted is not None and split in PLANTED_SPLITS:
        scene = plant(scene, planted, Random(f"planted/{seed}/{split}/{index}"))
    references, asked, negatives = captions(scene, rng), questions(scene, rng), foils(scene, rng)
    return replace(
        sample_of(scene, index),
        captions=tuple(references),
        questions=(*asked, *match_question(negatives, rng)),
        foils=tuple(negatives),
    )


def scene_of(preset: Preset, split: str, index: int, seed: int = 0) -> Scene:
    """The scene of sample `index` of any split but "pairs"."""
    return sample_scene(preset, split, Random(f"scenes/{seed}/{split}/{index}"))


def _partner(preset: Preset, index: int, seed: int) -> Sample:
    """extra["pair"] is the partner's key, extra["kind"] the exchange between the two."""
    number, which = divmod(index, 2)
    rng = Random(f"scenes/{seed}/pairs/{number}")
    kind = rng.choice(KINDS)
    scene, caption = sample_pair(preset, kind, rng)[which]
    sample = sample_of(scene, index)
    return replace(sample, captions=(caption,), extra=sample.extra | {"pair": f"{index ^ 1:08d}", "kind": kind})


def sample_of(scene: Scene, index: int) -> Sample:
    """A scene's picture and the truth about it."""
    things = scene.things
    return Sample(
        key=f"{index:08d}",
        image=draw(scene),
        objects=tuple(
            Object(t.shape, box(t), {"colour": t.colour, "size": t.size, "fill": t.fill, "place": position(t.x, t.y, scene.pixels)})
            for t in things
        ),
        extra={
            "tone": scene.tone,
            "texture": "checkered" if scene.shifted else scene.texture,
            "relations": [[i, name, j] for i, j in permutations(range(len(things)), 2) if (name := relation(things[i], things[j]))],
        },
    )


def build(
    out: Path,
    preset_name: str,
    seed: int = 0,
    workers: int | None = None,
    samples: dict[str, int] | None = None,
    planted: float | None = None,
) -> None:
    """Write every split of scenes as shards with an index, see `write_splits`."""
    name = f"scenes-{preset_name}" + ("" if planted is None else f"-planted{planted:g}")
    write_splits(out, name, preset_name, partial(make_sample, planted=planted), seed, workers, samples)


def write_splits(
    out: Path,
    name: str,
    preset_name: str,
    make: Make,
    seed: int = 0,
    workers: int | None = None,
    samples: dict[str, int] | None = None,
) -> None:
    """Write every split as shards with an index, from `make(preset, split, index, seed=seed)`. Complete splits are kept; others are written
    to a temporary folder and then replaced. Raises DataError for a complete split with other samples than `make` and `seed` give.

    Two builds at once give one data set: the split of the faster one stays.
    """
    preset = PRESETS[preset_name]
    for split, total in (samples or preset.samples).items():
        if _complete(out, split, total):
            if not _begins_with(out, split, make(preset, split, 0, seed=seed)):
                raise DataError(f"{out / split} has other samples than {name} with seed {seed}. Remove it, or choose another --out")
            continue
        with suppress(FileExistsError), new_folder(out / split) as folder:
            jobs = [
                (folder / f"{number:05d}.tar", preset_name, split, seed, make, range(start, min(start + SAMPLES_PER_SHARD, total)))
                for number, start in enumerate(range(0, total, SAMPLES_PER_SHARD))
            ]
            processes = min(workers or os.cpu_count() or 1, len(jobs))
            with ExitStack() as stack:
                written: Iterator[dict[str, object]] = map(_write, jobs)  # a process takes longer to start than most splits to write
                if processes > 1:
                    pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
                    written = pool.map(_write, jobs)
                shards = list(track(written, f"{name}: {split}", len(jobs), disable=not sys.stderr.isatty()))
            write_index(folder, name=name, split=split, shards=shards)
            if not _complete(out, split, total):
                remove_folder(out / split)


def _complete(out: Path, split: str, total: int) -> bool:
    """Whether the split is there with all its samples; not if a shard is missing, or an index was made of the first shards only."""
    try:
        return (out / split).is_dir() and find(out, split).samples == total
    except (DataError, OSError):
        return False


def _begins_with(out: Path, split: str, first: Sample) -> bool:
    """Whether the split's first sample is this one, by its json: that tells seeds and kinds of data sets apart."""
    try:
        with tarfile.open(find(out, split).urls[0]) as tar:
            file = tar.extractfile(f"{first.key}.json")
            return file is not None and json.load(file) == json.loads(json.dumps(to_record(first)))
    except (KeyError, ValueError, tarfile.TarError):
        return False


def _write(job: tuple[Path, str, str, int, Make, range]) -> dict[str, object]:
    path, preset_name, split, seed, make, indices = job
    preset = PRESETS[preset_name]

    def encoded() -> Iterator[Encoded]:
        for index in indices:
            sample = make(preset, split, index, seed=seed)
            first, *others = (_jpeg(image) for image in sample.images)
            yield sample, "jpg", first, *(("jpg", other) for other in others)

    return write_shard(path, encoded())


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every command that writes splits."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None)
    return parser


def run(args: argparse.Namespace, write: Callable[[], None]) -> None:
    """`write`, once the options are known to be right. Its errors end the command with a sentence."""
    try:
        require(0 <= args.seed < 1 << 32, "--seed", args.seed, f"0 to {(1 << 32) - 1:,}")
        require(args.workers is None or args.workers >= 1, "--workers", args.workers, "1 or more")
        write()
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except BrokenProcessPool:
        sys.exit(f"error: {args.out}: a worker was killed, probably for lack of memory. Run again with fewer --workers")


def main() -> None:
    parser = arguments("Write the embedded data set.")
    parser.add_argument("--planted", type=float, help="share of training pictures whose background agrees with their first object")
    args = parser.parse_args()

    def write() -> None:
        require(args.planted is None or 0 <= args.planted <= 1, "--planted", args.planted, "a share between 0 and 1, such as 0.9")
        build(args.out, args.preset, args.seed, args.workers, planted=args.planted)

    run(args, write)


if __name__ == "__main__":
    main()
