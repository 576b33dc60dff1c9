"""A memory of documents, and which of them help with a query (section 2.1 of arXiv 2309.02591; RA-CM3, arXiv 2211.12561).

Dense retrieval by a frozen CLIP: a document's vector is the mean of its image's and its text's embedding, and the search for the
largest inner product is exact, one matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """Up to `size` documents as token ids beside their vectors: part of the model's state, so that a run folder is whole."""

    vectors: Tensor
    texts: Tensor
    codes: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, *, text: int, cells: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim, dtype=torch.float16))  # of unit length
        self.register_buffer("texts", torch.full((size, text), -1, dtype=torch.int32))  # -1 behind the text
        self.register_buffer("codes", torch.zeros(size, cells, dtype=torch.int16))  # image tokens, counted from the first
        self.register_buffer("filled", torch.tensor(0))

    @torch.no_grad()
    def add(self, vectors: Tensor, texts: Tensor, codes: Tensor) -> None:
        """Documents `[n, dim]`, `[n, text]`, `[n, cells]`; those that no longer fit are left out."""
        first = int(self.filled)
        count = min(len(vectors), len(self.vectors) - first)
        for held, new in ((self.vectors, vectors), (self.texts, texts), (self.codes, codes)):
            held[first : first + count] = new[:count].to(held.device, held.dtype)
        self.filled += count

    @torch.no_grad()
    def search(self, queries: Tensor, count: int, *, skip_above: float) -> Tensor:
        """Rows of the `count` best documents for each query vector `[B, dim]`, best first, int64 `[B, count]`.

        A document whose similarity with the query is above `skip_above` would give the answer away and is skipped, and so is
        one that similar to a document chosen before it. Where fewer are left, the row is -1.
        """
        held = self.vectors[: int(self.filled)].to(queries.dtype)
        candidates = min(len(held), 8 * count + 8)
        if not candidates:
            return torch.full((len(queries), count), -1, device=queries.device)
        similarity, rows = (queries @ held.T).masked_fill_(queries @ held.T > skip_above, float("-inf")).topk(candidates)
        near = held[rows] @ held[rows].transpose(1, 2) > skip_above  # [B, n, n]
        usable = similarity.isfinite()
        chosen = torch.full((len(queries), count), -1, device=queries.device)
        for place in range(count):
            some, best = usable.any(dim=1), usable.int().argmax(dim=1)  # the first, and so the most similar
            everyone = torch.arange(len(queries), device=queries.device)
            chosen[:, place] = torch.where(some, rows[everyone, best], -1)
            usable &= ~near[everyone, best]
            usable[everyone, best] = False
        return chosen
