"""SimVLM's transformer: a bidirectional encoder reads the prefix, a causal decoder with cross-attention predicts the rest.

The paper does not describe the layers beyond their sizes. These are T5's (arXiv 1910.10683): pre-norm, RMSNorm, no biases, the
output layer tied to the embedding. Positions are SimVLM's own: learned ones for images and texts, and in the encoder relative ones
between image tokens. Attention has the usual scale, which T5 leaves to the initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import RelPosBias, build_sincos2d_pos_embed
from torch import Tensor, nn

from data.fields import require
from models.shared import device
from models.shared.prefix import PADDING
from models.shared.transformer import ACTIVATIONS, Activation, KeyValueCache, as_autocast, attend

Memory = tuple[Tensor, Tensor]  # keys and values of the prefix, each [B, H, S, D/H]


@dataclass(frozen=True)
class EncoderDecoderConfig:
    width: int = 768
    depth: int = 12  # of the encoder
    decoder_depth: int = 12
    heads: int = 12
    activation: Activation = "relu"
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6


class Prefix(NamedTuple):
    """What the encoder has read."""

    states: Tensor
    """`[B, S, D]`"""
    seen: Tensor
    """bool `[B, S]`, False for padding and for images that are not shown"""
    length: Tensor
    """int64 `[B]`, text tokens in the prefix: the place where the decoder goes on"""


class EncoderDecoder(nn.Module):
    """Figure 1 of the paper, without the convolution stage. Embedding and output layer are shared by encoder and decoder."""

    def __init__(self, config: EncoderDecoderConfig, *, side: int, vocab_size: int, context: int) -> None:
        super().__init__()
        require(config.width % 4 == 0, "--model.transformer.width", config.width, "a multiple of 4, for the positions of images")
        self.scale = math.sqrt(config.width)  # T5's embeddings are of unit scale; these are, after this factor
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(2 * context, config.width))  # a full prefix and a full text after it
        self.image_positions = nn.Parameter(build_sincos2d_pos_embed([side, side], config.width))
        self.relative = RelPosBias((side, side), config.heads)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.encoder_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self._initialise()

    def read(self, image: Tensor | None, prefix: Tensor, shown: Tensor | None = None) -> Prefix:
        """The encoder: patch tokens `[B, N, D]`, if any, and the ids of a text's beginning `[B, P]`, filled up with `PADDING`.

        Rows that are not `shown` (bool `[B]`) do not see their image. A row without both image and text has nothing to attend to.
        """
        seen = prefix != PADDING
        length = seen.sum(dim=1)
        x = self.embed(prefix.clamp(min=0), torch.arange(1, prefix.shape[1] + 1, device=prefix.device)[None])
        bias: Tensor | None = None
        if image is not None:
            x = torch.cat([as_autocast(image + self.image_positions), x], dim=1)  # [B, N + P, D]
            looked = seen.new_ones(len(seen), image.shape[1]) if shown is None else shown[:, None].expand(-1, image.shape[1])
            seen = torch.cat([looked, seen], dim=1)
            text = prefix.shape[1]
            bias = F.pad(self.relative.get_bias(), (0, text, 0, text)).to(x.dtype)  # [1, H, N + P, N + P]
        mask = _mask(seen)
        if bias is not None and mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        for block in self.encoder:
            x = block(x, mask=mask if bias is None else bias)
        return Prefix(self.encoder_norm(x), seen, length)

    def remember(self, prefix: Prefix) -> list[Memory]:
        """Each decoder layer's keys and values of a prefix."""
        return [block.remember(prefix.states) for block in self.decoder]  # type: ignore[operator]

    def predict(
        self,
        ids: Tensor,
        places: Tensor,
        memories: Sequence[Memory],
        seen: Tensor,
        *,
        sees: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """The decoder: start token and text `[B, T]` at their places `[B, T]` in the whole text -> logits of each next token `[B, T, V]`.

        `seen` is the prefix's. Attention to the text is causal unless given by `sees`, bool `[B, T, T]`.
        """
        x, mask = self.embed(ids, places), _mask(seen)
        for index, (block, memory) in enumerate(zip(self.decoder, memories, strict=True)):
            cache = None if caches is None else caches[index]
            x = block(x, memory, mask=mask, sees=None if sees is None else sees[:, None], cache=cache)
        return F.linear(self.norm(x), as_autocast(self.tokens.weight))

    def embed(self, ids: Tensor, places: Tensor) -> Tensor:
        """The n-th token of a text, counted from 1, is at place n, on either side of the cut. The start token takes the place of the last
        token before it."""
        return as_autocast((self.tokens(ids) + F.embedding(places, self.positions)) * self.scale)

    def _initialise(self) -> None:
        """Residual branches end in zeros, so that blocks start as the identity."""
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "fc2.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith(("qkv.weight", "q.weight", "kv.weight", "fc1.weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)


class EncoderBlock(nn.Module):
    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attn = SelfAttention(config)
        self.norm2 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, *, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attn = SelfAttention(config)
        self.norm2 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config)
        self.norm3 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, memory: Memory, *, mask: Tensor | None, sees: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        x = x + self.attn(self.norm1(x), causal=sees is None, mask=sees, cache=cache)
        x = x + self.cross(self.norm2(x), memory, mask=mask)
        return x + self.mlp(self.norm3(x))

    def remember(self, states: Tensor) -> Memory:
        return self.cross.remember(states)


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`; `mask` as in `attend`. With a cache, x continues the cached sequence."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D/H]
        q, k, v = qkv if cache is None else (qkv[0], *cache.append(qkv[1:]))
        return self.proj(attend(q, k, v, causal=causal, mask=mask).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.kv = nn.Linear(config.width, 2 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, memory: Memory, *, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(attend(q, *memory, mask=mask).transpose(1, 2).flatten(2))

    def remember(self, states: Tensor) -> Memory:
        """Keys and values `[B, H, S, D/H]` of states `[B, S, D]`."""
        k, v = self.kv(states).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v


class MLP(nn.Module):
    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden, bias=False)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _mask(seen: Tensor) -> Tensor | None:
    """Attention mask `[B, 1, 1, S]` of a sequence in which not everything is seen; None if the host knows that everything is."""
    return None if device.host_knows(seen) and bool(seen.all()) else seen[:, None, None]


class Writer:
    """Text generation after a prefix: implements `Decoder` of models/shared/generate.py, with a cache for `length` tokens per row."""

    def __init__(self, model: EncoderDecoder, prefix: Prefix, length: int) -> None:
        self.model, self.seen, self.places = model, prefix.seen, prefix.length
        self.memories = model.remember(prefix)
        self.caches = [KeyValueCache(length) for _ in model.decoder]
        self.prefixes = torch.arange(len(prefix.seen), device=prefix.seen.device)  # which prefix each row continues

    def step(self, tokens: Tensor) -> Tensor:
        """Read the start token or one that was written, `[N]` -> logits of the next one `[N, V]`."""
        logits = self.model.predict(tokens[:, None], self.places[:, None], self.memories, self.seen, caches=self.caches)
        self.places = self.places + 1
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        for cache in self.caches:
            cache.select(rows)
        prefixes = self.prefixes[rows]
        if not torch.equal(prefixes, self.prefixes):  # beams that change places continue the same prefix as before
            self.memories = [(k[rows], v[rows]) for k, v in self.memories]
            self.seen, self.places, self.prefixes = self.seen[rows], self.places[rows], prefixes
