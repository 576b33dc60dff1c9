"""Measure reconstruction by masked models: `python -m recipes.claims.measures.masked .runs/maskvlm-tiny-s0 [--data .data/scenes-tiny]`.

Text: the share of masked caption tokens that the model predicts correctly, given the correct image, another image and a blank image.
Images: the mean absolute error of reconstructed patches, with pixel values between 0 and 1, inside object boxes and everywhere; given the
caption, another caption and no caption, and for a trivial baseline, the median colour of the visible patches. Results are written to
masked.json in the run folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table

import models
from data.files import read_json, write_json
from data.sample import Sample
from eval.base.console import plain_console
from eval.harness.controls import exchanged
from eval.harness.source import from_shards
from models.contract import IGNORE_INDEX
from models.shared.device import resolve_device
from models.shared.images import ImageTransform, inside_boxes
from recipes.claims.claim import Measured
from recipes.train.recipe import AnyRecipe

PICTURES = 500
BATCH = 100

Shown = Literal["own", "another", "blank"]
Help = Literal["own caption", "another caption", "no text", "visible median"]
Where = Literal["objects", "everywhere"]


def words_found(shown: Shown = "own") -> Measured:
    """For each image, the share of masked tokens that the model predicts correctly."""

    def found(model: Any, samples: Sequence[Sample]) -> dict[str, float]:
        images = [sample.image for sample in samples]
        if shown == "another":
            images = [images[other] for other in exchanged(samples)]
        if shown == "blank":
            images = [np.full_like(image, 127) for image in images]
        masking = replace(model.collate.masking, mask_share=1.0, random_share=0.0)  # every selected token is replaced by the mask token
        right: dict[str, float] = {}
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            _, masked, labels = masking(
                model.tokenizer,
                [sample.captions[0] for sample in part],
                model.config.context,
                mask=model.collate.mask,
                rng=np.random.default_rng(start),
            )
            said = model.words(images[start : start + BATCH], masked).argmax(dim=-1).cpu()
            asked = labels != IGNORE_INDEX
            shares = ((said == labels) & asked).sum(dim=1) / asked.sum(dim=1)
            right |= {sample.key: share for sample, share in zip(part, shares.tolist(), strict=True)}
        return right

    return _measured(f"hidden words found, {shown} picture", found)


def filled_in(where: Where = "objects", help: Help = "own caption") -> Measured:
    """For each image with masked pixels, their mean absolute error, with values between 0 and 1."""

    def error(model: Any, samples: Sequence[Sample]) -> dict[str, float]:
        texts = [sample.captions[0] for sample in samples]
        if help == "another caption":
            texts = [texts[other] for other in exchanged(samples)]
        if help == "no text":
            texts = [""] * len(samples)
        found: dict[str, float] = {}
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            filled = model.unmask([sample.image for sample in part], texts[start : start + BATCH], seed=start)
            sized = ImageTransform(len(filled[0][0]))
            truths = sized([sample.image for sample in part]).permute(0, 2, 3, 1).numpy() / 255
            boxes = sized(inside_boxes(part)).permute(0, 2, 3, 1).numpy()[..., 0] > 127
            for sample, truth, box, (masked, guess) in zip(part, truths, boxes, filled, strict=True):
                hidden = np.abs(masked / 255 - truth).max(axis=-1) > 1.5 / 255  # visible pixels are returned except for rounding
                answer = np.broadcast_to(np.median(truth[~hidden], axis=0), truth.shape) if help == "visible median" else guess / 255
                asked = hidden & box if where == "objects" else hidden
                if asked.any() and not hidden.all():
                    found[sample.key] = float(np.abs(answer - truth)[asked].mean())
        return found

    return _measured(f"error of hidden pixels, {where}, {help}", error)


def _measured(name: str, function: Callable[[Any, Sequence[Sample]], dict[str, float]]) -> Measured:
    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        return function(model, pictures(recipe.data))

    return Measured(f"{name}, test", measure)


@cache
def pictures(data: str) -> list[Sample]:
    """The first test images."""
    return from_shards(data).samples("test")[:PICTURES]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure reconstruction by masked models", prog="recipes.claims.measures.masked")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    described = read_json(args.run / "recipe.json")
    asked: Any = argparse.Namespace(data=args.data or described["data"], device=args.device)
    shown: tuple[Shown, ...] = ("own", "another", "blank")
    helps: tuple[Help, ...] = ("own caption", "another caption", "no text", "visible median")
    places: tuple[Where, ...] = ("objects", "everywhere")
    measures = [words_found(each) for each in shown] + [filled_in(where, each) for where in places for each in helps]
    found = {each.about: float(np.mean(list(_values(each, args.run, asked).values()))) for each in measures}
    write_json(args.run / "masked.json", {"data": asked.data, "pictures": PICTURES, "measures": found})
    table = Table("measure", "value", title=f"{args.run.name} on {asked.data}")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    plain_console().print(table)


@torch.no_grad()
def _values(measure: Measured, folder: Path, recipe: Any) -> dict[str, float]:
    values = measure.function(folder, recipe)
    assert isinstance(values, dict)
    return values


if __name__ == "__main__":
    main()
