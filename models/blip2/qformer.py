"""The Q-Former: learned queries and a text in one transformer with shared self-attention; only queries attend to the image (figure 2).

It has BERT's post-norm layers. Queries and text have separate feed-forward layers, and in every other layer the queries attend to the
image. The attention mask differs between the three objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.shared.transformer import ACTIVATIONS, Attention, CrossAttention, TransformerConfig


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.fc2(self.act(self.fc1(x))))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, *, image_width: int) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config.width, config.heads, memory_width=image_width) if image_width else None
        self.norm_cross = nn.LayerNorm(config.width, eps=config.norm_eps) if image_width else None
        self.query_mlp = FeedForward(config)
        self.text_mlp = FeedForward(config)

    def forward(self, x: Tensor, queries: int, image: Tensor | None, mask: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """x `[B, Q + T, D]`, the first `queries` of them queries; image `[B, S, M]`, or `[I, S, M]` with `rows` `[B]`, the
        image of each sequence; mask as `attend`'s."""
        x = self.norm(x + self.attn(x, mask=mask))
        q, t = x[:, :queries], x[:, queries:]
        if self.cross is not None and self.norm_cross is not None and queries and image is not None:
            k, v = self.cross.remember(image)
            q = self.norm_cross(q + self.cross(q, (k, v) if rows is None else (k[rows], v[rows])))
        return torch.cat([self.query_mlp(q) if queries else q, self.text_mlp(t) if t.shape[1] else t], dim=1)


class QFormer(nn.Module):
    def __init__(self, config: TransformerConfig, *, queries: int, every: int, image_width: int, rows: int, context: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, config.width))
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)  # of queries and texts alike
        self.layers = nn.ModuleList(Layer(config, image_width=0 if i % every else image_width) for i in range(config.depth))
        for table in (self.queries, self.tokens.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        for layer in self.layers:  # both start with the same weights, as from BERT
            layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())  # type: ignore[union-attr]

    def look(self, image: Tensor) -> Tensor:
        """Queries without text: image states `[B, S, M]` -> states of the queries `[B, Q, D]`."""
        return self._run(self.queries.expand(len(image), -1, -1), len(self.queries), image, None)

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Text without queries, with bidirectional attention -> `[B, T, D]`."""
        return self._run(self._words(ids), 0, None, real[:, None, None])

    def match(self, image: Tensor, ids: Tensor, real: Tensor, rows: Tensor | None = None) -> Tensor:
        """Queries and text with full attention -> states of the queries `[B, Q, D]`. With `rows` `[B]`, images `[I, S, M]` can be shared by
        several texts; their keys and values are computed once."""
        seen = torch.cat([real.new_ones(len(ids), len(self.queries)), real], dim=1)
        return self._both(image, ids, seen[:, None, None], rows)[:, : len(self.queries)]

    def tell(self, image: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """The text attends to the queries and its own past, the queries only to queries -> states of the text `[B, T, D]`."""
        count, length = len(self.queries), ids.shape[1]
        may = torch.ones(count + length, count + length, dtype=torch.bool, device=ids.device)
        may[:count, count:] = False
        may[count:, count:] = may[count:, count:].tril()
        seen = torch.cat([real.new_ones(len(ids), count), real], dim=1)
        return self._both(image, ids, (may & seen[:, None])[:, None])[:, count:]

    def _both(self, image: Tensor, ids: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        x = torch.cat([self.queries.expand(len(ids), -1, -1), self._words(ids)], dim=1)
        return self._run(x, len(self.queries), image, mask, rows)

    def _words(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions[: ids.shape[1]]

    def _run(self, x: Tensor, queries: int, image: Tensor | None, mask: Tensor | None, rows: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, queries, image, mask, rows)
        return x
