"""CoCa's attentional poolers: learned queries that attend to the image tokens (section 3.2 of the paper)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.shared.transformer import CrossAttention
from models.shared.vision import VisionConfig

Pooling = Literal["cascade", "parallel", "single"]


class AttentionalPooler(nn.Module):
    """One attention layer whose queries are learned, `[B, N, M]` -> `[B, queries, D]`."""

    def __init__(self, queries: int, width: int, heads: int, *, memory_width: int, norm_eps: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.norm_query = nn.LayerNorm(width, eps=norm_eps)
        self.norm_memory = nn.LayerNorm(memory_width, eps=norm_eps)
        self.attn = CrossAttention(width, heads, memory_width=memory_width)
        for layer in (self.attn.q, self.attn.kv, self.attn.proj):  # queries that differ from the start: with smaller weights all average
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.norm_query(self.query)[None], self.attn.remember(self.norm_memory(x)))


class ImagePooling(nn.Module):
    """Pool the encoder's tokens `[B, N, M]` to one contrastive feature `[B, D]` and image tokens for the decoder `[B, queries, D]`.

    cascade (the paper's choice): the contrastive query attends to the outputs of the generative queries. parallel: both attend to
    the encoder. single (open_clip's released models): one pooler, whose first token is the feature, followed by a norm.
    """

    def __init__(self, vision: VisionConfig, *, pooling: Pooling, queries: int, width: int, heads: int) -> None:
        super().__init__()
        self.pooling = pooling

        def pooler(count: int, memory_width: int) -> AttentionalPooler:
            return AttentionalPooler(count, width, heads, memory_width=memory_width, norm_eps=vision.norm_eps)

        self.generative = pooler(queries, vision.width)
        if pooling == "single":
            self.norm = nn.LayerNorm(width, eps=vision.norm_eps)
        else:
            self.contrastive = pooler(1, width if pooling == "cascade" else vision.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.generative(x)
        if self.pooling == "single":
            tokens = self.norm(tokens)
            return tokens[:, 0], tokens[:, 1:]
        return self.contrastive(tokens if self.pooling == "cascade" else x)[:, 0], tokens
