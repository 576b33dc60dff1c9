"""MaskVLM's post-norm blocks: BERT's layer, optionally with cross-attention to the other modality after self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.shared.transformer import ACTIVATIONS, Attention, CrossAttention, TransformerConfig


class PostNormBlock(nn.Module):
    """Attention, then (with `memory_width`) attention to the other modality, then an MLP, each followed by a norm."""

    def __init__(self, config: TransformerConfig, *, memory_width: int = 0) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config.width, config.heads, memory_width=memory_width) if memory_width else None
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps) if memory_width else None
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)
        self.norm3 = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, real: Tensor | None = None, memory: Tensor | None = None, memory_real: Tensor | None = None) -> Tensor:
        """x `[B, T, D]`, memory `[B, S, M]`; `real` and `memory_real` `[B, T]` and `[B, S]` are False at padding (None: there is none)."""
        x = self.norm1(x + self.attn(x, mask=_mask(real)))
        if self.cross is not None and self.norm2 is not None and memory is not None:
            x = self.norm2(x + self.cross(x, self.cross.remember(memory), mask=_mask(memory_real)))
        return self.norm3(x + self.fc2(self.act(self.fc1(x))))


class CrossEncoder(nn.Module):
    """Blocks in which one modality attends to the other (section 3.1)."""

    def __init__(self, config: TransformerConfig, *, memory_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock(config, memory_width=memory_width) for _ in range(config.depth))

    def forward(self, x: Tensor, memory: Tensor, *, real: Tensor | None = None, memory_real: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, real, memory, memory_real)
        return x


class TextEncoder(nn.Module):
    """RoBERTa in shape: summed embeddings, a norm, post-norm blocks."""

    def __init__(self, config: TransformerConfig, *, rows: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.depth))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:  # [B, T] -> [B, T, D]
        x = self.norm(self.tokens(ids) + self.positions[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, real)
        return x


def _mask(real: Tensor | None) -> Tensor | None:
    return None if real is None else real[:, None, None]
