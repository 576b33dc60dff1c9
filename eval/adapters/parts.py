"""Models that compare pictures and texts by what each of them has alone (Llip): the costly half is done once for each picture and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.base.capabilities import ComparesParts, Images, Texts

IMAGES = 64  # compared at once


class PartScorer:
    """Scores by `compare`, of parts that are encoded once for all tasks.

    A class is described by the mean of its prompts' parts (CLIP, section 3.1.4).
    """

    queries: int | None = None  # all captions of an image are cheap

    def __init__(self, model: ComparesParts, batch_size: int = 256) -> None:
        self.model, self.adapter, self.batch_size = model, model.score_kind, batch_size
        self._images: dict[int, tuple[np.ndarray, Tensor]] = {}  # id -> (array, parts): holding the array keeps its id unique
        self._texts: dict[str, Tensor] = {}
        self._prepared: list[str] = []

    def prepare(self, images: Images, texts: Texts) -> None:
        self._pictures(images)
        if list(texts) != self._prepared:
            self._texts, self._prepared = {}, list(texts)
            self._read(texts)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        return self._compared(self._pictures(images), self._read(texts))

    def by_text(self, images: Images, texts: Texts) -> np.ndarray:
        return self.matrix(images, texts).T

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        """A picture is compared with all of its texts at once."""
        pictures, read = self._pictures(images), self._read(texts)
        rows: dict[int, list[int]] = {}
        for row, image in enumerate(images):
            rows.setdefault(id(image), []).append(row)
        found = np.empty(len(images), np.float32)
        for own in rows.values():
            found[own] = self._compared(pictures[own[:1]], read[own])[0]
        return found

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        return self._compared(self._pictures(images), torch.stack([self._read(texts).mean(dim=0) for texts in prompts]))

    def _compared(self, images: Tensor, texts: Tensor) -> np.ndarray:
        rows = [self.model.compare(part, texts) for part in images.split(IMAGES)]
        found = torch.cat(rows).float().cpu().numpy()
        if np.isnan(found).any():
            raise ValueError("compare returned NaN: the weights may have diverged, look at train.jsonl")
        return found

    def _pictures(self, images: Images) -> Tensor:
        missing = list({id(image): image for image in images if id(image) not in self._images}.values())
        for chunk, parts in _encoded(missing, self.model.image_parts, self.batch_size):
            self._images.update({id(image): (image, part) for image, part in zip(chunk, parts, strict=True)})
        return torch.stack([self._images[id(image)][1] for image in images])

    def _read(self, texts: Texts) -> Tensor:
        missing = sorted({text for text in texts if text not in self._texts}, key=lambda text: (len(text), text))  # half the padding
        for chunk, parts in _encoded(missing, self.model.text_parts, self.batch_size):
            self._texts.update(zip(chunk, parts, strict=True))
        return torch.stack([self._texts[text] for text in texts])


def _encoded(items: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor], size: int) -> list[tuple[Sequence[Any], Tensor]]:
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    return [(chunk, encode(chunk)) for chunk in chunks]
