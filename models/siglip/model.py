"""SigLIP: CLIP's two towers with a sigmoid instead of a softmax (Zhai et al., 2023, arXiv 2303.15343).

Deviations at small scale, all in the configuration: `tiny` puts convolutions before the image blocks, pools by the mean,
uses ReLU, and learns its own small vocabulary. `paper` is ViT-B/16 as released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip.objective import clip_loss
from models.contract import Losses, Model
from models.shared.collate import PairCollate
from models.shared.images import HALF, ImageTransform, normalise
from models.shared.text import Tokenizer
from models.shared.transformer import Block, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer
from models.siglip.objective import siglip_loss


def _vit(*, width: int, depth: int, heads: int, image_size: int) -> VisionConfig:
    return VisionConfig(width, depth, heads, "gelu_tanh", norm_eps=1e-6, image_size=image_size, patch_size=16, pool="map")


def _text(*, width: int, depth: int, heads: int) -> TransformerConfig:
    return TransformerConfig(width, depth, heads, "gelu_tanh", norm_eps=1e-6)


@dataclass(frozen=True)
class SigLIPConfig:
    """The text feature has the image tower's width: there is no projection on the image side (as in the released models)."""

    vision: VisionConfig = field(default_factory=lambda: _vit(width=768, depth=12, heads=12, image_size=224))
    text: TransformerConfig = field(default_factory=lambda: _text(width=768, depth=12, heads=12))
    context: int = 64
    vocab_size: int = 32_000
    scale: float = 10.0  # initial t; section 3.2
    bias: float = -10.0  # initial b; section 3.2
    loss: Literal["sigmoid", "softmax"] = "sigmoid"  # CLIP's is what the paper compares with (section 4.2); it has no use for a bias
    random_crop: float = 1.0

    @classmethod
    def tiny(cls) -> SigLIPConfig:
        """2.0 M parameters; minutes on two CPU cores."""
        text = TransformerConfig(width=128, depth=2, heads=4, activation="relu")
        return cls(vision=TINY_TOWER, text=text, context=32)

    @classmethod
    def small(cls) -> SigLIPConfig:
        """The paper's towers at a seventh of their size (28 M), for 128 px pictures and one GPU."""
        return cls(
            vision=_vit(width=384, depth=12, heads=6, image_size=128),
            text=_text(width=256, depth=6, heads=4),
            random_crop=0.9,
        )

    @classmethod
    def paper(cls) -> SigLIPConfig:
        """ViT-B/16: 203,155,970 parameters."""
        return cls()


class TextTower(nn.Module):
    """Bidirectional transformer over a sequence padded to full length; a text's feature is the state at the last position."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.normal_(self.tokens.weight, std=config.width**-0.5)
        nn.init.normal_(self.positions, std=config.width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:  # [B, context] -> [B, D]
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x)  # padding is not masked, in the paper's code neither
        return self.norm(x[:, -1])


class SigLIP(Model):
    paradigm = "contrastive"
    Config = SigLIPConfig
    builds_on = ("clip",)

    def __init__(self, config: SigLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.collate = PairCollate(
            ImageTransform(config.vision.image_size, config.random_crop), tokenizer, config.context, fixed_length=True
        )
        self.visual = vision_transformer(config.vision, pooled=True)
        self.text = TextTower(config.text, vocab_size=config.vocab_size, context=config.context)
        self.text_projection = nn.Linear(config.text.width, config.vision.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.bias)), requires_grad=config.loss == "sigmoid")

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """Algorithm 1 of the paper: embed both sides, then a binary classification of every pair."""
        return self.objective(self.encode(batch))

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-pair features, L2-normalised `[B, width]`."""
        return {"image": self._image_features(batch["pixels"]), "text": self._text_features(batch["ids"])}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        if self.config.loss == "softmax":
            return clip_loss(features["image"], features["text"], self.logit_scale.exp())
        return siglip_loss(features["image"], features["text"], self.logit_scale.exp(), self.logit_bias)

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, width]`."""
        return self._image_features(self.collate.images(images).to(self.logit_scale.device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, width]`."""
        return self._text_features(self.collate.texts(texts).to(self.logit_scale.device))

    def _image_features(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(normalise(pixels, HALF, HALF)).float(), dim=-1)

    def _text_features(self, ids: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.text(ids)).float(), dim=-1)
