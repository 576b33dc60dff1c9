"""Batches from the same shards with the same crops and the same tokenizer, once both loaders are under way: reading the set into memory
is not counted. open_clip's pipeline is the webdataset stages of its `get_wds_dataset` for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import open_clip
import webdataset as wds
from torch import Tensor

from data.loader import Loader
from data.shards import Split
from models.shared.collate import PairCollate
from models.shared.images import ImageTransform
from models.shared.text import OpenCLIPTokenizer
from recipes.bench.ratios import Bench, Row, Setting, interleaved, row_of

CROP = 0.9  # smallest share of the side (ours) and of the area (open_clip's default) that a random crop keeps


def loader(bench: Bench) -> list[Row]:
    setting, split, workers = bench.setting, bench.split, bench.workers
    tokenizer = OpenCLIPTokenizer()
    collate = PairCollate(ImageTransform(setting.image, CROP), tokenizer, 77)
    memory = "default: in memory, no workers"
    streaming = f"streaming, {workers} workers"
    reference = f"open_clip get_wds_dataset, {workers} workers"
    batches: dict[str, Iterator[Any]] = {
        memory: iter(Loader(split, batch_size=setting.loader_batch, collate=collate)),
        streaming: iter(Loader(split, batch_size=setting.loader_batch, collate=collate, workers=workers, memory_budget=0)),
        reference: _open_clip_batches(setting, split, workers),
    }

    def take(source: Iterator[Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(setting.loader_batches):
                next(source)

        return run

    timed = interleaved({name: take(source) for name, source in batches.items()}, setting.repeats)
    samples = setting.loader_batch * setting.loader_batches
    shapes = f"{split.name}, {setting.image} px, random crops, batch {setting.loader_batch}"
    return [row_of("loader", mine, reference, shapes, timed, samples, alike) for mine, alike in ((memory, ""), (streaming, "fp32"))]


def _open_clip_batches(setting: Setting, split: Split, workers: int) -> Iterator[Any]:
    """Epoch after epoch, with its buffer sizes and its transform for training."""
    transform = open_clip.image_transform(setting.image, is_train=True, aug_cfg={"scale": (CROP, 1.0)})
    dataset = wds.DataPipeline(
        wds.SimpleShardList(list(split.urls)),
        wds.detshuffle(bufsize=2000, initial=500, seed=0),
        wds.split_by_node,
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=5000, initial=1000),
        wds.select(_complete),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=transform, text=_tokenize),
        wds.to_tuple("image", "text"),
        wds.batched(setting.loader_batch, partial=False),
    )
    batches = wds.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from batches


def _complete(sample: dict[str, Any]) -> bool:
    return "txt" in sample and bool({"png", "jpg", "jpeg", "webp"} & sample.keys())


def _tokenize(text: str) -> Tensor:
    return open_clip.tokenize(text)[0]


BENCHES = {"loader": loader}
