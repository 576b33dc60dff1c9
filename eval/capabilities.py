"""What a model can do, and the adapters that turn one capability into what a task asks for.

A model has capabilities by having these methods; it does not import this file. Images are sequences of uint8 arrays
`[height, width, 3]` of any size, texts sequences of strings. A task asks for `Features` or a `Scorer`; `adapt` finds the
adapter for a model, and each cell of a result records which one made it. Adapters remember an image by the identity of
its array, so the same array must not be overwritten between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Images = Sequence[np.ndarray]
Texts = Sequence[str]


@runtime_checkable
class EncodesImages(Protocol):
    def encode_image(self, images: Images) -> Tensor:
        """L2-normalised float32 `[N, D]`."""


@runtime_checkable
class EncodesText(Protocol):
    def encode_text(self, texts: Texts) -> Tensor:
        """L2-normalised float32 `[N, D]`."""


@runtime_checkable
class ScoresPairs(Protocol):
    def score(self, images: Images, texts: Texts) -> Tensor:
        """`[N]`: how well the i-th text fits the i-th image, larger is better."""


@runtime_checkable
class Captions(Protocol):
    def caption(self, images: Images) -> list[str]: ...


@runtime_checkable
class Answers(Protocol):
    def answer(self, images: Images, questions: Texts) -> list[str]: ...


@runtime_checkable
class Draws(Protocol):
    def draw(self, texts: Texts) -> list[np.ndarray]: ...


@runtime_checkable
class Features(Protocol):
    """Needed by tasks that train on frozen image features."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def features(self, images: Images) -> np.ndarray:
        """float32 `[N, D]`."""


@runtime_checkable
class Scorer(Protocol):
    """Needed by every task that compares images with texts. No score is ever NaN."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None:
        """Do the costly work for these images and texts now, in this order: scores then do not depend, not even in
        their last bit, on which part of a task is asked first or was answered before an interruption."""

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[N, T]`: every image with every text."""

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[N]`: the i-th image with the i-th text."""

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """float32 `[N, C]` logits: softmax over C gives the probability of each class, described by its prompts."""


def adapt(model: Any, batch_size: int = 256) -> Features | Scorer | None:
    """The adapter for what `model` can do; embeddings first, since they make a gallery cheap. None: it can do neither."""
    if isinstance(model, EncodesImages) and isinstance(model, EncodesText):
        return EmbeddingScorer(model, batch_size)
    if isinstance(model, ScoresPairs):
        return PairScorer(model.score, "pairwise score", batch_size)
    if isinstance(model, EncodesImages):
        return ImageFeatures(model, batch_size)
    return None


class ImageFeatures:
    """Image embeddings, each computed once."""

    adapter = "image features"

    def __init__(self, model: Any, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size
        self._images: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # id -> (array, embedding): holding the array keeps its id unique

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.features(images)

    def features(self, images: Images) -> np.ndarray:
        missing = list({id(image): image for image in images if id(image) not in self._images}.values())
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            for image, row in zip(chunk, _numbers(self.model.encode_image(chunk), "encode_image", len(chunk)), strict=True):
                self._images[id(image)] = (image, row)
        return np.stack([self._images[id(image)][1] for image in images])


class EmbeddingScorer(ImageFeatures):
    """Cosine similarity of image and text embeddings.

    Products are summed in float64 and rounded to float32: equal embeddings then tie exactly, and scores do not depend on
    the batch size, whatever blocks the matrix product is cut into.
    """

    adapter = "embedding similarity"

    def __init__(self, model: Any, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        scale = getattr(model, "logit_scale", None)
        self.scale = 1.0 if scale is None else math.exp(torch.as_tensor(scale).item())
        self._texts: dict[str, np.ndarray] = {}
        self._prepared: list[str] = []

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.features(images)
        if list(texts) != self._prepared:
            self._texts, self._prepared = {}, list(texts)
            if texts:
                self._embed(texts)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        return _similarity(self.features(images), self._embed(texts))

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        products = self.features(images).astype(np.float64) * self._embed(texts)
        return products.sum(axis=1).astype(np.float32)

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """A class is the mean of its prompts' embeddings, normalised before and after (CLIP, section 3.1.4)."""
        centres = np.stack([_normalised(_normalised(self._embed(texts)).mean(axis=0)) for texts in prompts])
        return np.float32(self.scale) * _similarity(self.features(images), centres)

    def _embed(self, texts: Texts) -> np.ndarray:
        missing = list(dict.fromkeys(text for text in texts if text not in self._texts))
        missing.sort(key=len)  # texts of like length share a batch: half the padding
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            self._texts.update(zip(chunk, _numbers(self.model.encode_text(chunk), "encode_text", len(chunk)), strict=True))
        return np.stack([self._texts[text] for text in texts])


class PairScorer:
    """Any function that scores image-text pairs; each pair that was prepared for is scored once."""

    def __init__(self, score: Callable[[Images, Texts], Any], adapter: str, batch_size: int = 256) -> None:
        self.score, self.adapter, self.batch_size = score, adapter, batch_size
        self.prepare((), ())

    def prepare(self, images: Images, texts: Texts) -> None:
        self._images = list(images)  # held, so that their ids stay unique
        self._rows = {id(image): row for row, image in enumerate(self._images)}
        self._columns = {text: column for column, text in enumerate(dict.fromkeys(texts))}
        self._known = np.full((len(self._rows), len(self._columns)), np.nan, np.float32)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        if not all(id(image) in self._rows for image in images) or not all(text in self._columns for text in texts):
            self.prepare(images, texts)
        rows, columns = [self._rows[id(image)] for image in images], [self._columns[text] for text in texts]
        missing = np.argwhere(np.isnan(self._known[np.ix_(rows, columns)]))
        found = self.pairs([images[i] for i, _ in missing], [texts[j] for _, j in missing])
        for (i, j), value in zip(missing, found, strict=True):
            self._known[rows[i], columns[j]] = value
        return self._known[np.ix_(rows, columns)]

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        found = np.empty(len(texts), np.float32)
        for start in range(0, len(texts), self.batch_size):
            stop = min(start + self.batch_size, len(texts))
            found[start:stop] = _numbers(self.score(images[start:stop], texts[start:stop]), "score", stop - start)
        return found

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """A class's logit is the mean score of its prompts."""
        flat = self.matrix(images, [text for texts in prompts for text in texts])
        ends = np.cumsum([len(texts) for texts in prompts])
        return np.stack([part.mean(axis=1) for part in np.split(flat, ends[:-1], axis=1)], axis=1)


def _similarity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    return (images.astype(np.float64) @ texts.astype(np.float64).T).astype(np.float32)


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _numbers(output: Any, method: str, expected: int) -> np.ndarray:
    """A model's output as float32 rows. A NaN would lose every comparison and win every rank: refuse it here."""
    rows = torch.as_tensor(output).detach().float().cpu().numpy()
    if len(rows) != expected:
        raise ValueError(f"{method} returned {len(rows)} rows for {expected} inputs")
    if np.isnan(rows).any():
        bad = int(np.isnan(rows.reshape(len(rows), -1)).any(axis=1).sum())
        raise ValueError(f"{method} returned NaN for {bad} of {len(rows)} inputs: the weights may have diverged, look at train.jsonl")
    return rows
