"""FLAVA's encoders and heads, but for the image encoder, which is timm's vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.shared.transformer import ACTIVATIONS, Block, TransformerConfig


class TextEncoder(nn.Module):
    """BERT's embeddings, then the image encoder's pre-norm blocks (section 3.1)."""

    def __init__(self, config: TransformerConfig, *, rows: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.segments = nn.Parameter(torch.empty(2, config.width))  # BERT's; captions are all of the first
        self.norm_tokens = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        for table in (self.tokens.weight, self.positions, self.segments):
            nn.init.normal_(table, std=0.02)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """Texts `[B, T]`, `real` where they are not padding -> states before the last norm `[B, T, D]`."""
        x = self.norm_tokens(self.tokens(ids) + self.segments[0] + self.positions[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask=real[:, None, None])
        return x


class Fusion(nn.Module):
    """Self-attention over [class; image states; text states], each projected to its width (section 3.1)."""

    def __init__(self, config: TransformerConfig, *, image_width: int, text_width: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, config.width)
        self.text = nn.Linear(text_width, config.width)
        self.cls_token = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """Image states `[B, I, D_I]`, text states `[B, T, D_T]` -> `[B, 1 + I + T, D]`."""
        x = torch.cat([self.cls_token.expand(len(image), 1, -1), self.image(image), self.text(text)], dim=1)
        always = torch.ones(len(image), 1 + image.shape[1], dtype=torch.bool, device=real.device)
        mask = torch.cat([always, real], dim=1)[:, None, None]
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


class PredictionHead(nn.Sequential):
    """Linear, GELU, norm, linear: one of its own for each of the four masked predictions, and one for answers."""

    def __init__(self, config: TransformerConfig, classes: int) -> None:
        super().__init__(
            nn.Linear(config.width, config.width),
            ACTIVATIONS[config.activation](),
            nn.LayerNorm(config.width, eps=config.norm_eps),
            nn.Linear(config.width, classes),
        )


class MatchingHead(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
