"""CoCa's text decoder: a causal transformer whose first half reads only text and whose second half also attends to the image."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.shared.text import Tokenizer
from models.shared.transformer import ACTIVATIONS, Attention, Block, CrossAttention, KeyValueCache, TransformerConfig

Memory = tuple[Tensor, Tensor]  # keys and values of the image tokens, each [B, H, S, D/H]


class TextDecoder(nn.Module):
    """Section 3.2 of the paper. The state of a learned class token, appended to the text, is the text's feature.

    `config.depth` layers are unimodal, `multimodal_depth` multimodal. For `second_mlp` and `shifted_mask` see `CoCaConfig`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        multimodal_depth: int,
        vocab_size: int,
        context: int,
        tokenizer: Tokenizer,
        second_mlp: bool,
        shifted_mask: bool,
    ) -> None:
        super().__init__()
        self.tokenizer, self.shifted_mask = tokenizer, shifted_mask
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.cls_token = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Parameter(torch.empty(context + 1, config.width))  # the last is the class token's
        self.unimodal = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm_cls = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.multimodal = nn.ModuleList(MultimodalBlock(config, second_mlp=second_mlp) for _ in range(multimodal_depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self._initialise(config)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Texts `[B, T]` -> their states without the image `[B, T, D]`, and the class token's `[B, D]`."""
        cls = (self.cls_token + self.positions[-1]).expand(len(ids), 1, -1)
        x = torch.cat([self.embed(ids), cls], dim=1)  # [B, T + 1, D]
        mask = self._mask(ids)
        for block in self.unimodal:
            x = block(x, mask=mask)
        return x[:, :-1], self.norm_cls(x[:, -1])

    def look(self, x: Tensor, image: Tensor, *, sees: Tensor | None = None) -> Tensor:
        """States of texts `[B, T, D]` and image tokens `[B, S, D]` -> logits of each next token `[B, T, V]`. Attention is causal unless
        given by `sees`, bool `[B, T, T]`."""
        for block in self.multimodal:
            x = block(x, block.remember(image), mask=None if sees is None else sees[:, None])  # type: ignore[operator]
        return self.predict(x)

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Tokens `[B, T]` at the places from `first` on -> `[B, T, D]`."""
        return self.tokens(ids) + self.positions[first : first + ids.shape[1]]

    def predict(self, x: Tensor) -> Tensor:
        """States of the last layer `[..., D]` -> logits of the next token `[..., V]`."""
        return self.head(self.norm(x))

    def real(self, ids: Tensor) -> Tensor:
        """Where `[B, T]` is text: up to the first end token after the start, regardless of the padding id; everywhere if there is no end
        yet."""
        ends = F.pad((ids[:, 1:] == self.tokenizer.end).int(), (1, 0))  # the start may be the same token as the end
        return ends.cumsum(dim=1) == ends

    def _mask(self, ids: Tensor) -> Tensor:
        """Causal attention mask that excludes padding, `[B, 1, T + 1, T + 1]`."""
        real, always = self.real(ids), torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
        seen = torch.cat([always, real] if self.shifted_mask else [real, always], dim=1)
        past = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=ids.device).tril()
        return (past & seen[:, None])[:, None]

    def _initialise(self, config: TransformerConfig) -> None:
        width, residual = config.width, config.width**-0.5 * (2 * config.depth) ** -0.5
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.cls_token, std=0.01)
        nn.init.normal_(self.positions, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith(("q.weight", "kv.weight")):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith(("proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=residual)
            elif name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)
        nn.init.normal_(self.head.weight, std=width**-0.5)


class MultimodalBlock(nn.Module):
    """Pre-norm: attention to the text so far, attention to the image, MLP."""

    def __init__(self, config: TransformerConfig, *, second_mlp: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.mlp1 = MLP(config) if second_mlp else None
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.norm_memory = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config.width, config.heads, memory_width=config.width)
        self.mlp2 = MLP(config)

    def forward(self, x: Tensor, memory: Memory, *, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), causal=mask is None, mask=mask, cache=cache)
        if self.mlp1 is not None:
            x = x + self.mlp1(x)
        x = x + self.cross(self.norm2(x), memory)
        return x + self.mlp2(x)

    def remember(self, image: Tensor) -> Memory:
        return self.cross.remember(self.norm_memory(image))


class MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))


class Layers(Protocol):
    """A text decoder as `Writer` uses it: layers that read only text, then layers that also attend to the image."""

    unimodal: nn.ModuleList
    multimodal: nn.ModuleList

    def embed(self, ids: Tensor, first: int = 0) -> Tensor: ...
    def predict(self, x: Tensor) -> Tensor: ...


class Writer:
    """Caption generation: implements `Decoder` of models/shared/generate.py, with a cache for `length` tokens per row."""

    def __init__(self, text: Layers, image: Tensor, length: int) -> None:
        self.text, self.length = text, 0
        self.memories: list[Memory] = [block.remember(image) for block in text.multimodal]  # type: ignore[operator]
        self.caches = [KeyValueCache(length) for _ in (*text.unimodal, *text.multimodal)]
        self.images = torch.arange(len(image), device=image.device)  # which image each row is about

    def read(self, ids: Tensor) -> Tensor:
        """More tokens of every row `[N, T]` -> logits of the next one `[N, V]`."""
        x = self.text.embed(ids, self.length)
        self.length += ids.shape[1]
        caches = iter(self.caches)
        for block in self.text.unimodal:
            x = block(x, causal=True, cache=next(caches))
        for block, memory in zip(self.text.multimodal, self.memories, strict=True):
            x = block(x, memory, cache=next(caches))
        return self.text.predict(x[:, -1])

    def step(self, tokens: Tensor) -> Tensor:
        return self.read(tokens[:, None])

    def select(self, rows: Tensor) -> None:
        for cache in self.caches:
            cache.select(rows)
        images = self.images[rows]
        if not torch.equal(images, self.images):  # beams that change places look at the same image as before
            self.memories = [(k[rows], v[rows]) for k, v in self.memories]
            self.images = images
