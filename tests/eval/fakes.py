"""Models whose answers are known by hand, and small data sets to ask them about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from data.sample import Foil, Object, Sample
from eval.harness.source import in_memory
from eval.run import evaluate

ABOUT = {"run": "fake-s0", "model": "fake", "paradigm": "none", "preset": "tiny", "seed": 0, "trained_on": "nothing"}


def picture(number: int) -> np.ndarray:
    """A 2 x 2 picture that says its number."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = number % 256, number // 256, 7
    return image


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


class Embeds:
    """Embeddings by hand: `image(number)` and `text(string)` give the vectors."""

    logit_scale = torch.tensor(2.0)

    def __init__(self, image: Callable[[int], Sequence[float]], text: Callable[[str], Sequence[float]]) -> None:
        self.image, self.text = image, text
        self.encoded = 0

    def encode_image(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        self.encoded += len(images)
        return _unit([self.image(number_of(image)) for image in images])

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        return _unit([self.text(text) for text in texts])


class Pairs:
    """Only pairwise scores, by hand."""

    score_kind = "pairwise score"

    def __init__(self, judge: Callable[[int, str], float]) -> None:
        self.judge, self.asked = judge, 0

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> torch.Tensor:
        self.asked += len(texts)
        return torch.tensor([self.judge(number_of(image), text) for image, text in zip(images, texts, strict=True)])


def knowing(samples: Sequence[Sample], sign: float = 1.0) -> Embeds:
    """Embeds a picture along its own axis and a caption along those of the pictures it belongs to. Any other text (a foil, a
    prompt) is embedded away from all of them, and any other picture (a blank one) along the last axis. `sign` -1 turns every
    answer round."""
    numbers = [number_of(sample.image) for sample in samples]
    owners: dict[str, list[int]] = {}
    for sample in samples:
        for text in (*sample.captions, *(foil.caption for foil in sample.foils)):
            owners.setdefault(text, []).append(number_of(sample.image))
    size = max(numbers) + 2
    return Embeds(
        lambda number: sign * np.eye(size)[min(number, size - 1)],
        lambda text: np.eye(size)[owners[text]].sum(axis=0) if text in owners else np.eye(size)[-1] - np.eye(size)[:-1].sum(axis=0),
    )


def constant() -> Embeds:
    return Embeds(lambda number: [0.3, 0.4], lambda text: [0.5, 0.1])


def noisy(seed: int = 0, size: int = 16) -> Embeds:
    """Arbitrary but fixed vectors."""
    return Embeds(
        lambda number: np.random.default_rng([seed, number]).normal(size=size),
        lambda text: np.random.default_rng([seed, *text.encode()]).normal(size=size),
    )


def captioned(count: int, captions: int = 3) -> list[Sample]:
    """Pictures with their own captions; each has a foil of every family, two of one kind."""
    return [
        Sample(
            key=f"{i:05d}",
            image=picture(i),
            captions=tuple(f"caption {j} of {i}" for j in range(captions)),
            foils=(
                Foil(f"caption 0 of {i}", f"foil a of {i}", "replace_attribute_colour"),
                Foil(f"caption 0 of {i}", f"foil b of {i}", "replace_attribute_shape"),
                Foil(f"caption 0 of {i}", f"foil c of {i}", "swap_attribute_colour"),
                Foil(f"caption 1 of {i}", f"foil d of {i}", "swap_relation"),
            ),
        )
        for i in range(count)
    ]


def single_objects(repeats: int = 1, start: int = 0) -> list[Sample]:
    """A picture for every combination of the four attributes."""
    from data.scenes.world import COLOURS, FILLS, SHAPES, SIZES

    combinations = [each for _ in range(repeats) for each in product(SIZES, FILLS, COLOURS, SHAPES)]
    return [
        Sample(
            key=f"{i:05d}",
            image=picture(start + i),
            captions=(f"a {size} {fill} {colour} {shape}",),
            objects=(Object(shape, (0, 0, 1, 1), {"size": size, "fill": fill, "colour": colour, "place": "middle"}),),
            extra={"relations": [], "tone": "grey", "texture": "plain"},
        )
        for i, (size, fill, colour, shape) in enumerate(combinations)
    ]


def labelled(count: int, classes: Sequence[str]) -> list[Sample]:
    return [Sample(key=f"{i:05d}", image=picture(i), label=classes[i % len(classes)]) for i in range(count)]


def run(model: Any, splits: dict[str, list[Sample]], out: Path, **options: Any) -> dict[str, Any]:
    """Evaluate without a terminal; the untrained control is an arbitrary model."""
    source = in_memory("fakes", splits, options.pop("classes", None), options.pop("limit", None))
    settings = {"about": ABOUT, "weights": "w", "console": Console(quiet=True)} | options
    return evaluate(model, settings.pop("fresh", noisy(99)), source, out, **settings)


def value(result: dict[str, Any], task: str, metric: str, variant: str = "model", split: str = "test") -> float:
    return cell(result, task, metric, variant, split)["value"]


def cell(result: dict[str, Any], task: str, metric: str, variant: str = "model", split: str = "test") -> dict[str, Any]:
    wanted = (task, metric, variant, split)
    found = [cell for cell in result["cells"] if (cell["task"], cell["metric"], cell["variant"], cell["split"]) == wanted]
    assert len(found) == 1, f"{len(found)} cells for {wanted}"
    return found[0]


def _unit(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)
