"""The decoder: one causal transformer for both text and image tokens.

CM3leon's is OPT's (section 2.3 of arXiv 2309.02591): pre-norm, ReLU, learned positions, tied output embedding, and neither biases
nor gains in the norms. `chameleon` is the successor's (arXiv 2405.09818, sections 2.2 and 2.3): rotary positions, RMSNorm with gains,
SwiGLU, normalised queries and keys, an output layer of its own; `norm_after` moves the norms after attention and MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.shared.transformer import KeyValueCache, as_autocast, attend


@dataclass(frozen=True)
class DecoderConfig:
    width: int = 4096
    depth: int = 32
    heads: int = 32
    hidden: int = 16_384  # of the MLP
    positions: int = 4096  # rows of the learned table; rotary positions know no end
    chameleon: bool = False
    norm_after: bool = False  # chameleon only: Swin v2's placement of the norms, which its 34 B model needed
    norm_eps: float = 1e-5
    rotary_base: float = 10_000.0


class TokenDecoder(nn.Module):
    """Token ids -> the states from which the next tokens are predicted; `logits` turns states into scores of tokens."""

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = None if config.chameleon else nn.Parameter(torch.empty(config.positions, config.width))
        blocks = [DecoderBlock(config) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(config)
        self.head = nn.Linear(config.width, vocab_size, bias=False) if config.chameleon else None  # else tied
        self._initialise(blocks)

    def forward(
        self, ids: Tensor, places: Tensor, *, seen: Tensor | None = None, cache: Sequence[KeyValueCache] | None = None
    ) -> Tensor:  # [B, T] -> [B, T, D]
        """`places` `[B or 1, T]` are the tokens' positions. `seen` masks attention: bool `[B, S]` for all tokens, or `[B, T, S]` for each
        token. With a cache, ids continue the cached sequence, and S includes it."""
        x = self.tokens(ids)
        rotation = None
        if self.positions is None:
            rotation = _rotation(places, self.config.width // self.config.heads, self.config.rotary_base, x.dtype)
        else:
            x = x + F.embedding(places, self.positions)  # its gradient is found faster than that of an index
        x = as_autocast(x)  # the residual stream too, which saves time on a CPU
        bias = None if seen is None else _causal(ids.shape[1], seen, x.dtype) if seen.ndim == 2 else _bias(seen, x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation=rotation, bias=bias, cache=None if cache is None else cache[index])
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all tokens, `[..., D]` -> `[..., V]`."""
        return F.linear(states, as_autocast(self.output))  # cast here, or gradients of several calls would be summed in bf16

    @property
    def output(self) -> Tensor:
        """The output layer, a row for each token `[V, D]`."""
        return self.tokens.weight if self.head is None else self.head.weight

    def empty_cache(self, length: int) -> list[KeyValueCache]:
        return [KeyValueCache(length) for _ in self.blocks]

    def _initialise(self, blocks: list[DecoderBlock]) -> None:
        """Section 2.3: normal of deviation .006 cut at three of them, output layers of the residual branches zero, positions .0002.
        The deviation is for widths of a thousand and more; a narrower model gets one that keeps the sums as large."""
        deviation = 0.006 * max(1.0, 1024 / self.config.width)
        for matrix in self.parameters():
            if matrix.ndim == 2:
                nn.init.trunc_normal_(matrix, std=deviation, a=-3 * deviation, b=3 * deviation)
        for block in blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.down.weight)
            for norm in (block.attn.q_norm, block.attn.k_norm):
                if norm is not None:  # gains and biases [heads, D / heads] are matrices only by their shape
                    nn.init.ones_(norm.weight)
                    nn.init.zeros_(norm.bias)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.0002 * max(1.0, 1024 / self.config.width))


class DecoderBlock(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm_after = config.norm_after
        self.norm1 = _norm(config)
        self.attn = DecoderAttention(config)
        self.norm2 = _norm(config)
        self.mlp = SwiGLU(config) if config.chameleon else ReLUMLP(config)

    def forward(self, x: Tensor, *, rotation: Tensor | None, bias: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        if self.norm_after:
            x = x + self.norm1(self.attn(x, rotation=rotation, bias=bias, cache=cache))
            return x + self.norm2(self.mlp(x))
        x = x + self.attn(self.norm1(x), rotation=rotation, bias=bias, cache=cache)
        return x + self.mlp(self.norm2(x))


class DecoderAttention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)
        width = config.width // config.heads
        self.q_norm = HeadNorm(config.heads, width) if config.chameleon else None
        self.k_norm = HeadNorm(config.heads, width) if config.chameleon else None

    def forward(self, x: Tensor, *, rotation: Tensor | None, bias: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D / H]
        if self.q_norm is not None and self.k_norm is not None and rotation is not None:
            q, k, v = qkv
            qkv = torch.stack([_rotate(self.q_norm(q), rotation), _rotate(self.k_norm(k), rotation), v])
        q, k, v = qkv if cache is None else (qkv[0], *cache.append(qkv[1:]))
        cached = cache if q.shape[2] == 1 else None
        mixed = cached.attend(q, bias=bias) if cached else attend(q, k, v, causal=bias is None, mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ReLUMLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x), inplace=True))


class SwiGLU(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class HeadNorm(nn.Module):
    """Layer norm within each head, with gains and biases for each of its channels: query-key normalisation, `[B, H, T, D / H]`."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight[:, None].to(x.dtype) + self.bias[:, None].to(x.dtype)


def _norm(config: DecoderConfig) -> nn.Module:
    if config.chameleon:
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, elementwise_affine=False)


def _causal(new: int, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention bias `[B, 1, T, S]` for the last `new` of S positions: causal, and excluding positions where `seen` is False.

    A position always sees itself, or the softmax of padding would have nothing to sum over.
    """
    old = seen.shape[1] - new
    if new == 1:
        visible = F.pad(seen[:, :-1], (0, 1), value=True)[:, None]
    else:
        order = torch.ones(new, seen.shape[1], dtype=torch.bool, device=seen.device).tril(old)
        itself = torch.eye(new, dtype=torch.bool, device=seen.device)
        visible = (order & seen[:, None]) | F.pad(itself, (old, 0))
    return _bias(visible, dtype)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(visible, 0.0, float("-inf")).to(dtype)[:, None]


def _rotation(places: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """cos and sin of RoPE (arXiv 2104.09864) for places `[B, T]`, `[2, B, 1, T, width]`; the two halves of a head turn together."""
    frequencies = base ** (-torch.arange(0, width, 2, device=places.device).float() / width)
    angles = (places[..., None].float() * frequencies).repeat(1, 1, 2)[:, None]
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
