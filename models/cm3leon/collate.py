"""Collate samples into sequences with placeholders for image tokens, and the images that fill them; runs in the loader's workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data.english import with_article
from data.sample import Object, Sample
from models.cm3leon.retrieval import key_of
from models.cm3leon.sequence import Builder, Kind, Token, random_spans, stack
from models.shared.images import ImageTransform, inside_boxes
from models.shared.text import LONGEST, Tokenizer

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Mix:
    """The documents of pretraining. The paper's always have CM3's random spans. Documents without spans are either drawn (tokens in
    order: text, then picture) or captioned (the whole text is cut out). Tuning makes pictures easier as often."""

    spans: float = 1.0  # share of documents with random spans
    drawn: float = 0.5  # share of the rest whose image is generated from the text
    alone: float = 0.0  # share of images to generate with several objects that are reduced to one: easier to learn
    aligned: bool = False  # shift images to generate with one object by up to half a cell, so that its centre is on the cells' corners
    easier_captions: float = 0.0  # share of captioned pictures that are made easier in the same two ways
    first_caption: float = 0.0  # share of documents that take a picture's first caption instead of any
    documents: tuple[float, ...] = (0.0, 0.0, 1.0)  # shares of batches with 0, 1, 2, ... retrieved documents


@dataclass
class Collate:
    """Common to both stages: pixels uint8 `[B, pictures, 3, S, S]`, `covered` `[B, pictures * cells]` (share of each cell that objects'
    boxes cover), and the sequences of `stack`, all without retrieved documents."""

    transform: ImageTransform
    tokenizer: Tokenizer
    builder: Builder
    side: int  # cells per side of a picture
    mix: Mix

    def text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.builder.frame.text]

    def batch(self, rows: Sequence[Sequence[Token]], pictures: Sequence[Sequence[Sample]]) -> Batch:
        flat = [sample for group in pictures for sample in group]
        pixels = self.transform([sample.image for sample in flat])
        return {
            "pixels": pixels.unflatten(0, (len(rows), -1)),
            "covered": torch.from_numpy(covered(self.transform, flat, self.side)).reshape(len(rows), -1),
            **stack(rows, pad=self.tokenizer.pad),
        }

    def easier(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if len(sample.objects) > 1 and rng.random() < self.mix.alone:
            sample = alone(sample, int(rng.integers(len(sample.objects))), rng) or sample
        return aligned(sample, self.side) if self.mix.aligned and len(sample.objects) == 1 else sample


@dataclass
class DocumentCollate(Collate):
    """Pretraining: documents, rearranged; and to look for other documents with, `query`, the caption's tokens, and `own`, the keys."""

    query_dropout: float = 0.2  # dropout of the query's tokens (RA-CM3)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """Without a generator: first captions, every other document drawn, nothing retrieved."""
        rows, pictures, texts = [], [], []
        for index, sample in enumerate(samples):
            drawn = index % 2 == 1 if rng is None else rng.random() < self.mix.drawn
            spans = rng is not None and rng.random() < self.mix.spans
            if rng is not None and not spans and (drawn or rng.random() < self.mix.easier_captions):
                sample = self.easier(sample, rng)
            text = self.text(self._caption(sample, rng))
            row, picture = self._document(text, rng if spans else None, drawn=drawn), sample
            rows.append(row)
            pictures.append([picture])
            texts.append(text if rng is None else [token for token in text if rng.random() >= self.query_dropout])
        documents = 0 if rng is None else int(rng.choice(len(self.mix.documents), p=self.mix.documents))
        query = torch.full((len(samples), self.builder.frame.text), -1)
        for row, text in zip(query, texts, strict=True):
            row[: len(text)] = torch.tensor(text, dtype=torch.long)
        own = torch.tensor([key_of(sample) for sample in samples])
        return self.batch(rows, pictures) | {"query": query, "own": own, "documents": torch.zeros(len(samples), documents)}

    def _caption(self, sample: Sample, rng: np.random.Generator | None) -> str:
        if not sample.captions:
            return ""
        first = rng is None or rng.random() < self.mix.first_caption
        return sample.captions[0 if first else int(rng.integers(len(sample.captions)))]  # type: ignore[union-attr]

    def _document(self, text: list[int], spans: np.random.Generator | None, *, drawn: bool) -> list[Token]:
        if not text:
            return self.builder.document(text, drawn=Kind.UNCONDITIONAL)
        whole = [(0, len(text))]
        cut = random_spans(len(text), self.builder.frame.cells, spans) if spans else [] if drawn else whole
        return self.builder.document(text, cut, drawn=Kind.UNCONDITIONAL if cut[:1] == whole else Kind.DRAWN)


TASKS = {"question": 0.25, "edit": 0.125, "draw": 0.375, "describe": 0.25}  # shares; drawing is forgotten first


@dataclass
class TaskCollate(Collate):
    """Supervised fine-tuning: question answering, editing, image generation and captioning, as instructions. Images are simplified as often
    as in pretraining; otherwise the model would forget how to draw."""

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """The task of a sample is random; without a generator it depends on its position. Samples that do not allow it get another."""
        rows, pictures = [], []
        for index, sample in enumerate(samples):
            task = list(TASKS)[index % len(TASKS)] if rng is None else str(rng.choice(list(TASKS), p=list(TASKS.values())))
            row, pair = self._task(sample, task, rng or np.random.default_rng(index))
            rows.append(row)
            pictures.append(pair)
        count = len(samples)
        return self.batch(rows, pictures) | {"documents": torch.zeros(count, 0)}

    def _task(self, sample: Sample, task: str, rng: np.random.Generator) -> tuple[list[Token], list[Sample]]:
        """A sequence, and the two pictures that its cells are counted in; a sequence with one picture leaves the second unused."""
        builder = self.builder
        if task == "question" and sample.questions:
            asked = sample.questions[int(rng.integers(len(sample.questions)))]
            return builder.answered(self.text(asked.question), self.text(asked.answer)), [sample, sample]
        if task == "edit" and sample.objects:
            instruction, before, after = edit(sample, rng)
            return builder.edited(self.text(instruction)), [before, after]
        if task == "draw" or rng.random() < self.mix.easier_captions:
            sample = self.easier(sample, rng)
        caption = self.text(sample.captions[int(rng.integers(len(sample.captions)))] if sample.captions else "")
        if task == "draw" or not caption:
            return builder.document(caption), [sample, sample]
        if rng.random() < 0.5:
            return builder.answered(self.text(INSTRUCTION), caption), [sample, sample]
        return builder.document(caption, [(0, len(caption))], drawn=Kind.UNCONDITIONAL), [sample, sample]


INSTRUCTION = "describe this picture"


def covered(transform: ImageTransform, samples: Sequence[Sample], side: int) -> np.ndarray:
    """Share of each cell that the boxes of a sample's objects cover, float32 `[N, side * side]`."""
    inside = transform(inside_boxes(samples))[:, 0].numpy() > 127
    cell = transform.size // side
    return inside.reshape(len(samples), side, cell, side, cell).mean(axis=(2, 4), dtype=np.float32).reshape(len(samples), -1)


def edit(sample: Sample, rng: np.random.Generator) -> tuple[str, Sample, Sample]:
    """An instruction to remove or add an object, the picture before and the picture after."""
    index = int(rng.integers(len(sample.objects)))
    rest = without(sample, [index], rng)
    name = named(sample.objects[index])
    return (f"remove the {name}", sample, rest) if rng.random() < 0.5 else (f"add {with_article(name)}", rest, sample)


def named(thing: Object) -> str:
    """An object with all that is known about its looks: "large solid red star"."""
    return " ".join([*(thing.attributes[key] for key in ("size", "fill", "colour") if key in thing.attributes), thing.name])


def alone(sample: Sample, index: int, rng: np.random.Generator) -> Sample | None:
    """A sample with only one of its objects and a caption for it; None if another object's box overlaps its own."""
    left, top, right, bottom = sample.objects[index].box
    others = [i for i in range(len(sample.objects)) if i != index]
    for other in others:
        x0, y0, x1, y1 = sample.objects[other].box
        if x0 < right and left < x1 and y0 < bottom and top < y1:
            return None
    name = named(sample.objects[index])
    return replace(without(sample, others, rng), captions=(with_article(name),))


def without(sample: Sample, removed: Sequence[int], rng: np.random.Generator) -> Sample:
    """A sample with some objects painted over by the colour gradient that best fits the pixels outside all boxes, with similar noise."""
    outside = np.ones(sample.image.shape[:2], np.float32)
    for thing in sample.objects:
        outside[_inside(thing)] = 0
    pixels, plane = sample.image.reshape(-1, 3).astype(np.float32), _plane(*outside.shape)
    weighted = plane.T * outside.reshape(-1)
    visible = np.flatnonzero(outside)
    if not len(visible):
        return sample
    # Least squares [3, channels] about the mean colour; if all visible pixels lie on a line, only the mean is extrapolated.
    shades = pixels - weighted[0] @ pixels / len(visible)
    gradient = np.linalg.solve(weighted @ plane + 1e-3 * np.eye(3, dtype=np.float32), weighted @ shades)
    image = sample.image.copy()
    for index in removed:
        box = _inside(sample.objects[index])
        painted = plane.reshape(*outside.shape, 3)[box] @ gradient
        grainy = visible[rng.integers(len(visible), size=painted.shape[:2])]
        image[box] = np.clip(np.rint(painted + pixels[grainy] - plane[grainy] @ gradient), 0, 255)
    return replace(sample, image=image, objects=tuple(thing for i, thing in enumerate(sample.objects) if i not in removed))


@lru_cache(maxsize=4)
def _plane(height: int, width: int) -> np.ndarray:
    """1, x and y of each pixel, between -1 and 1, float32 `[height * width, 3]`."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3).astype(np.float32)


def _inside(thing: Object) -> tuple[slice, slice]:
    left, top, right, bottom = thing.box
    return slice(max(0, math.floor(top)), math.ceil(bottom)), slice(max(0, math.floor(left)), math.ceil(right))


def aligned(sample: Sample, side: int) -> Sample:
    """A sample of one object, shifted by the fewest pixels that put the object's centre on a corner between cells and leave it
    whole; the edges are continued."""
    height, width = sample.image.shape[:2]
    left, top, right, bottom = sample.objects[0].box
    dx, dy = _shift(left, right, width, side), _shift(top, bottom, height, side)
    rows, columns = np.arange(height) - dy, np.arange(width) - dx
    image = sample.image.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")
    thing = Object(sample.objects[0].name, (left + dx, top + dy, right + dx, bottom + dy), sample.objects[0].attributes)
    return replace(sample, image=image, objects=(thing,))


def _shift(low: float, high: float, size: int, side: int) -> int:
    cell = size / side
    centre = (low + high) / 2
    shifts = [round(corner * cell - centre) for corner in range(side + 1)]
    # An object at the edge stays: continuing the edge would continue the object.
    whole = [shift for shift in shifts if low + min(shift, 0) >= 0 and high + max(shift, 0) <= size and (shift <= 0 or low > 0)]
    whole = [shift for shift in whole if shift >= 0 or high < size]
    return min(whole or [0], key=abs)
