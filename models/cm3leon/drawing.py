"""Choose the next token from the decoder's logits: guidance, contrastive decoding, and batches of prompts with different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cm3leon.decoder import TokenDecoder
from models.cm3leon.sequence import Token
from models.shared.transformer import KeyValueCache, as_autocast


@dataclass(frozen=True)
class Sampling:
    """How image tokens are chosen."""

    guidance: float = 3.0
    """classifier-free guidance, 1 is none"""
    temperature: float = 1.0
    """0 takes the likeliest token"""
    top_p: float = 1.0
    contrast_k: int = 0
    """more than 0: contrastive decoding CD-K instead of guidance"""
    alpha: float = 0.1
    """of CD-K: share of the k-th largest probability that a token needs"""


UNGUIDED = Sampling(guidance=1.0)


class Painter:
    """Image generation: implements `Decoder` of models/shared/generate.py. Only the logits of image tokens are computed."""

    def __init__(
        self, reader: Reader, decoder: TokenDecoder, image: slice, first: Tensor, how: Sampling, *, paired: bool, known: Tensor | None
    ) -> None:
        """`first` `[rows]` are the places of the first cells. Paired: the second half of the reader's rows are the same drawings
        without their texts. `known` `[N, cells]` are image tokens that are given, -1 where they are to be drawn."""
        self.reader, self.start, self.how, self.paired = reader, image.start, how, paired
        self.output = as_autocast(decoder.output[image])  # now, or autocast would turn it into its type again for every token
        self.place, self.known, self.cell = first, known, 0

    def logits(self) -> Tensor:
        """Of the next image token `[N, codes]`."""
        logits = F.linear(self.reader.state, self.output).float()
        if self.paired:
            conditional, unconditional = logits.chunk(2)
            if self.how.contrast_k:
                logits = contrasted(conditional, unconditional, alpha=self.how.alpha, k=self.how.contrast_k)
            else:
                logits = guided(conditional, unconditional, self.how.guidance)
        if self.known is not None:
            given = self.known[:, self.cell, None]  # [N, 1]
            codes = torch.arange(logits.shape[1], device=logits.device)
            logits = logits.masked_fill((given >= 0) & (codes != given), float("-inf"))
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.start
        self.reader.read(tokens.repeat(2) if self.paired else tokens, self.place)
        self.place, self.cell = self.place + 1, self.cell + 1
        return self.logits()

    def select(self, rows: Tensor) -> None:
        if self.known is not None:
            self.known = self.known[rows]
        rows = torch.cat([rows, rows + len(self.place) // 2]) if self.paired else rows
        self.place = self.place[rows]
        self.reader.select(rows)


class Writer:
    """Text generation. Only the logits of text tokens are computed."""

    def __init__(self, reader: Reader, decoder: TokenDecoder, text: int, first: Tensor) -> None:
        """`first` `[N]` are the places of the first tokens."""
        self.reader, self.place = reader, first
        self.output = as_autocast(decoder.output[:text])

    def logits(self) -> Tensor:
        return F.linear(self.reader.state, self.output)

    def step(self, tokens: Tensor) -> Tensor:
        self.reader.read(tokens, self.place)
        self.place = self.place + 1
        return self.logits()

    def select(self, rows: Tensor) -> None:
        self.place = self.place[rows]
        self.reader.select(rows)


class Reader:
    """The decoder with a cache and one row per prompt. Prompts are padded on the left; padding is masked."""

    def __init__(self, decoder: TokenDecoder, ids: Tensor, places: Tensor, seen: Tensor, *, room: int) -> None:
        """ids, places, seen: `[N, T]`; `room` more tokens can be read after them."""
        self.decoder, self.places = decoder, places[:, -1]
        self.cache: Sequence[KeyValueCache] = decoder.empty_cache(ids.shape[1] + room)
        self.state = decoder(ids, places, seen=seen, cache=self.cache)[:, -1]  # [N, D]
        self.seen = None if seen.all() else F.pad(seen, (0, room), value=True)

    def read(self, tokens: Tensor, places: Tensor) -> Tensor:
        """One more token of each row, at these places, both `[N]` -> the state that predicts the next one `[N, D]`."""
        self.state = self.read_on(tokens[:, None], places[:, None])[:, -1]
        return self.state

    def read_on(self, tokens: Tensor, places: Tensor) -> Tensor:
        """More tokens of each row, `[N, T]` -> their states `[N, T, D]`; none for none."""
        if not tokens.shape[1]:
            return self.state[:, None][:, :0]
        seen = None if self.seen is None else self.seen[:, : self.cache[0].filled + tokens.shape[1]]
        return self.decoder(tokens, places, seen=seen, cache=self.cache)

    def read_tree(self, tokens: Tensor, places: Tensor, sees: Tensor) -> Tensor:
        """As `read_on`, with `sees`, bool `[N, T, T]`: where each of the tokens looks among them."""
        if not tokens.shape[1]:
            return self.state[:, None][:, :0]
        before = sees.new_ones(len(sees), self.cache[0].filled) if self.seen is None else self.seen[:, : self.cache[0].filled]
        seen = torch.cat([before[:, None].expand(-1, sees.shape[1], -1), sees], dim=2)
        return self.decoder(tokens, places, seen=seen, cache=self.cache)

    def select(self, rows: Tensor) -> None:
        self.places, self.state = self.places[rows], self.state[rows]
        self.seen = None if self.seen is None else self.seen[rows]
        for layer in self.cache:
            layer.select(rows)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (section 3.1): l = l_u + scale * (l_c - l_u); 1 is no guidance."""
    return unconditional.lerp(conditional, scale)


def contrasted(conditional: Tensor, unconditional: Tensor, *, alpha: float, k: int) -> Tensor:
    """Contrastive decoding CD-K (section 3.1): log p_c - log p_u among the tokens with p_c >= alpha * (k-th largest p_c).

    k = 1 is plain contrastive decoding (arXiv 2210.15097), whose allowed set is often a single token.
    """
    log_p, log_q = conditional.log_softmax(dim=-1), unconditional.log_softmax(dim=-1)
    threshold = log_p.topk(min(k, log_p.shape[-1])).values[..., -1:] + torch.log(torch.tensor(alpha))
    return (log_p - log_q).masked_fill(log_p < threshold, float("-inf"))


def padded_in_front(rows: Sequence[Sequence[Token]], *, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids and places int64, seen bool, all `[N, T]`."""
    length = max(map(len, rows))
    ids, places, seen = (torch.zeros(len(rows), length, dtype=dtype) for dtype in (torch.long, torch.long, torch.bool))
    ids += pad
    for index, row in enumerate(rows):
        ids[index, length - len(row) :] = torch.tensor([token.id for token in row])
        places[index, length - len(row) :] = torch.tensor([token.place for token in row])
        seen[index, length - len(row) :] = True
    return ids, places, seen
