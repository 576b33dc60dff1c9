"""ClipCap: a mapper from CLIP's embedding of an image to a prefix of a language model (Mokady et al., 2021, arXiv 2111.09734).

Two mappers: an MLP, with which the paper tunes the language model, and a transformer, with which it stays frozen; here each combines with
either. CLIP is frozen.

Deviations: texts end with the tokenizer's end token, where the released code learns no end and stops at "."; padding is not a token, so
every token is learned. `tiny` learns from questions as well as from captions, as Frozen's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from data.fields import require
from data.sample import Sample
from models.clip import CLIP, CLIPConfig
from models.frozen.model import Frozen, FrozenConfig
from models.shared.backbones import LanguageConfig, freeze
from models.shared.images import ImageTransform
from models.shared.prefix import PrefixCollate
from models.shared.prefix_model import LockedTowerModel, images_or_states
from models.shared.ranges import check_heads
from models.shared.transformer import Block, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer


@dataclass(frozen=True)
class ClipCapConfig(FrozenConfig):
    vision: VisionConfig = field(default_factory=lambda: CLIPConfig.paper().vision)
    embed_dim: int = 512  # of CLIP
    clip_source: str = ""  # published weights, such as open_clip:ViT-B-32/openai, in the place of a prerequisite
    mapper: Literal["mlp", "transformer"] = "transformer"
    prefix: int = 10  # vectors an image becomes
    clip_length: int = 10  # vectors that the embedding becomes in front of the transformer's constants
    depth: int = 8  # of the transformer
    heads: int = 8
    normalise: bool = False  # the embedding to unit length

    def __post_init__(self) -> None:
        for name in ("prefix", "clip_length"):
            require(getattr(self, name) >= 1, f"--model.{name.replace('_', '-')}", getattr(self, name), "1 or more")

    @classmethod
    def tiny(cls) -> ClipCapConfig:
        return cls(vision=TINY_TOWER, embed_dim=128, prefix=4, clip_length=4, depth=4, heads=4, questions=0.5)

    @classmethod
    def small(cls) -> ClipCapConfig:
        """For one GPU: CLIP's `small`, GPT-2, and the paper's transformer."""
        clip = CLIPConfig.small()
        language = LanguageConfig(source="gpt2")
        return cls(vision=clip.vision, embed_dim=clip.embed_dim, language=language, vocab_size=50_257, questions=0.5)

    @classmethod
    def paper(cls) -> ClipCapConfig:
        """CLIP ViT-B/32 and GPT-2, frozen, and a transformer of 41.7 M parameters."""
        return cls(clip_source="open_clip:ViT-B-32/openai", language=LanguageConfig(source="gpt2"), vocab_size=50_257)

    @classmethod
    def paper_mlp(cls) -> ClipCapConfig:
        """The other variant: an MLP of 31.5 M parameters, and GPT-2 is tuned."""
        return replace(cls.paper(), mapper="mlp", tune_language=True)


class ConstantsMapper(nn.Module):
    """A pre-norm transformer over tokens and learned constants; the states at the constants are its output (figure 3)."""

    def __init__(self, config: TransformerConfig, constants: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.constants = nn.Parameter(torch.randn(constants, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if not qkv_bias:
            for block in self.blocks:
                block.attn.qkv.register_parameter("bias", None)  # type: ignore[union-attr]

    def forward(self, tokens: Tensor) -> Tensor:  # [B, N, D] -> [B, constants, D]
        x = torch.cat([tokens, self.constants.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, tokens.shape[1] :]


class TransformerMapper(nn.Module):
    """Section 3.2: one linear layer makes `length` tokens of CLIP's embedding, and a transformer the prefix."""

    def __init__(self, seen: int, *, width: int, prefix: int, length: int, depth: int, heads: int) -> None:
        super().__init__()
        check_heads(heads, width, "the language model's width")
        self.length = length
        self.linear = nn.Linear(seen, length * width)
        config = TransformerConfig(width=width, depth=depth, heads=heads, activation="relu", mlp_ratio=2.0)
        self.transformer = ConstantsMapper(config, prefix, qkv_bias=False)

    def forward(self, embedding: Tensor) -> Tensor:  # [B, seen] -> [B, prefix, width]
        return self.transformer(self.linear(embedding).unflatten(-1, (self.length, -1)))


class MLPMapper(nn.Sequential):
    """Section 3.1: two layers with a tanh between them."""

    def __init__(self, seen: int, *, width: int, prefix: int) -> None:
        hidden = prefix * width // 2
        super().__init__(nn.Linear(seen, hidden), nn.Tanh(), nn.Linear(hidden, prefix * width), nn.Unflatten(-1, (prefix, width)))


@dataclass(frozen=True)
class StatesCollate(PrefixCollate):
    """As its parent, with the cached states of a frozen tower in the place of pixels, if the samples have them."""

    def images(self, samples: Sequence[Sample], rng: np.random.Generator | None) -> dict[str, Tensor]:
        return images_or_states(samples, self.transform, rng)


class OnFrozenCLIP(LockedTowerModel, Frozen):
    """Frozen's language side on a trained CLIP that stays frozen: what ClipCap and MAPL have in common."""

    config: Any

    def _add_image_side(self) -> int:
        config = self.config
        self.transform = ImageTransform(config.vision.image_size)
        self.collate = StatesCollate(self.transform, self.tokenizer, config.prefix, config.context, config.questions)
        self.visual = freeze(vision_transformer(config.vision))
        return int(config.vision.width)

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained `CLIP`; "language_model": a trained `LM`, unless one is named."""
        if "vision" in modules:
            self._see_with(modules["vision"])
        super().adopt(modules)

    def fetch(self) -> dict[str, str]:
        """Load the published models that the configuration names. Returns module -> source."""
        source = self.config.clip_source
        if source:
            self._see_with(models.load(source))
        return super().fetch() | ({"visual": source} if source else {})

    def _see_with(self, clip: Any) -> None:
        """Take over the image side of a CLIP, whatever its size."""
        if not isinstance(clip, CLIP):
            raise ValueError(f"{type(self).__name__} sees with a CLIP, not with {type(clip).__name__}: name the page of one")
        theirs = clip.config
        sizes = {"vision": theirs.vision, "embed_dim": theirs.embed_dim, "mean": theirs.mean, "std": theirs.std}
        if sizes != {name: getattr(self.config, name) for name in sizes}:
            self.config = replace(self.config, **sizes)
            self.to_prefix = self._bridge(self._add_image_side())
        self.visual.load_state_dict(clip.visual.state_dict())

    def _states(self, pixels: Tensor) -> Tensor:
        return super()._states(torch.zeros_like(pixels) if self.config.blind else pixels)


class ClipCap(OnFrozenCLIP):
    Config = ClipCapConfig
    builds_on = ("clip",)
    config: ClipCapConfig

    def _add_image_side(self) -> int:
        features, config = super()._add_image_side(), self.config
        self.visual_projection = freeze(nn.Linear(features, config.embed_dim, bias=False))
        return config.embed_dim

    def _bridge(self, features: int) -> nn.Module:
        config = self.config
        if config.mapper == "mlp":
            return MLPMapper(features, width=self.width, prefix=config.prefix)
        return TransformerMapper(
            features, width=self.width, prefix=config.prefix, length=config.clip_length, depth=config.depth, heads=config.heads
        )

    def _see_with(self, clip: Any) -> None:
        super()._see_with(clip)
        if not isinstance(clip.visual_projection, nn.Linear):
            raise ValueError("ClipCap reads a CLIP's embedding, and this CLIP has no projection of images (it is a LiT): name another page")
        self.visual_projection.load_state_dict(clip.visual_projection.state_dict())

    def _tower(self, pixels: Tensor) -> Tensor:
        """CLIP's embedding of each image `[B, embed_dim]`."""
        return self.visual_projection(self.visual(pixels))

    def _prefix(self, states: Tensor) -> Tensor:
        return self.to_prefix(F.normalize(states, dim=-1) if self.config.normalise else states)
