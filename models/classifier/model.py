"""An image tower trained on labels, without captions, for ASIF, FLAVA and LiT to build on.

It takes the place of towers supervised on ImageNet, without a download. Images show several objects, so each class is a separate
binary classification: does the image show an object with all of these attributes?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from data.scenes.world import COLOURS, FILLS, SHAPES, SIZES
from data.shards import Split
from models.contract import Losses, Model
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import Tokenizer
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

SCENES = (*SHAPES, *COLOURS, *SIZES, *FILLS)  # attributes of one object of the embedded data


@dataclass(frozen=True)
class ClassifierConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, pool="avg"))
    classes: tuple[str, ...] = SCENES  # labels, or words that one object has together: "star", "red star"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> ClassifierConfig:
        """1.5 M parameters, the tower of the tiny CLIP."""
        return cls(TINY_TOWER)

    @classmethod
    def small(cls) -> ClassifierConfig:
        """ViT-S/16 for 128 px pictures and one GPU."""
        return cls(VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pool="avg"))


@dataclass(frozen=True)
class LabelCollate:
    """uint8 pixels `[B, 3, S, S]`, and which classes each picture shows, bool `[B, C]`. Captions are not read."""

    transform: ImageTransform
    classes: tuple[str, ...]

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        words = {name: set(name.split()) for name in self.classes}
        shown = torch.tensor([_shown(sample, words) for sample in samples])
        if not shown.any():
            few, batch = ", ".join(self.classes[:5]), f"sample {samples[0].key} and the {len(samples) - 1} others of its batch"
            if not any(sample.label or sample.objects for sample in samples):
                raise ValueError(f"{batch} have neither labels nor objects: a classifier needs one of the two")
            raise ValueError(
                f"{batch} show no object and have no label among the {len(self.classes)} classes ({few}, ...): "
                "name this data set's own with --model.classes"
            )
        return {"pixels": self.transform([sample.image for sample in samples], rng), "shown": shown}


def _shown(sample: Sample, classes: dict[str, set[str]]) -> list[bool]:
    """Of each class, whether one of the objects has all its words, or it is the picture's label; `[C]`."""
    objects = [{thing.name, *thing.attributes.values()} for thing in sample.objects]
    return [name == sample.label or any(words <= thing for thing in objects) for name, words in classes.items()]


class Classifier(Model):
    paradigm = "prerequisite"
    Config = ClassifierConfig
    needs = ()

    def __init__(self, config: ClassifierConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = None  # nothing here reads text
        self.collate = LabelCollate(ImageTransform(config.vision.image_size), config.classes)
        self.visual = vision_transformer(config.vision, pooled=True)
        self.head = nn.Linear(config.vision.width, len(config.classes))

    @classmethod
    def configured(cls, config: Any, *, tokenizer: Tokenizer | None, split: Split) -> Any:
        """Use the classes of the data set, if it declares any and the recipe does not."""
        config = super().configured(config, tokenizer=None, split=split)
        return replace(config, classes=split.classes) if split.classes and config.classes == SCENES else config

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits and truth of every class, `[B, C]`."""
        return {"logits": self.head(self._features(batch["pixels"])).float(), "shown": batch["shown"].float()}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """Binary cross-entropy, averaged over classes. At chance, the model predicts the frequency of each class."""
        loss = F.binary_cross_entropy_with_logits(features["logits"], features["shown"])
        often = features["shown"].mean(dim=0).clamp(1e-6, 1 - 1e-6)
        return Losses(loss, {"labels": loss}, {"labels": F.binary_cross_entropy(often, often)})

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, width]`."""
        pixels = self.collate.transform(images).to(self.head.weight.device)
        return F.normalize(self._features(pixels).float(), dim=-1)

    @torch.no_grad()
    def classify(self, images: Sequence[np.ndarray]) -> Tensor:
        """The probability of each class, float32 `[N, C]`."""
        return self.head(self._features(self.collate.transform(images).to(self.head.weight.device))).float().sigmoid()

    def _features(self, pixels: Tensor) -> Tensor:
        return self.visual(normalise(pixels, self.config.mean, self.config.std))
