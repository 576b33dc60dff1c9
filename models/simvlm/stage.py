"""The convolution stage: images to patch tokens, without a detector (section 3.3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from timm.layers import PatchEmbed
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from data.fields import require
from models.shared.vision import ConvStem

RESNET_STRIDE, RESNET_WIDTH = 16, 1024  # of the third stage


@dataclass(frozen=True)
class StageConfig:
    """ "resnet" is the paper's, "conv" the convolutional stem of small presets, "patch" ViT's linear patch embedding."""

    kind: Literal["resnet", "conv", "patch"] = "resnet"
    layers: tuple[int, int, int] = (3, 4, 23)  # bottlenecks of each of ResNet's stages: ResNet-101
    image_size: int = 224
    patch_size: int = 16

    @property
    def side(self) -> int:
        """Patch tokens per side of an image."""
        return self.image_size // self.patch_size


def image_stage(config: StageConfig, width: int) -> nn.Module:
    """Build a stage that maps normalised pixels `[B, 3, S, S]` to patch tokens `[B, N, width]`.

    Raises ValueError if patches do not tile the image, or if a ResNet's would not be 16 pixels wide.
    """
    size, patch = config.image_size, config.patch_size
    require(size % patch == 0, "--model.stage.image-size", size, f"a multiple of the patch size, {patch}")
    if config.kind == "resnet":
        expected = f"{RESNET_STRIDE}: the third stage of a ResNet has one token per {RESNET_STRIDE} pixels"
        require(patch == RESNET_STRIDE, "--model.stage.patch-size", patch, expected)
        return ResNetStage(config.layers, width)
    stem: Any = ConvStem if config.kind == "conv" else PatchEmbed
    return stem(img_size=size, patch_size=patch, embed_dim=width)


class ResNetStage(nn.Module):
    """ResNet's stem and first three stages, and a linear layer to the transformer's width, `[B, 3, S, S]` -> `[B, (S / 16)^2, D]`.

    Its norms are group norms, because batch statistics would differ between micro-batches, ranks and the full batch. They have as many
    parameters as batch norms.
    """

    def __init__(self, layers: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.resnet = ResNet(Bottleneck, layers=(*layers, 1), num_classes=0, norm_layer="groupnorm")
        self.resnet.layer4 = nn.Identity()
        self.proj = nn.Linear(RESNET_WIDTH, width)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(self.resnet.forward_features(pixels).flatten(2).transpose(1, 2))
