"""MAPL: a small transformer maps all states of a frozen CLIP into a frozen language model (Mañas et al., 2022, arXiv 2210.07179).

The mapper is ClipCap's, but between linear layers to and from a small inner width, and it reads all states instead of one embedding.

Deviations: `tiny` learns from questions as well as from captions, as Frozen's, and its CLIP has no class token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from models.clip import CLIPConfig
from models.frozen.clipcap import ConstantsMapper, OnFrozenCLIP
from models.frozen.model import FrozenConfig
from models.shared.backbones import LanguageConfig
from models.shared.transformer import TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, image_states


@dataclass(frozen=True)
class MAPLConfig(FrozenConfig):
    vision: VisionConfig = field(default_factory=lambda: CLIPConfig.vit_l14().vision)
    embed_dim: int = 768  # of the CLIP whose tower it is
    clip_source: str = ""  # published weights, such as open_clip:ViT-L-14/openai, in the place of a prerequisite
    mapper: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(width=256, depth=4, heads=8, activation="relu", mlp_ratio=2.0)
    )
    prefix: int = 32  # vectors an image becomes

    @classmethod
    def tiny(cls) -> MAPLConfig:
        mapper = TransformerConfig(width=64, depth=2, heads=4, activation="relu", mlp_ratio=2.0)
        return cls(vision=TINY_TOWER, embed_dim=128, mapper=mapper, prefix=8, questions=0.5)

    @classmethod
    def small(cls) -> MAPLConfig:
        """For one GPU: CLIP's `small`, a language model with rotary positions, and the paper's mapper."""
        clip = CLIPConfig.small()
        language = LanguageConfig(source="EleutherAI/pythia-410m")
        return cls(vision=clip.vision, embed_dim=clip.embed_dim, language=language, questions=0.5)

    @classmethod
    def paper(cls) -> MAPLConfig:
        """CLIP ViT-L/14 and GPT-J, frozen, and a mapper of 3.4 M parameters."""
        language = LanguageConfig(source="EleutherAI/gpt-j-6b")
        return cls(clip_source="open_clip:ViT-L-14/openai", language=language, vocab_size=50_400)


class StatesMapper(nn.Module):
    """Figure 2: down to the inner width, a transformer over states and constants, and up from the constants."""

    def __init__(self, seen: int, config: TransformerConfig, *, width: int, prefix: int) -> None:
        super().__init__()
        self.down = nn.Linear(seen, config.width)
        self.transformer = ConstantsMapper(config, prefix)
        self.up = nn.Linear(config.width, width)

    def forward(self, states: Tensor) -> Tensor:  # [B, N, seen] -> [B, prefix, width]
        return self.up(self.transformer(self.down(states)))


class MAPL(OnFrozenCLIP):
    Config = MAPLConfig
    builds_on = ("clip",)
    config: MAPLConfig

    def _bridge(self, features: int) -> nn.Module:
        return StatesMapper(features, self.config.mapper, width=self.width, prefix=self.config.prefix)

    def _tower(self, pixels: Tensor) -> Tensor:
        """The states of all patches and of the class token, before the tower's last norm, `[B, N, width]`."""
        return image_states(self.visual, pixels)

    def _prefix(self, states: Tensor) -> Tensor:
        return self.to_prefix(states)
