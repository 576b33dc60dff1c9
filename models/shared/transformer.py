"""Transformer layers shared by the models: attention, cross-attention, key-value cache and pre-norm blocks.

The image tower is in models/shared/vision.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "squared_relu", "gelu", "gelu_tanh", "quick_gelu"]


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    def __init__(self) -> None:
        super().__init__(approximate="tanh")


class SquaredReLU(nn.Module):
    """`max(x, 0) ** 2` (So et al., 2021, arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "squared_relu": SquaredReLU,
    "gelu": nn.GELU,
    "gelu_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
}


# -------------------------------------------------------------------------------------------------- transformer


@dataclass(frozen=True)
class TransformerConfig:
    width: int
    depth: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`. With a cache, x continues the cached sequence and also attends to it."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, H, D/H]
        q, k, v = apart(qkv)
        if cache is not None:
            k, v = cache.append(qkv.permute(2, 0, 3, 1, 4)[1:])
        return self.proj(attend(q, k, v, causal=causal, mask=mask).transpose(1, 2).flatten(2))


def apart(fused: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, or only two of them, `[B, H, T, D/H]` each, of a fused projection `[B, T, 3 or 2, H, D/H]`. Split in this
    order, their gradients are put together as the projection needs them, without another copy."""
    return tuple(part.transpose(1, 2) for part in fused.unbind(2))


class CrossAttention(nn.Module):
    """Attention from a sequence to a memory, whose keys and values can be computed once for many steps."""

    def __init__(self, width: int, heads: int, *, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], *, mask: Tensor | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`. x may also be `[1, T, D]`, one sequence (learned queries) for all rows of the memory. `mask`: see
        `attend`."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(attend(q.expand(len(memory[0]), -1, -1, -1), *memory, mask=mask).transpose(1, 2).flatten(2))

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, S, D/H]` of a memory `[B, S, M]`."""
        k, v = apart(self.kv(memory).unflatten(-1, (2, self.heads, -1)))
        return k, v


class KeyValueCache:
    """Keys and values of the positions that a self-attention layer has read, at most `length`.

    On a CPU, bf16 products copy operands that are not contiguous; float32 products do not. So in bf16 the buffer grows in small steps, and
    `attend` uses the whole buffer, including positions that are not filled yet.
    """

    STEP = 32  # positions by which the buffer grows, in bf16 on a CPU

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0
        self._held: Tensor | None = None  # [2, B, H, room, D/H]

    def append(self, kv: Tensor) -> Tensor:
        """Append keys and values `[2, B, H, T, D/H]` and return those of all positions. Raises ValueError if the cache is full."""
        end = self.filled + kv.shape[3]
        if end > self.length:
            raise ValueError(f"{end} positions do not fit into a cache for {self.length}")
        if self._held is None or end > self._held.shape[3]:
            room = min(self.length, math.ceil(end / self.STEP) * self.STEP) if _by_hand(kv) else self.length
            held = _room(kv, kv.shape[1], room)
            if self._held is not None:
                held[:, :, :, : self.filled] = self._held[:, :, :, : self.filled]
            self._held = held
        self._held[:, :, :, self.filled : end] = kv
        self.filled = end
        return self._held[:, :, :, :end]

    def attend(self, q: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Attention from one query per row `[B, H, 1, D/H]` to all cached positions; `bias` `[B, 1, 1, S]` is added to the logits."""
        assert self._held is not None
        if not _by_hand(q):
            k, v = self._held[:, :, :, : self.filled]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        k, v = self._held
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # [B, H, 1, room]
        logits[..., self.filled :] = float("-inf")
        if bias is not None:
            logits[..., : self.filled] += bias
        return logits.softmax(dim=-1) @ v

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may occur several times."""
        if self._held is not None:
            held = _room(self._held, len(rows), self._held.shape[3])
            held[:, :, :, : self.filled] = self._held[:, rows, :, : self.filled]
            self._held = held


def _by_hand(x: Tensor) -> bool:
    """Whether to write out attention for the dtype of x: torch's fused kernel for bf16 is much slower on a CPU."""
    return x.device.type == "cpu" and x.dtype != torch.float32


def _room(like: Tensor, rows: int, positions: int) -> Tensor:
    """A buffer `[2, rows, H, positions, D/H]`, filled with zeros if attention uses all of it."""
    shape = (2, rows, like.shape[2], positions, like.shape[4])
    return like.new_zeros(shape) if _by_hand(like) else like.new_empty(shape)


def as_autocast(x: Tensor) -> Tensor:
    """Cast x to the dtype of autocast; without autocast, return x. Norms return float32 under autocast, so cast features for an
    `objective`, which uses their dtype, and on a CPU also the input of a residual stream, which then costs half."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def autocast_like(x: Tensor) -> torch.autocast:
    """An autocast context for layers in an `objective`, which is called outside autocast: enabled if `encode` returned x in bfloat16."""
    return torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention from q `[B, H, T, D]` to k and v `[B, H, S, D]`.

    With `causal`, the queries are the last T of the S positions and attend only to themselves and earlier positions. Alternatively, `mask`
    `[B or 1, 1, T, S]` is True where a query may attend or, if it is not bool, is added to the logits.
    """
    if causal and q.shape[2] == 1:
        causal = False  # the newest position sees everything
    elif causal and q.shape[2] != k.shape[2]:  # the fused kernel would align the first positions
        causal, mask = False, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    if not _by_hand(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, T, S]
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ v


class Block(nn.Module):
    """Pre-norm residual block: attention, then a two-layer MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), causal=causal, mask=mask, cache=cache)
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))
