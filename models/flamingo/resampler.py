"""The Perceiver resampler (section 3.1, figure 5): any number of image features become a fixed number of latent vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.shared.transformer import ACTIVATIONS, Activation, TransformerConfig, attend


class FeedForward(nn.Sequential):
    """Pre-norm MLP of one hidden layer, without biases."""

    def __init__(self, width: int, hidden: int, activation: Activation, eps: float) -> None:
        super().__init__(
            nn.LayerNorm(width, eps=eps),
            nn.Linear(width, hidden, bias=False),
            ACTIVATIONS[activation](),
            nn.Linear(hidden, width, bias=False),
        )


class PerceiverAttention(nn.Module):
    """Attention from the latents to the features and to themselves: keys and values are those of both, concatenated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_media = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.norm_latents = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, latents: Tensor, media: Tensor) -> Tensor:
        """`[N, L, D]` and `[N, S, D]` -> `[N, L, D]`."""
        latents, media = self.norm_latents(latents), self.norm_media(media)
        q = self.q(latents).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, H, L, D/H]
        kv = self.kv(torch.cat([media, latents], dim=1)).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # [N, H, S + L, D/H]
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class PerceiverResampler(nn.Module):
    def __init__(self, config: TransformerConfig, latents: int, features: int) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.enter = _enter(features, config.width)
        self.latents = nn.Parameter(torch.randn(latents, config.width) * config.width**-0.5)
        self.blocks = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(config), FeedForward(config.width, hidden, config.activation, config.norm_eps)])
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, media: Tensor) -> Tensor:
        """Image features `[N, S, F]` -> `[N, latents, D]`."""
        media = self.enter(media)
        x = self.latents.expand(len(media), -1, -1)
        attention: nn.Module
        feed_forward: nn.Module
        for attention, feed_forward in self.blocks:  # type: ignore[misc]
            x = x + attention(x, media)
            x = x + feed_forward(x)
        return self.norm(x)


class PatchMLP(nn.Module):
    """The paper's comparison (table 3, iv): an MLP for the mean of the features; its output is cut into the latents."""

    def __init__(self, config: TransformerConfig, latents: int, features: int) -> None:
        super().__init__()
        self.latents = latents
        self.enter = _enter(features, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.hidden = nn.Linear(config.width, int(config.width * config.mlp_ratio))
        self.act = ACTIVATIONS[config.activation]()
        self.out = nn.Linear(int(config.width * config.mlp_ratio), latents * config.width)

    def forward(self, media: Tensor) -> Tensor:
        """`[N, S, F]` -> `[N, latents, D]`."""
        mean = self.norm(self.enter(media)).mean(dim=1)
        return self.out(self.act(self.hidden(mean))).unflatten(-1, (self.latents, -1))


def _enter(features: int, width: int) -> nn.Module:
    """A projection where the image encoder has another width."""
    return nn.Identity() if features == width else nn.Linear(features, width, bias=False)
