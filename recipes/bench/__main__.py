"""Speed against the reference libraries, as ratios: `python -m recipes.bench` (= `make bench`).

Both sides run in this process, in turn, on the same hardware at the same time: other load hits both. Each ratio is the
median over repetitions of theirs / ours within one repetition, with its range.

    clip step    the same plain-patch CLIP with the same weights: forward, loss, backward, AdamW. open_clip's step gets pixels
                 that are normalised already and texts of 77 tokens, as its loader gives them; ours normalises inside the step
                 and by default cuts texts to the longest of the batch, which changes no feature.
    siglip step  the same against transformers.
    flava step   FLAVA's against transformers' FlavaForPreTraining with the same weights: pairs, with all losses that pairs have.
    captioning   CoCa's text decoder against transformers' GPT-2 with the same weights: the captions of a batch, greedy and by
                 beam search, with caches on both sides. Ours goes on without the captions that have ended.
    prefix       Frozen's, BLIP-2's and MiniGPT-4's texts against transformers' `generate` with the same weights: Frozen's from its vectors
                 on, the others' from pixels on against Blip2ForConditionalGeneration.
    drawing      CM3leon's decoder against transformers' OPT with the same weights: 64 image tokens after prompts of several lengths,
                 sampled with caches on both sides, in fp32 and bf16, without guidance and with.
    guidance     MAGIC's search against one gradient step a token through the same language model, as ZeroCap is guided.
    anchors      ASIF's scores of every image with every text, from vectors on, against the plain dense computation in torch.
    loader       batches from the same shards with the same crops and the same tokenizer, once both are under way: reading
                 the set into memory is not counted. open_clip's pipeline is the webdataset stages of its `get_wds_dataset`
                 for training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
import webdataset as wds
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from data.loader import Loader
from data.shards import DataError, Split, find
from eval.base.provenance import provenance
from models.clip import CLIP
from models.clip.convert import config_from_open_clip, from_open_clip
from models.shared.collate import PairCollate
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import OpenCLIPTokenizer
from models.siglip import SigLIP
from models.siglip.convert import config_from_transformers, from_transformers
from recipes.bench.anchors import anchored
from recipes.bench.captions import captioning
from recipes.bench.drawing import drawing
from recipes.bench.magic import guidance
from recipes.bench.masked import masked_step
from recipes.bench.prefix import prefixed
from recipes.bench.ratios import Row, interleaved, row_of
from recipes.train.distributed import Process, hardware
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim
from recipes.train.step import backward

OPTIM = Optim(lr=1e-4)
CROP = 0.9  # smallest share of the side (ours) and of the area (open_clip's default) that a random crop keeps


@dataclass(frozen=True)
class Setting:
    """Sizes of one benchmark: image and text towers of `width` and `depth`, 64 px in patches of 8."""

    width: int = 256
    depth: int = 6
    batch: int = 32
    draw_batch: int = 64
    draw_depth: int = 4  # the tiny CM3leon's
    anchors: int = 5_000
    loader_batch: int = 128
    loader_batches: int = 30
    image: int = 64
    repeats: int = 7


QUICK = Setting(width=128, depth=2, batch=16, draw_depth=2, loader_batches=8, repeats=3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed against open_clip and transformers, as ratios")
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--workers", type=int, default=2, help="of the streaming loaders, theirs and ours")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repetitions: seconds, rough figures")
    parser.add_argument("--only", help="some of clip, siglip, captioning, masked, prefix, drawing, guidance, anchors, loader")
    parser.add_argument("--out", type=Path, default=Path(".runs/bench.json"))
    args = parser.parse_args()
    setting = QUICK if args.quick else Setting()
    repeats = args.repeats or setting.repeats
    try:
        split = find(args.data, "train")
    except (DataError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    process = Process.find(args.device)
    benches: dict[str, Callable[[], list[Row]]] = {
        "clip": lambda: clip_step(setting, split, process, repeats),
        "siglip": lambda: siglip_step(setting, split, process, repeats),
        "captioning": lambda: captioning(split, setting.draw_batch, process, repeats),
        "masked": lambda: masked_step(setting.width, setting.depth, setting.batch, process, repeats),
        "prefix": lambda: prefixed(split, setting.draw_batch, process, repeats),
        "drawing": lambda: drawing(setting.draw_depth, setting.draw_batch, process, repeats),
        "guidance": lambda: guidance(split, process, repeats),
        "anchors": lambda: anchored(setting.anchors, setting.batch, process, repeats),
        "loader": lambda: loader(setting, split, args.workers, repeats),
    }
    chosen = args.only.split(",") if args.only else list(benches)
    if unknown := [name for name in chosen if name not in benches]:
        sys.exit(f"error: --only {unknown[0]}: no such benchmark; there are {', '.join(benches)}")
    rows = [row for name in chosen for row in benches[name]()]
    _print(rows, process)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"hardware": hardware(process.device), "setting": asdict(setting), "repeats": repeats, "data": split.name}
    known = provenance()
    known["versions"] |= {"webdataset": version("webdataset")}
    args.out.write_text(json.dumps(about | known | {"rows": [asdict(row) for row in rows]}, indent=1))


# --------------------------------------------------------------------------------------------------- train step


def clip_step(setting: Setting, split: Split, process: Process, repeats: int) -> list[Row]:
    cfg = {
        "embed_dim": setting.width,
        "vision_cfg": {"image_size": setting.image, "patch_size": 8, "layers": setting.depth, "width": setting.width},
        "text_cfg": {
            "vocab_size": 49408,
            "context_length": 77,
            "layers": setting.depth,
            "width": setting.width,
            "heads": setting.width // 64,
        },
    }
    torch.manual_seed(0)
    weights = open_clip.CLIP(**cfg).state_dict()
    batch, full = _batch(setting, split, process, context=77)
    pixels = normalise(batch["pixels"], OPENAI_MEAN, OPENAI_STD)

    def ours(ids: Tensor, precision: str) -> Callable[[], float]:
        model = CLIP(config_from_open_clip(cfg), OpenCLIPTokenizer()).to(process.device)
        model.load_state_dict(from_open_clip(weights))
        return _our_step(model, batch | {"ids": ids}, process, precision)

    def theirs(precision: str) -> Callable[[], float]:
        model = open_clip.CLIP(**cfg).to(process.device)
        model.load_state_dict(weights)
        objective = ClipLoss()
        return _their_step(model, lambda: objective(*model(pixels, full)), process, precision)

    steps = {
        "fp32, 77 tokens": ours(full, "fp32"),
        "bf16, 77 tokens": ours(full, "bf16"),
        f"defaults: {_default(process)}, {batch['ids'].shape[1]} tokens": ours(batch["ids"], "auto"),
        "open_clip fp32": theirs("fp32"),
        "open_clip amp_bf16": theirs("bf16"),
    }
    our_fp32, our_bf16, default, fp32, bf16 = steps
    pairs = [(our_fp32, fp32, "fp32"), (our_bf16, bf16, "bf16"), (default, fp32, ""), (default, bf16, "")]
    return _step_rows("clip step", steps, pairs, setting, repeats)


def siglip_step(setting: Setting, split: Split, process: Process, repeats: int) -> list[Row]:
    """Against transformers, whose SigLIP can be built in any size. Texts always have 64 tokens: SigLIP reads the last one."""
    layers = {"num_hidden_layers": setting.depth, "hidden_size": setting.width, "num_attention_heads": setting.width // 64}
    sizes = {**layers, "intermediate_size": 4 * setting.width}
    config = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": setting.image, "patch_size": 8},
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 64, "projection_size": setting.width},
    )
    torch.manual_seed(0)
    weights = transformers.SiglipModel(config).state_dict()
    batch, full = _batch(setting, split, process, context=64)
    pixels = normalise(batch["pixels"], HALF, HALF)

    def ours(precision: str) -> Callable[[], float]:
        model = SigLIP(config_from_transformers(config), OpenCLIPTokenizer()).to(process.device)
        model.load_state_dict(from_transformers(weights))
        return _our_step(model, batch | {"ids": full}, process, precision)

    def theirs(precision: str) -> Callable[[], float]:
        model = transformers.SiglipModel(config).to(process.device).train()
        model.load_state_dict(weights)
        return _their_step(model, lambda: model(input_ids=full, pixel_values=pixels, return_loss=True).loss, process, precision)

    steps = {
        "fp32, 64 tokens": ours("fp32"),
        "bf16, 64 tokens": ours("bf16"),
        "transformers fp32": theirs("fp32"),
        "transformers bf16 autocast": theirs("bf16"),
    }
    our_fp32, our_bf16, fp32, bf16 = steps
    return _step_rows("siglip step", steps, [(our_fp32, fp32, "fp32"), (our_bf16, bf16, "bf16")], setting, repeats)


def _our_step(model: CLIP | SigLIP, batch: dict[str, Tensor], process: Process, precision: str) -> Callable[[], float]:
    autocast = process.autocast(precision)
    return _optimised(model, lambda: backward(model, batch, micro_batch=None, autocast=autocast).total, process)


def _their_step(model: nn.Module, loss: Callable[[], Tensor], process: Process, precision: str) -> Callable[[], float]:
    autocast = process.autocast(precision)

    def run() -> Tensor:
        with autocast:
            value = loss()
        value.backward()
        return value

    return _optimised(model, run, process)


def _optimised(model: nn.Module, run: Callable[[], Tensor], process: Process) -> Callable[[], float]:
    """One step: gradients by `run`, AdamW, and the logit scale kept in its range."""
    optimizer = optimiser(model, OPTIM, fused=process.device.type == "cuda")

    def step() -> float:
        loss = run()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # type: ignore[operator]
        return loss.item()  # waits for the device

    return step


def _step_rows(
    what: str, steps: dict[str, Callable[[], float]], pairs: list[tuple[str, str, str]], setting: Setting, repeats: int
) -> list[Row]:
    losses = {name: step() for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 0.05:
        raise RuntimeError(
            f"the same weights and samples should give the same loss, but gave {losses}: this compares different computations"
        )
    seconds = interleaved(steps, repeats)
    towers = f"{setting.width} x {setting.depth}"
    shapes = f"ViT {towers}, {setting.image} px / 8; text {towers}; batch {setting.batch}"
    return [row_of(what, ours, theirs, shapes, seconds, setting.batch, alike) for ours, theirs, alike in pairs]


def _default(process: Process) -> str:
    return "fp32" if isinstance(process.autocast("auto"), contextlib.nullcontext) else "bf16"


def _batch(setting: Setting, split: Split, process: Process, *, context: int) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of the data set as our loader gives it, and its texts at full length."""
    tokenizer = OpenCLIPTokenizer()
    collate = PairCollate(ImageTransform(setting.image), tokenizer, context)
    batch = next(iter(Loader(split, batch_size=setting.batch, collate=collate, memory_budget=0)))
    full = torch.full((setting.batch, context), tokenizer.pad)
    full[:, : batch["ids"].shape[1]] = batch["ids"]
    return {name: rows.to(process.device) for name, rows in batch.items()}, full.to(process.device)


# ------------------------------------------------------------------------------------------------------- loader


def loader(setting: Setting, split: Split, workers: int, repeats: int) -> list[Row]:
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

    seconds = interleaved({name: take(source) for name, source in batches.items()}, repeats)
    samples = setting.loader_batch * setting.loader_batches
    shapes = f"{split.name}, {setting.image} px, random crops, batch {setting.loader_batch}"
    return [row_of("loader", mine, reference, shapes, seconds, samples, alike) for mine, alike in ((memory, ""), (streaming, "fp32"))]


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


def _print(rows: list[Row], process: Process) -> None:
    table = Table(title=f"samples/s, median of {len(rows[0].ratios)} interleaved repetitions, {hardware(process.device)}")
    table.caption = "\n".join(f"{row.what}: {row.shapes}" for row in {row.what: row for row in rows}.values())
    for column in ("", "ours", "samples/s", "theirs", "samples/s", "times faster (range)"):
        table.add_column(column)
    for row in rows:
        mine, other = (f"{statistics.median(rates):,.0f}" for rates in (row.our_rates, row.their_rates))
        ratio = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f} - {max(row.ratios):.2f})"
        table.add_row(row.what, row.ours, mine, row.theirs, other, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
