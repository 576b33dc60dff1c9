"""CLIP: an image tower and a text tower trained so that matching pairs are close (Radford et al., 2021, arXiv 2103.00020).

Deviations at small scale, all in the configuration: `tiny` uses a convolutional stem, mean pooling instead of a class token,
ReLU, and its own small vocabulary. `paper` is ViT-B/32 as published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require
from data.sample import Sample
from models.clip.objective import clip_loss
from models.contract import Losses, Model
from models.shared.backbones import fetch_tower
from models.shared.collate import PairCollate
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import Tokenizer, place_of_end
from models.shared.transformer import Block, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer


@dataclass(frozen=True)
class CLIPConfig:
    vision: VisionConfig = field(
        default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, image_size=224, patch_size=32, pre_norm=True)
    )
    text: TransformerConfig = field(default_factory=lambda: TransformerConfig(width=512, depth=12, heads=8))
    embed_dim: int = 512
    context: int = 77
    vocab_size: int = 49_408
    temperature: float = 0.07  # initial; section 2.5
    max_scale: float = 100.0  # section 2.5: clipped, or training becomes unstable
    random_crop: float = 1.0  # smallest share of the side kept by the random square crop, CLIP's only augmentation
    mean: tuple[float, float, float] = OPENAI_MEAN  # of the pixels; some published weights were trained with another
    std: tuple[float, float, float] = OPENAI_STD
    image_head: bool = True  # a projection on the image side; LiT (arXiv 2111.07991) has none, so embed_dim is the tower's width
    frozen: bool = False  # the image tower stays as it came: LiT's locked tower
    image_weights: str = ""  # a timm model whose weights the image tower begins with

    def __post_init__(self) -> None:
        fits = self.image_head or self.embed_dim == self.vision.width
        require(fits, "--model.embed-dim", self.embed_dim, f"the image tower's width, {self.vision.width}, where there is no image head")

    @classmethod
    def tiny(cls) -> Self:
        """2.0 M parameters; minutes on two CPU cores."""
        text = TransformerConfig(width=128, depth=2, heads=4, activation="relu")
        return cls(vision=TINY_TOWER, text=text, embed_dim=128, context=32)

    @classmethod
    def small(cls) -> Self:
        """The paper's towers at a sixth of their size (27 M), for 128 px pictures and one GPU."""
        vision = VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pre_norm=True)
        return cls(vision=vision, text=TransformerConfig(width=256, depth=6, heads=4), embed_dim=256, random_crop=0.9)

    @classmethod
    def paper(cls) -> CLIPConfig:
        """ViT-B/32, table 20 of the paper: 151,277,313 parameters in the released weights."""
        return cls(random_crop=0.9)

    @classmethod
    def vit_b16(cls) -> CLIPConfig:
        return cls(vision=VisionConfig(width=768, depth=12, heads=12, image_size=224, patch_size=16, pre_norm=True))

    @classmethod
    def vit_l14(cls) -> CLIPConfig:
        vision = VisionConfig(width=1024, depth=24, heads=16, image_size=224, patch_size=14, pre_norm=True)
        return cls(vision=vision, text=TransformerConfig(width=768, depth=12, heads=12), embed_dim=768)


TOWER = "tower"  # the key in Sample.extra of a frozen image tower's output for the picture


@dataclass(frozen=True)
class TowerCollate(PairCollate):
    """Collates the features cached by `CLIP.precompute`, float32 "tower" `[B, D]`, instead of pixels if the samples have them."""

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        if TOWER not in samples[0].extra:
            return super().__call__(samples, rng)
        return {"tower": torch.from_numpy(np.stack([sample.extra[TOWER] for sample in samples])), "ids": self.captions(samples, rng)}


class TextTower(nn.Module):
    """Causal transformer; a text's feature is the state at its end token."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, context: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self._initialise(config, blocks)

    def forward(self, ids: Tensor) -> Tensor:  # [B, T] -> [B, D]
        x = self.states(ids)
        return self.norm(x[torch.arange(x.shape[0], device=x.device), place_of_end(ids, self.tokenizer)])

    def states(self, ids: Tensor) -> Tensor:
        """`[B, T]` -> `[B, T, D]`, before the last norm."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)  # the end token cannot attend to what follows it, so no padding mask is needed
        return x

    def _initialise(self, config: TransformerConfig, blocks: list[Block]) -> None:
        width = config.width
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in blocks:
            nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=width**-0.5 * (2 * config.depth) ** -0.5)
            nn.init.normal_(block.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=width**-0.5 * (2 * config.depth) ** -0.5)


class CLIP(Model):
    paradigm = "contrastive"
    Config = CLIPConfig

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.collate = TowerCollate(ImageTransform(config.vision.image_size, config.random_crop), tokenizer, config.context)
        self.visual = vision_transformer(config.vision, pooled=True).requires_grad_(not config.frozen)
        self.text = TextTower(config.text, vocab_size=config.vocab_size, context=config.context, tokenizer=tokenizer)
        self.visual_projection = nn.Linear(config.vision.width, config.embed_dim, bias=False) if config.image_head else nn.Identity()
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if isinstance(self.visual_projection, nn.Linear):
            nn.init.normal_(self.visual_projection.weight, std=config.vision.width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=config.text.width**-0.5)

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """Figure 3 of the paper: embed both sides, compare all pairs, classify in both directions."""
        return self.objective(self.encode(batch))

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-pair features, L2-normalised `[B, embed_dim]`."""
        states = batch["tower"] if "tower" in batch else self._tower(batch["pixels"])
        return {"image": self._project(states), "text": self._text_features(batch["ids"])}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return clip_loss(features["image"], features["text"], self.logit_scale.exp())

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.config.max_scale))

    # ------------------------------------------------------------------------------- the image tower of another model

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "image_tower": a trained model whose `visual` is such a tower, a `Classifier` or a `CLIP`."""
        self.visual.load_state_dict(modules["image_tower"].visual.state_dict())

    def fetch(self) -> dict[str, str]:
        return super().fetch() | fetch_tower(self.visual, self.config.image_weights)

    @torch.no_grad()
    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Encode each image only once if the tower is frozen and its pixels are the same every time (LiT, appendix G)."""
        if not self.config.frozen or self.config.random_crop < 1 or self.config.vision.patch_dropout:
            return samples
        self.visual.eval()
        found: list[Sample] = []
        for first in range(0, len(samples), 256):
            some = samples[first : first + 256]
            pixels = self.collate.images([sample.image for sample in some]).to(self.logit_scale.device)
            states = self._tower(pixels).float().cpu().numpy()
            found += [replace(sample, extra=sample.extra | {TOWER: row}) for sample, row in zip(some, states, strict=True)]
        return found

    # ------------------------------------------------------------------------------------------------ capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self._image_features(self.collate.images(images).to(self.logit_scale.device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        return self._text_features(self.collate.texts(texts).to(self.logit_scale.device))

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self._project(self._tower(pixels))

    def _tower(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` -> `[B, vision.width]`."""
        return self.visual(normalise(pixels, self.config.mean, self.config.std))

    def _project(self, states: Tensor) -> Tensor:
        return F.normalize(self.visual_projection(states).float(), dim=-1)

    def _text_features(self, ids: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.text(ids)).float(), dim=-1)
