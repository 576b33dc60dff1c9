"""SLIP: CLIP, and a SimCLR loss on two further views of each picture through the same tower (Mu et al., 2021, arXiv 2112.12750).

Deviations: the views are never such that a caption would turn false, see views.py (the paper mirrors and recolours all; `careful=False` of
the view does, too), and blur grows with the size of a view. CLIP's own view is a random square crop, here as in CLIP, with a side of .7 or
more where the paper keeps at least half of the area. At `tiny` it is the whole picture, and the further views are a quarter of its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.fields import require
from data.sample import Sample
from models.clip.model import CLIP, CLIPConfig
from models.clip.projector import projector
from models.clip.views import View, seen
from models.contract import Losses
from models.shared.collate import PairCollate
from models.shared.distributed import gather, rank
from models.shared.images import ImageTransform, normalise
from models.shared.text import Tokenizer
from models.shared.vision import VisionConfig


@dataclass(frozen=True)
class ViewsConfig(CLIPConfig):
    """CLIP with further views: the base of SLIP's, CLIP-rocket's and DeCLIP's configuration."""

    view: View = field(default_factory=View)

    def __post_init__(self) -> None:
        super().__post_init__()
        patch = self.vision.patch_size
        whole = self.view.size % patch == 0
        require(whole, "view.size", self.view.size, f"a multiple of the patch size, {patch} pixels")
        require(not self.frozen, "frozen", self.frozen, "False: a locked image tower learns nothing from further views of a picture")


@dataclass(frozen=True)
class SLIPConfig(ViewsConfig):
    hidden: int = 4096
    ssl_dim: int = 256
    ssl_temperature: float = 0.1  # fixed
    ssl_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ssl_temperature > 0, "ssl_temperature", self.ssl_temperature, "a number above 0")
        require(self.ssl_weight >= 0, "ssl_weight", self.ssl_weight, "0 or more")

    @classmethod
    def tiny(cls) -> SLIPConfig:
        return replace(super().tiny(), view=View(size=32), hidden=512, ssl_dim=128)

    @classmethod
    def small(cls) -> SLIPConfig:
        return replace(super().small(), view=View(size=128), hidden=2048)

    @classmethod
    def paper(cls) -> SLIPConfig:
        """ViT-B/16: 170,616,321 parameters, 149,619,969 without the head."""
        return cls(vision=slip_tower(width=768, depth=12, heads=12), random_crop=0.7)

    @classmethod
    def vit_s16(cls) -> SLIPConfig:
        return replace(cls.paper(), vision=slip_tower(width=384, depth=12, heads=12))

    @classmethod
    def vit_l16(cls) -> SLIPConfig:
        return replace(cls.paper(), vision=slip_tower(width=1024, depth=24, heads=16))


def slip_tower(*, width: int, depth: int, heads: int) -> VisionConfig:
    """timm's ViT as it is, with patches of 16 pixels: without CLIP's norm before the first block."""
    return VisionConfig(width=width, depth=depth, heads=heads, image_size=224, patch_size=16, norm_eps=1e-6)


@dataclass(frozen=True)
class TwoViews(PairCollate):
    """CLIP's batch, and uint8 "view1" and "view2" `[B, 3, V, V]`. Without a generator they are drawn with seed 0."""

    view: View = field(default_factory=View)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        pairs = super().__call__(samples, rng)  # drawn first: the same pairs as CLIP's
        draw = rng or np.random.default_rng(0)
        return pairs | {name: self.view.batch(samples, draw) for name in ("view1", "view2")}


class SLIP(CLIP):
    Config = SLIPConfig
    config: SLIPConfig

    def __init__(self, config: SLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        self.collate = TwoViews(transform, tokenizer, config.context, view=config.view)
        self.ssl_head = projector(config.vision.width, config.hidden, config.hidden, config.ssl_dim)
        accept_any_size(self)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's features, and the tower's of both views before any projection, float32 `[B, vision.width]`."""
        one, other = see(self, batch["view1"], batch["view2"])
        return super().encode(batch) | {"view1": one, "view2": other}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """L = L_CLIP + weight * L_SSL. The head is here and not in `encode`, because its BatchNorm couples the rows."""
        contrast = super().objective(features)
        one, other = (F.normalize(self.ssl_head(features[name]), dim=-1) for name in ("view1", "view2"))  # each view by itself
        loss, chance = nt_xent(one, other, self.config.ssl_temperature)
        weights = {"image_to_text": 0.5, "text_to_image": 0.5, "ssl": self.config.ssl_weight}
        return Losses.weighted(contrast.terms | {"ssl": loss}, weights, {**contrast.chance, "ssl": chance})

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.config.max_scale))


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, float]:
    """SimCLR's loss and its value at chance: among the 2B - 1 other views of the batch, each view has to find that of the same picture.

    one, other: unit vectors of both views of this rank's pictures `[b, D]`. The mean over ranks is the loss of all 2B views.
    """
    b = len(one)
    all_one, all_other = gather(one), gather(other)  # [B, D]
    own = rank() * b + torch.arange(b, device=one.device)
    itself = torch.arange(len(all_one), device=one.device) == own[:, None]  # [b, B]
    losses = []
    for mine, same, opposite in ((one, all_one, all_other), (other, all_other, all_one)):
        others = (mine @ same.T).masked_fill(itself, float("-inf"))
        losses.append(F.cross_entropy(torch.cat([mine @ opposite.T, others], dim=1) / temperature, own))
    return torch.stack(losses).mean(), math.log(2 * len(all_one) - 1)


# ------------------------------------------------------------------------------------- shared with CLIP-rocket and DeCLIP


def accept_any_size(model: CLIP) -> None:
    """timm's patch embedding refuses pictures of another size than the tower's, which `seen` handles."""
    if hasattr(model.visual.patch_embed, "strict_img_size"):
        model.visual.patch_embed.strict_img_size = False


def see(model: CLIP, *views: Tensor) -> tuple[Tensor, ...]:
    """The tower's features, float32 `[B, vision.width]` each, of views that are uint8 `[B, 3, V, V]`, all of one size."""
    pixels = normalise(torch.cat(views), model.config.mean, model.config.std)
    return seen(model.visual, pixels, model.config.vision.patch_size).float().chunk(len(views))
