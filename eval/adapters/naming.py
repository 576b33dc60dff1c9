"""Learn new words from a few images, by prompting or by comparing features. Implements `eval.base.capabilities.Namer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.base.capabilities import Completer, Features, Images, Lesson, Prompt, Texts

ASKED = "this is a"


class PromptedNames:
    """The model's completion of "answer with dax or blicket. [picture] this is a dax. [picture] this is a blicket. ...
    [picture] this is a" (Frozen, section 4.3)."""

    def __init__(self, completer: Completer) -> None:
        self.completer, self.adapter = completer, f"{completer.adapter} of a prompt with examples"

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.completer.prepare(images, texts)

    def names(self, lessons: Sequence[Lesson], images: Images) -> list[str]:
        return self.completer.completions([_prompt(lesson, image) for lesson, image in zip(lessons, images, strict=True)])


class NearestMeanNames:
    """The word whose prototype (Snell et al. 2017), the mean of its examples' normalised features, has the highest cosine similarity to
    the image's features. Ties go to the first word."""

    def __init__(self, features: Features) -> None:
        self.features, self.adapter = features, f"nearest mean of {features.adapter}"

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.features.prepare(images, texts)

    def names(self, lessons: Sequence[Lesson], images: Images) -> list[str]:
        return [self._name(lesson, image) for lesson, image in zip(lessons, images, strict=True)]

    def _name(self, lesson: Lesson, image: np.ndarray) -> str:
        rows = self.features.features([*(shown for shown, _ in lesson), image]).astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        words = list(dict.fromkeys(word for _, word in lesson))
        means = np.stack([rows[[i for i, (_, taught) in enumerate(lesson) if taught == word]].mean(axis=0) for word in words])
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return words[int(np.argmax(np.float32(means @ rows[-1])))]  # rounded, so that equal values tie


def _prompt(lesson: Lesson, image: np.ndarray) -> Prompt:
    words = sorted({word for _, word in lesson})
    return [f"answer with {' or '.join(words)}.", *(part for shown, word in lesson for part in (shown, f"{ASKED} {word}.")), image, ASKED]
