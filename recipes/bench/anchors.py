"""Scores per second of ASIF against the plain dense computation in torch; rows of `make bench`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.asif import ASIFConfig
from models.asif.relative import products, relative
from recipes.bench.ratios import Bench, Row, interleaved, row_of
from recipes.train.distributed import Process

CONFIG = ASIFConfig.tiny()
WIDTHS = 160, 192  # of image and text vectors
TEXTS = 432


def anchored(bench: Bench) -> list[Row]:
    """From vectors to the score of every image with every text, with few anchors and with ten times as many.

    The dense side holds all n similarities of everything at once and leaves ties to chance; ours compares anchors in chunks, whose size
    changes no bit. Both must come to the same scores.
    """
    anchors, images, process, repeats = bench.setting.anchors, bench.setting.batch, bench.process, bench.setting.repeats
    return [_row(count, images, process, repeats) for count in (anchors, 10 * anchors)]


def _row(count: int, images: int, process: Process, repeats: int) -> Row:
    generator = torch.Generator().manual_seed(0)

    def vectors(rows: int, width: int) -> Tensor:
        return F.normalize(torch.randn(rows, width, generator=generator), dim=1).to(process.device)

    seen, told = ((vectors(rows, width), vectors(count, width)) for rows, width in zip((images, TEXTS), WIDTHS, strict=True))
    ours, theirs = f"relative, {count:,} anchors", "dense torch"
    contestants: dict[str, Callable[[], Tensor]] = {ours: lambda: _ours(*seen, *told), theirs: lambda: _dense(*seen, *told)}
    mine, other = (run() for run in contestants.values())
    if not torch.allclose(mine, other, atol=1e-4):
        raise RuntimeError(f"the same anchors should give the same scores, but differ by {(mine - other).abs().max():.2g}")
    shapes = f"{images} images x {TEXTS} texts, k = {CONFIG.k}, p = {CONFIG.p:g}"
    return row_of("anchors", ours, theirs, shapes, interleaved(contestants, repeats), images, "fp32")


def _ours(images: Tensor, image_anchors: Tensor, texts: Tensor, text_anchors: Tensor) -> Tensor:
    seen = relative(images, image_anchors, k=CONFIG.k, p=CONFIG.p)
    return products(seen, relative(texts, text_anchors, k=CONFIG.k, p=CONFIG.p), len(image_anchors))


def _dense(images: Tensor, image_anchors: Tensor, texts: Tensor, text_anchors: Tensor) -> Tensor:
    return _described(images, image_anchors) @ _described(texts, text_anchors).T


def _described(x: Tensor, anchors: Tensor) -> Tensor:
    similarity = x @ anchors.T
    top = similarity.topk(min(CONFIG.k, len(anchors)))
    return F.normalize(torch.zeros_like(similarity).scatter(1, top.indices, top.values.clamp(min=0) ** CONFIG.p), dim=1)


BENCHES = {"anchors": anchored}
