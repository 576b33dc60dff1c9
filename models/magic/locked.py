"""MAGIC through a CLIP of two locked encoders (models/clip/locked.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.clip import LockedCLIPConfig
from models.magic.model import MAGIC, MAGICConfig
from models.magic.search import Search
from models.shared.backbones import LanguageConfig


@dataclass(frozen=True)
class LockedMAGICConfig(MAGICConfig):
    clip: LockedCLIPConfig = field(default_factory=LockedCLIPConfig.real)  # type: ignore[assignment]

    @classmethod
    def real(cls) -> LockedMAGICConfig:
        """LiT on two published encoders, and SmolLM2. The search is the paper's for Flickr30k."""
        language = LanguageConfig(source="wheel:SmolLM2-135M-Instruct")
        return cls(language=language, vocab_size=49_152, search=Search(k=25, alpha=0.1, beta=2.0), limit=19)

    @classmethod
    def tiny(cls) -> LockedMAGICConfig:
        """Random encoders, for tests."""
        return cls(clip=LockedCLIPConfig.tiny(), search=Search(k=8, alpha=0.1, beta=2.0), limit=9)


class LockedMAGIC(MAGIC):
    Config = LockedMAGICConfig
