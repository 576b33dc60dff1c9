"""The adapter of models that locate what a phrase names."""

from __future__ import annotations

from typing import Any

from data.objects import Box
from eval.base.capabilities import Images, Locates, Texts


class LocatedBoxes:
    adapter = "predicted box"

    def __init__(self, model: Locates, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Does nothing: boxes are predicted when they are needed."""

    def boxes(self, images: Images, phrases: Texts) -> list[Box | None]:
        """Raises ValueError if the model returns another number of boxes."""
        found: list[Any] = []
        for start in range(0, len(phrases), self.batch_size):
            rows = slice(start, start + self.batch_size)
            some = list(self.model.locate(images[rows], phrases[rows]))
            if len(some) != len(phrases[rows]):
                raise ValueError(f"locate returned {len(some)} boxes for {len(phrases[rows])} phrases")
            found += some
        return found
