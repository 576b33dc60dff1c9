"""Write the embedded data set: `python -m data.scenes.build --preset tiny --out .data/scenes-tiny` (= `make data`).

The same seed gives the same bytes with any number of workers: a picture depends on (seed, split, index) alone and is drawn
with integers. JPEG is left to libjpeg-turbo, whose baseline coder is integer arithmetic too; the tests compare a whole shard
with the published one.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from random import Random

from PIL import Image
from rich.progress import track

from data.sample import Object, Sample
from data.scenes.draw import box, draw
from data.scenes.language import captions, foils, match_question, questions
from data.scenes.pairs import KINDS, sample_pair
from data.scenes.world import PRESETS, Preset, Scene, position, relation, sample_scene
from data.shards import write_index, write_shard

SAMPLES_PER_SHARD = 1000


def make_sample(preset: Preset, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` of a split: picture, five captions, questions, foils, and the whole truth about its objects.

    In the split "pairs" samples 2n and 2n + 1 are partners, with one caption each.
    """
    if split == "pairs":
        return _partner(preset, index, seed)
    rng = Random(f"scenes/{seed}/{split}/{index}")
    scene = sample_scene(preset, split, rng)
    references, asked, negatives = captions(scene, rng), questions(scene, rng), foils(scene, rng)
    return replace(
        told(scene, index),
        captions=tuple(references),
        questions=(*asked, *match_question(negatives, rng)),
        foils=tuple(negatives),
    )


def _partner(preset: Preset, index: int, seed: int) -> Sample:
    """extra["pair"] is the partner's key, extra["kind"] what the two have exchanged."""
    number, which = divmod(index, 2)
    rng = Random(f"scenes/{seed}/pairs/{number}")
    kind = rng.choice(KINDS)
    scene, caption = sample_pair(preset, kind, rng)[which]
    sample = told(scene, index)
    return replace(sample, captions=(caption,), extra=sample.extra | {"pair": f"{index ^ 1:08d}", "kind": kind})


def told(scene: Scene, index: int) -> Sample:
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


def build(out: Path, preset_name: str, seed: int = 0, workers: int | None = None, samples: dict[str, int] | None = None) -> None:
    """Write every split as shards with an index. A split that is already whole is left alone."""
    preset = PRESETS[preset_name]
    for split, total in (samples or preset.samples).items():
        folder = out / split
        if (folder / "index.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted build left shards without an index
        folder.mkdir(parents=True)
        jobs = [
            (folder, preset_name, split, seed, start, min(start + SAMPLES_PER_SHARD, total)) for start in range(0, total, SAMPLES_PER_SHARD)
        ]
        with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
            shards = list(track(pool.map(_write, jobs), f"scenes {preset_name}: {split}", len(jobs), disable=not sys.stderr.isatty()))
        write_index(folder, name=f"scenes-{preset_name}", split=split, shards=shards)


def _write(job: tuple[Path, str, str, int, int, int]) -> dict[str, object]:
    folder, preset_name, split, seed, start, stop = job
    preset = PRESETS[preset_name]

    def encoded() -> Iterator[tuple[Sample, str, bytes]]:
        for index in range(start, stop):
            sample = make_sample(preset, split, index, seed)
            buffer = io.BytesIO()
            Image.fromarray(sample.image).save(buffer, "JPEG", quality=92, subsampling=0)
            yield sample, "jpg", buffer.getvalue()

    return write_shard(folder / f"{start // SAMPLES_PER_SHARD:05d}.tar", encoded())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded data set.")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None)
    args = parser.parse_args()
    build(args.out, args.preset, args.seed, args.workers)


if __name__ == "__main__":
    main()
