"""A memory of documents, and retrieval of documents for a query (section 2.1 of arXiv 2309.02591; RA-CM3, arXiv 2211.12561).

Dense retrieval by a frozen CLIP: a document's vector is the mean of its image's and its text's embedding, and the search for the
largest inner product is exact, one matrix product.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.cm3leon.sequence import Builder, Kind
from models.shared import device
from models.shared.text import Tokenizer


class Memory(nn.Module):
    """Up to `size` documents as token ids, with their vectors: part of the model's state, so that a run folder is complete."""

    vectors: Tensor
    texts: Tensor
    codes: Tensor
    keys: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, *, text: int, cells: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim, dtype=torch.float16))  # of unit length
        self.register_buffer("texts", torch.full((size, text), -1, dtype=torch.int32))  # -1 after the text
        self.register_buffer("codes", torch.zeros(size, cells, dtype=torch.int16))  # image tokens, counted from the first
        self.register_buffer("keys", torch.full((size,), -1))  # of the samples, by `key_of`
        self.register_buffer("filled", torch.tensor(0))

    @torch.no_grad()
    def add(self, vectors: Tensor, texts: Tensor, codes: Tensor, keys: Tensor) -> None:
        """Documents `[n, dim]`, `[n, text]`, `[n, cells]`, `[n]`; those that no longer fit are dropped."""
        first = int(self.filled)
        count = min(len(vectors), len(self.vectors) - first)
        for held, new in ((self.vectors, vectors), (self.texts, texts), (self.codes, codes), (self.keys, keys)):
            held[first : first + count] = new[:count].to(held.device, held.dtype)
        self.filled += count

    @torch.no_grad()
    def search(self, queries: Tensor, count: int, *, skip_above: float, own: Tensor | None = None) -> Tensor:
        """Rows of the `count` best documents for each query vector `[B, dim]`, best first, int64 `[B, count]`.

        The query's own document, whose key is in `own` `[B]`, is never found. A document whose similarity with the query is above
        `skip_above` would give the answer away and is skipped, and so is one that similar to a document chosen before it. Where
        fewer are left, the row is -1.
        """
        known = device.host_knows(self.filled)
        held = self.vectors[: int(self.filled) if known else len(self.vectors)].to(queries.dtype)
        candidates = min(len(held), 8 * count + 8)
        if not candidates:
            return torch.full((len(queries), count), -1, device=queries.device)
        similarity = queries @ held.T  # [B, n]
        forbidden = similarity > skip_above
        if not known:
            forbidden |= torch.arange(len(held), device=held.device) >= self.filled
        if own is not None:
            forbidden |= own[:, None] == self.keys[: len(held)]
        similarity, rows = similarity.masked_fill(forbidden, float("-inf")).topk(candidates)
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

    def documents(self, rows: Tensor, builder: Builder) -> tuple[Tensor, Tensor, Tensor]:
        """Documents of rows `[B, n]`, -1 for none, one after another as ids, places and kinds, `[B, T]` each.

        Kinds are NOTHING where a text is short or a document missing. Places are of the frames before the query's.
        """
        texts, codes = self.texts[rows].long(), self.codes[rows].long()  # [B, n, text], [B, n, cells]
        one = rows[:, :, None]
        parts = [
            (torch.full_like(one, builder.start), torch.full_like(one, Kind.PROMPT)),
            (texts, torch.where(texts >= 0, Kind.PROMPT, Kind.NOTHING)),
            (torch.full_like(one, builder.vocabulary.break_), torch.full_like(one, Kind.PROMPT)),
            (codes + builder.vocabulary.image.start, torch.full_like(codes, Kind.DRAWN)),
            (torch.full_like(one, builder.end), torch.full_like(one, Kind.WRITTEN)),
        ]
        ids, kinds = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
        frame = builder.frame
        inside = torch.tensor([*range(frame.picture + frame.cells), frame.length - 1], device=rows.device)
        places = inside + frame.length * torch.arange(-rows.shape[1], 0, device=rows.device)[:, None]
        exists = one >= 0
        return ids.clamp(min=0).flatten(1), places.expand_as(ids).flatten(1), kinds.where(exists, Kind.NOTHING).flatten(1)


def key_of(sample: Sample) -> int:
    """A sample's key as a number."""
    return zlib.crc32(sample.key.encode())


def texts_of(tokens: Tensor, tokenizer: Tokenizer, context: int) -> Tensor:
    """Token ids `[B, text]`, -1 after the text, laid out as CLIP reads them: `[start] tokens end pad...`."""
    start = [] if tokenizer.start is None else [tokenizer.start]
    tokens = tokens[:, : context - 1 - len(start)]
    lengths = (tokens >= 0).sum(dim=1, keepdim=True)
    if device.host_knows(tokens):
        tokens = tokens[:, : int(lengths.max())]
    ids = F.pad(tokens.masked_fill(tokens < 0, tokenizer.pad), (0, 1), value=tokenizer.pad).scatter(1, lengths, tokenizer.end)
    return F.pad(ids, (1, 0), value=start[0]) if start else ids


def without_gaps(ids: Tensor, places: Tensor, kinds: Tensor, covered: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move padding to the end, and cut columns that no row needs, where the host knows them. `[B, T]` each."""
    filled = kinds != Kind.NOTHING
    order = (~filled).to(torch.uint8).argsort(dim=1, stable=True)
    if device.host_knows(kinds):
        order = order[:, : int(filled.sum(dim=1).max())]
    return ids.gather(1, order), places.gather(1, order), kinds.gather(1, order), covered.gather(1, order)
