"""Gated cross-attention (section 3.2, figure 4): blocks that read the pictures, in front of the layers of a frozen language model.

The blocks are hooked in front of the layers, so the language model itself stays as transformers made it. While a block has nothing to look
at (`forget`), its layer works as if it were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.flamingo.resampler import FeedForward
from models.shared.ranges import check_heads
from models.shared.transformer import Activation, attend

Hooked = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a layer


class PictureAttention(nn.Module):
    """Attention from each token to the picture that it belongs to. With `every`, to all pictures up to that one.

    What is looked at is set by `look` and kept, keys and values included, while a text is generated.
    """

    reads_beside = True

    def __init__(self, width: int, media_width: int, heads: int, *, every: bool = False, bias: bool = False) -> None:
        super().__init__()
        check_heads(heads, width, "the language model's width")
        self.heads, self.every = heads, every
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(media_width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.seen: Tensor | None = None
        self._latents = 0
        self._keys: list[Tensor] = []  # [2, B, H, P * L, D/H] of each level

    def look(self, media: Sequence[Tensor], seen: Tensor) -> None:
        """The pictures of the sequences that are read next, `[B, P, L, M]`, once for each level of features that there is; and the number
        of the picture that each token belongs to, int64 `[B, T]`: -1 for tokens before any picture."""
        self._latents, self.seen = media[0].shape[2], seen
        self._keys = [self.kv(level.flatten(1, 2)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4) for level in media]

    def select(self, rows: Tensor) -> None:
        """Go on with these sequences only, in this order."""
        self._keys = [keys[:, rows] for keys in self._keys]

    def forget(self) -> None:
        self._keys, self.seen = [], None

    @property
    def looks(self) -> bool:
        return self.seen is not None

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """States `[B, T, D]` -> `[B, T, D]`, zero for tokens that belong to no picture."""
        assert self.seen is not None
        k, v = self._keys[level]
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, T, D/H]
        picture, own = torch.arange(k.shape[2], device=x.device) // self._latents, self.seen[:, :, None]
        sees = picture <= own if self.every else picture == own  # [B, T, P * L]
        nothing = own < 0
        found = attend(q, k, v, mask=(sees | nothing)[:, None])  # a softmax over nothing would be NaN
        return self.proj(found.transpose(1, 2).flatten(2)).masked_fill(nothing, 0.0)


class GatedCrossAttention(nn.Module):
    """`y + tanh(a) * attention(y, media)`, then `y + tanh(b) * feed_forward(y)`, where a and b begin at 0.

    rate: the gates are `tanh(rate * a)`: with Adam they open that many times as fast. gated: False leaves the gates out, the paper's
    comparison. every: a text sees all pictures up to its own, the paper's other comparison.
    """

    def __init__(
        self,
        width: int,
        media_width: int,
        heads: int,
        *,
        activation: Activation = "squared_relu",
        rate: float = 1.0,
        gated: bool = True,
        every: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.rate = rate
        self.norm: nn.Module = nn.LayerNorm(width, eps=eps)
        self.attention = PictureAttention(width, media_width, heads, every=every)
        self.feed_forward: nn.Module = FeedForward(width, 4 * width, activation, eps)
        self.attention_gate = nn.Parameter(torch.zeros(())) if gated else None
        self.feed_forward_gate = nn.Parameter(torch.zeros(())) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """States `[B, T, D]` -> `[B, T, D]`."""
        x = x + self._gate(self.attention_gate) * self.attention(self.norm(x))
        return x + self._gate(self.feed_forward_gate) * self.feed_forward(x)

    def _gate(self, gate: Tensor | None) -> Tensor | float:
        return 1.0 if gate is None else torch.tanh(self.rate * gate)

    def hook(self, layer: nn.Module) -> None:
        """Stand in front of this layer."""
        layer.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hooked | None:
        if not self.attention.looks:
            return None
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}
