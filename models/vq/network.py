"""The convolutional encoder and decoder of VQ-GAN (Esser et al., 2020, arXiv 2012.09841), as Chameleon's tokenizer has them.

`norm="none"` is the small presets' variant: no normalisation, ReLU, residual branches that start at zero. On a CPU group
normalisation takes four times as long as the convolution that follows it, and its small networks train as well without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require


@dataclass(frozen=True)
class NetworkConfig:
    image_size: int = 256
    patch: int = 1  # pixels per side that are folded into channels before the first convolution, and unfolded after the last
    width: int = 128  # channels at full resolution
    multiplier: tuple[int, ...] = (1, 2, 2, 4)  # channels of each level over `width`; each level but the last halves the side
    blocks: int = 2  # residual blocks a level; the decoder has one more
    latent: int = 256  # channels of the latents
    norm: Literal["group", "none"] = "group"
    middle: bool = True  # blocks between encoder and latents, and latents and decoder; without them a token covers only its neighbourhood
    attention: bool = True  # self-attention over the cells in the middle

    def __post_init__(self) -> None:
        require(1 <= self.patch <= 64, "network.patch", self.patch, "1 to 64 pixels")
        require(1 <= len(self.multiplier) <= 10, "network.multiplier", self.multiplier, "1 to 10 levels")
        expected = f"a multiple of {self.reduction}, the side of a token's cell"
        require(self.image_size % self.reduction == 0, "network.image_size", self.image_size, expected)

    @property
    def reduction(self) -> int:
        """Side of a cell in pixels."""
        return self.patch * 2 ** (len(self.multiplier) - 1)


class Encoder(nn.Module):
    """Pixels in [-1, 1] `[B, 3, S, S]` -> latents `[B, latent, S / reduction, S / reduction]`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multiplier]
        self.fold = nn.PixelUnshuffle(config.patch)
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        previous = config.width
        for level, width in enumerate(widths):
            layers: list[nn.Module] = []
            for _ in range(config.blocks):
                layers.append(ResidualBlock(previous, width, config.norm))
                previous = width
            if level < len(widths) - 1:
                layers.append(Downsample(width))
            self.down.append(nn.Sequential(*layers))
        self.middle = _middle(previous, config)
        self.norm_out = _norm(previous, config.norm)
        self.act = _activation(config.norm)
        self.conv_out = nn.Conv2d(previous, config.latent, 3, padding=1)
        _initialise(self, config.norm)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(self.fold(pixels).contiguous(memory_format=torch.channels_last))
        for level in self.down:
            x = level(x)
        return self.conv_out(self.act(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latents `[B, latent, h, w]` -> pixels, not bounded, `[B, 3, S, S]`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multiplier]
        previous = widths[-1]
        self.conv_in = nn.Conv2d(config.latent, previous, 3, padding=1)
        self.middle = _middle(previous, config)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            layers: list[nn.Module] = []
            for _ in range(config.blocks + 1):
                layers.append(ResidualBlock(previous, width, config.norm))
                previous = width
            if level:
                layers.append(Upsample(width))
            self.up.append(nn.Sequential(*layers))
        self.norm_out = _norm(previous, config.norm)
        self.act = _activation(config.norm)
        self.conv_out = nn.Conv2d(previous, 3 * config.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.patch)
        _initialise(self, config.norm)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents.contiguous(memory_format=torch.channels_last)))
        for level in self.up:
            x = level(x)
        return self.unfold(self.conv_out(self.act(self.norm_out(x))))


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int, norm: str) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, norm)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out, norm)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.act = _activation(norm)
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.act(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.act(self.norm2(hidden)))


class CellAttention(nn.Module):
    """Single-head self-attention over the cells, `[B, C, h, w]`."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.norm = _norm(width, norm)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, h * w, C]
        mixed = ((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)).softmax(dim=-1) @ v
        return x + self.proj(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as in the released weights


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(width: int, config: NetworkConfig) -> nn.Module:
    if not config.middle:
        return nn.Identity()
    attention = CellAttention(width, config.norm) if config.attention else nn.Identity()
    return nn.Sequential(ResidualBlock(width, width, config.norm), attention, ResidualBlock(width, width, config.norm))


def _norm(width: int, norm: str) -> nn.Module:
    return nn.GroupNorm(32, width, eps=1e-6) if norm == "group" else nn.Identity()


def _activation(norm: str) -> nn.Module:
    return nn.SiLU() if norm == "group" else nn.ReLU()


def _initialise(module: nn.Module, norm: str) -> None:
    module.to(memory_format=torch.channels_last)
    if norm == "group":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for layer in module.modules():
        if isinstance(layer, ResidualBlock):
            nn.init.zeros_(layer.conv2.weight)
