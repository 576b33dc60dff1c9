"""CLIP-rocket: CLIP's own loss on strong views of pictures and texts, without self-supervision (Fini et al., 2023, arXiv 2305.08675).

It is the control of SLIP and DeCLIP: are their gains those of self-supervision, or of augmentation? A weak pair, CLIP's, keeps CLIP's
projections; strong pairs have projectors and a scale of their own, which are dropped after training.

Deviations: a strong text is another caption of the picture, mostly without its stop words (the paper also exchanges words by synonyms,
swaps and deletes them, which makes captions false), and strong pictures are as SLIP's here (slip.py), but for larger crops at `tiny` and
`small`, where captions name every object. There is no dropout, as in the paper on YFCC. The sum of both directions, which the paper takes
on YFCC, is their mean here: to AdamW it makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require
from data.sample import Sample
from models.clip.model import CLIP
from models.clip.objective import clip_loss, info_nce
from models.clip.projector import projector
from models.clip.slip import ViewsConfig, accept_any_size, see, slip_tower
from models.clip.views import MOST, View, draw_captions, other_captions, without_stop_words
from models.contract import Losses
from models.shared.collate import PairCollate
from models.shared.distributed import gather
from models.shared.images import ImageTransform
from models.shared.text import Tokenizer

S = 2  # strong views of each picture and of each text


@dataclass(frozen=True)
class CLIPRocketConfig(ViewsConfig):
    hidden: int = 4096
    strong_temperature: float = 0.1  # initial
    smoothing: float = 0.1  # of the strong pairs' labels
    separate: bool = True  # strong pairs have projectors and a scale of their own
    paraphrase: bool = True  # strong texts are other captions of the picture, where it has some
    drop: float = 0.8  # probability that a strong text has no stop words

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("smoothing", "drop"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        require(self.strong_temperature > 0, "strong_temperature", self.strong_temperature, "a number above 0")

    @classmethod
    def tiny(cls) -> CLIPRocketConfig:
        return replace(super().tiny(), view=View(size=32, area=MOST), hidden=512)

    @classmethod
    def small(cls) -> CLIPRocketConfig:
        return replace(super().small(), view=View(size=128, area=MOST), hidden=2048)

    @classmethod
    def paper(cls) -> CLIPRocketConfig:
        """ViT-B/16, embeddings of 256: SLIP's towers and 41 M in both projectors."""
        return cls(vision=slip_tower(width=768, depth=12, heads=12), embed_dim=256, random_crop=0.7)


@dataclass(frozen=True)
class StrongPairs(PairCollate):
    """CLIP's batch; uint8 "view1" and "view2" `[B, 3, V, V]`; "ids1" and "ids2" `[B, T]`, strong texts. Without a generator these are drawn
    with seed 0."""

    view: View = field(default_factory=View)
    paraphrase: bool = True
    drop: float = 0.8

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        which = draw_captions(samples, rng)  # drawn first, and then the crops: the same pairs as CLIP's
        pixels = self.images([sample.image for sample in samples], rng)
        draw = rng or np.random.default_rng(0)
        views = {name: self.view.batch(samples, draw) for name in ("view1", "view2")}
        strong = [self._strong(sample, used, draw) for sample, used in zip(samples, which, strict=True)]
        weak = [sample.captions[used] for sample, used in zip(samples, which, strict=True)]
        ids = self.texts([*weak, *(first for first, _ in strong), *(second for _, second in strong)]).chunk(1 + S)
        return {"pixels": pixels, "ids": ids[0], "ids1": ids[1], "ids2": ids[2]} | views

    def _strong(self, sample: Sample, used: int, rng: np.random.Generator) -> list[str]:
        texts = other_captions(sample, used, S, rng) if self.paraphrase else [sample.captions[used]] * S
        return [without_stop_words(text) if rng.random() < self.drop else text for text in texts]


class CLIPRocket(CLIP):
    name = "clip_rocket"
    Config = CLIPRocketConfig
    config: CLIPRocketConfig

    def __init__(self, config: CLIPRocketConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        choices = {"view": config.view, "paraphrase": config.paraphrase, "drop": config.drop}
        self.collate = StrongPairs(transform, tokenizer, config.context, **choices)  # type: ignore[arg-type]
        if config.separate:
            self.image_projector = projector(config.vision.width, config.hidden, config.hidden, config.embed_dim)
            self.text_projector = projector(config.text.width, config.hidden, config.hidden, config.embed_dim)
            self.strong_scale = nn.Parameter(torch.tensor(math.log(1 / config.strong_temperature)))
        accept_any_size(self)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weak pair's features, and the towers' of strong views and texts before any projection, float32 `[B, width]`."""
        one, other = see(self, batch["view1"], batch["view2"])
        weak, first, second = self.text(torch.cat([batch["ids"], batch["ids1"], batch["ids2"]])).chunk(1 + S)
        return {
            "image": self._image_features(batch["pixels"]),
            "text": F.normalize(self.text_projection(weak).float(), dim=-1),
            "view1": one,
            "view2": other,
            "text1": first.float(),
            "text2": second.float(),
        }

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """L = (L_weak + S L_strong) / (1 + S), where L_strong is the mean over all S x S pairs of a strong view and a strong text."""
        weak = clip_loss(features["image"], features["text"], self.logit_scale.exp())
        image_head, text_head, scale = self._strong_heads()
        images = [F.normalize(image_head(features[name]), dim=-1) for name in ("view1", "view2")]
        texts = [F.normalize(text_head(features[name]), dim=-1) for name in ("text1", "text2")]
        all_images, all_texts = [gather(each) for each in images], [gather(each) for each in texts]
        smoothing = self.config.smoothing
        to_text = [info_nce(image, text, scale, smoothing=smoothing) for image in images for text in all_texts]
        to_image = [info_nce(text, image, scale, smoothing=smoothing) for text in texts for image in all_images]
        terms = weak.terms | {
            "strong_image_to_text": torch.stack(to_text).mean(),
            "strong_text_to_image": torch.stack(to_image).mean(),
        }
        weights = dict.fromkeys(weak.terms, 0.5 / (1 + S)) | dict.fromkeys(terms.keys() - weak.terms.keys(), 0.5 * S / (1 + S))
        return Losses.weighted(terms, weights, dict.fromkeys(terms, weak.chance["image_to_text"]))

    def _strong_heads(self) -> tuple[nn.Module, nn.Module, Tensor]:
        if self.config.separate:
            return self.image_projector, self.text_projector, self.strong_scale.exp()
        return self.visual_projection, self.text_projection, self.logit_scale.exp()

    def after_step(self) -> None:
        with torch.no_grad():
            for scale in (self.logit_scale, self.strong_scale) if self.config.separate else (self.logit_scale,):
                scale.clamp_(0, math.log(self.config.max_scale))
