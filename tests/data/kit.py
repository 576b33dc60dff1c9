"""Tiny data sets for the tests, and collate functions that show what a loader delivered."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.sample import Sample
from data.shards import write_index, write_shard


def picture(number: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), (number * 7 % 256, number * 11 % 256, 128), np.uint8)


def encode(image: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def make_split(folder: Path, sizes: list[int], *, split: str = "train", index: bool = True) -> Path:
    """A data set with one split of `len(sizes)` shards; keys are running numbers. Returns its folder."""
    first = 0
    entries = []
    for shard, size in enumerate(sizes):
        samples = [Sample(f"{n:06d}", picture(n), captions=(f"picture {n}", f"image {n}")) for n in range(first, first + size)]
        entries.append(write_shard(folder / split / f"{shard:05d}.tar", ((s, "png", encode(s.image)) for s in samples)))
        first += size
    if index:
        write_index(folder / split, name=folder.name, split=split, shards=entries)
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def good_members(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    image = encode(picture(1))
    return [
        member
        for n in range(start, start + count)
        for member in ((f"{n:06d}.png", image), (f"{n:06d}.txt", b"a picture"), (f"{n:06d}.json", b"{}"))
    ]


def collate_keys(samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The keys (numbers), one random draw and the first pixel of each image."""
    return {
        "keys": torch.tensor([int(sample.key) for sample in samples]),
        "draw": torch.tensor(rng.random()),
        "pixel": torch.tensor([int(sample.image[0, 0, 0]) for sample in samples]),
    }


def collate_broken(samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    raise RuntimeError("collate is broken")
