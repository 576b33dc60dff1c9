"""CLIP on two published encoders that both stay locked: all that is trained is one linear layer on each (after LiT, arXiv 2111.07991).

With a few thousand pictures a text tower from scratch, or a tuned one, over-fits; sentences and pictures that their encoders already
describe well need no more than a common space. Features are computed once, standardised, and dropped out in front of the layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.clip.objective import clip_loss
from models.contract import Losses, Model
from models.shared.backbones import LanguageConfig, fetch_tower, freeze, known, looked_at, named_tower
from models.shared.collate import PairCollate
from models.shared.images import HALF, ImageTransform, normalise
from models.shared.sentences import fetch_sentences, mean_states, sentence_encoder
from models.shared.standardise import Standardise, some_samples
from models.shared.text import Tokenizer

IMAGE, TEXTS = "locked image", "locked texts"  # keys in Sample.extra of the features of a picture and of its captions
ROWS = 64  # pictures or texts encoded at a time
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass(frozen=True)
class LockedCLIPConfig:
    timm_name: str  # a timm model: the image tower
    language: LanguageConfig  # a sentence encoder
    image_size: int = 224
    context: int = 64
    embed_dim: int = 256
    dropout: float = 0.5  # of the features
    temperature: float = 0.07  # initial
    max_scale: float = 100.0
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    @classmethod
    def real(cls) -> LockedCLIPConfig:
        """Both encoders come in wheels: EfficientNet-Lite0, supervised on ImageNet-1k, and MiniLM; 27 M parameters, .4 M trained."""
        return cls(timm_name="wheel:tf_efficientnet_lite0", language=LanguageConfig(source="wheel:all-MiniLM-L6-v2"))

    @classmethod
    def tiny(cls) -> LockedCLIPConfig:
        """Random encoders, for tests."""
        language = LanguageConfig(architecture=json.dumps(BERT))
        return cls(timm_name="test_efficientnet", language=language, image_size=64, context=32, embed_dim=32)


class Head(Standardise):
    """Standardise, drop out, and project."""

    def __init__(self, width: int, embed_dim: int, dropout: float) -> None:
        super().__init__(width)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, features: Tensor) -> Tensor:  # [B, width] -> unit length [B, embed_dim]
        standard = super().forward(features)
        return F.normalize(self.projection(self.dropout(standard)).float(), dim=-1)


@dataclass(frozen=True)
class FeatureCollate(PairCollate):
    """Collates the features cached by `LockedCLIP.precompute`, float32 "image" `[B, D]` and "text" `[B, E]`, if the samples have them."""

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        if IMAGE not in samples[0].extra:
            return super().__call__(samples, rng)
        which = [0 if rng is None else int(rng.integers(len(sample.captions))) for sample in samples]
        texts = [sample.extra[TEXTS][row] for sample, row in zip(samples, which, strict=True)]
        return {
            "image": torch.from_numpy(np.stack([sample.extra[IMAGE] for sample in samples])),
            "text": torch.from_numpy(np.stack(texts)),
        }


class LockedCLIP(Model):
    paradigm = "contrastive"
    Config = LockedCLIPConfig

    def __init__(self, config: LockedCLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.collate = FeatureCollate(ImageTransform(config.image_size), tokenizer, config.context)
        self.visual: Any = freeze(named_tower(config.timm_name))
        self.language: Any = freeze(sentence_encoder(config.language))
        self.image_head = Head(self.visual.num_features, config.embed_dim, config.dropout)
        self.text_head = Head(self.language.get_input_embeddings().embedding_dim, config.embed_dim, config.dropout)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def fetch(self) -> dict[str, str]:
        """Load the weights of the encoders that the configuration names. Returns module -> where they came from."""
        source = self.config.language.source
        if source:
            fetch_sentences(self.language, source, self.tokenizer)
        return fetch_tower(self.visual, self.config.timm_name) | ({"language": source} if source else {})

    @torch.no_grad()
    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Standardise both features by those of some training pairs."""
        pairs = some_samples(batches)
        self.image_head.standardise(self._image_features([sample.image for sample in pairs]))
        self.text_head.standardise(self._text_features([sample.captions[0] for sample in pairs]))

    @torch.no_grad()
    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Encode each picture and each caption only once (LiT, appendix G)."""
        images = self._image_features([sample.image for sample in samples]).cpu().numpy()
        texts = self._text_features([caption for sample in samples for caption in sample.captions]).cpu().numpy()
        ends = np.cumsum([len(sample.captions) for sample in samples])
        known = zip(images, np.split(texts, ends[:-1]), strict=True)
        return [replace(sample, extra=sample.extra | {IMAGE: one, TEXTS: some}) for sample, (one, some) in zip(samples, known, strict=True)]

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-pair features, L2-normalised `[B, embed_dim]`."""
        known = "image" in batch
        image = batch["image"] if known else self._see(batch["pixels"])
        text = batch["text"] if known else mean_states(self.language, batch["ids"], self.tokenizer)
        return {"image": self.image_head(image), "text": self.text_head(text)}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return clip_loss(features["image"], features["text"], self.logit_scale.exp())

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.config.max_scale))

    # ------------------------------------------------------------------------------------------------ capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self.image_head(self._image_features(images))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        return self.text_head(self._text_features(texts))

    def _image_features(self, images: Sequence[np.ndarray]) -> Tensor:
        """What the image tower says of pictures of any size, float32 `[N, D]`."""
        parts = [images[start : start + ROWS] for start in range(0, len(images), ROWS)]
        found = [self._see(self.collate.images(part).to(self.logit_scale.device)) for part in parts]
        return torch.cat(found) if found else self.logit_scale.new_zeros(0, self.visual.num_features)

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """What the sentence encoder says of texts, float32 `[N, E]`. Texts of one length are encoded together."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found = self.logit_scale.new_zeros(len(texts), self.text_head.mean.numel())
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            ids = self.collate.texts([texts[row] for row in rows]).to(found.device)
            found[rows] = mean_states(self.language, ids, self.tokenizer)
        return found

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` -> float32 `[B, D]`."""
        return looked_at(self.visual, normalise(pixels, self.config.mean, self.config.std))
