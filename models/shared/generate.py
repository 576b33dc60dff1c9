"""Generate text token by token with any model that predicts the logits of the next token.

Supports greedy decoding, sampling (temperature, top-k, nucleus: Holtzman et al., 2020, arXiv 1904.09751) and beam search. A model passes
a `Decoder` that has read the prompts, and the logits of the first new token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.shared.text import Tokenizer


class Decoder(Protocol):
    """A batch of unfinished texts, one per row, with a cache of the tokens read so far."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, int64 `[N]`. Returns the logits of the token after it `[N, V]`."""

    def select(self, rows: Tensor) -> None:
        """Continue with these rows in this order. A row may occur several times (beams) or not at all (finished texts)."""


@dataclass(frozen=True)
class Decoding:
    """Decoding method; greedy by default."""

    beams: int = 1
    """number of beams; more than 1 selects beam search"""
    length_penalty: float = 1.0
    """beam search maximises log-probability / length ** length_penalty; with 0 it finds the most likely text"""
    temperature: float = 0.0
    """if positive, sample from softmax(logits / temperature)"""
    top_k: int = 0
    """sample only among the k most likely tokens; 0: all"""
    top_p: float = 1.0
    """sample only from the nucleus, the smallest set of most likely tokens with at least this total probability"""
    seed: int = 0
    """of the samples; a row's draws depend on its place in the batch, not on the other rows"""

    def __post_init__(self) -> None:
        if self.beams < 1 or not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"expected beams >= 1, temperature >= 0, top_k >= 0 and 0 < top_p <= 1; got {self}")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(f"beam search does not sample: set beams or temperature, not both; got {self}")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(f"top_k and top_p only affect sampling: set a temperature, for example 1.0; got {self}")


GREEDY = Decoding()


@torch.no_grad()
def generate(
    decoder: Decoder, logits: Tensor, *, end: int, limit: int, never: Sequence[int] = (), how: Decoding = GREEDY
) -> list[list[int]]:
    """Continue every row until its `end` token (not included in the result) or for `limit` tokens.

    logits: those of the first new token, `[N, V]`. never: ids that must not be generated, such as those of `not_text`.
    Raises ValueError if the logits are NaN or if `never` contains `end`.
    """
    if end in never:
        raise ValueError(f"the end token {end} is among the forbidden tokens {list(never)}: no text could end")
    if logits.isnan().any():
        raise ValueError("the logits of the first token are NaN: the weights may have diverged, look at train.jsonl")
    if limit < 1 or not len(logits):
        return [[] for _ in logits]
    if how.beams > 1:
        return _beam_search(decoder, logits, end, limit, never, how)
    return _one_at_a_time(decoder, logits, end, limit, never, _sampler(how, len(logits)) if how.temperature > 0 else _likeliest)


def not_text(tokenizer: Tokenizer) -> list[int]:
    """Ids of tokens without text: padding and start, except one that is also the end token."""
    return [token for token in (tokenizer.pad, tokenizer.start) if token is not None and token != tokenizer.end]


# ------------------------------------------------------------------------------------------- one token at a time

Choose = Callable[[Tensor, Tensor], Tensor]  # (logits [n, V], their row indices among the N [n]) -> tokens [n]


def _one_at_a_time(decoder: Decoder, logits: Tensor, end: int, limit: int, never: Sequence[int], choose: Choose) -> list[list[int]]:
    written = torch.full((len(logits), limit), end, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)  # unfinished rows of `written`, in the decoder's order
    for place in range(limit):
        tokens = choose(_legal(logits, never), rows)
        written[rows, place] = tokens
        open_ = (tokens != end).nonzero()[:, 0]
        if not len(open_) or place == limit - 1:
            break
        if len(open_) < len(rows):  # dropping finished rows costs less than continuing them
            rows, tokens = rows[open_], tokens[open_]
            decoder.select(open_)
        logits = decoder.step(tokens)
    return _until(end, written)


def _likeliest(logits: Tensor, rows: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


LAST = 1 - 2.0**-22  # of the numbers that tokens are drawn by: rounding must not reach what has no probability


def _sampler(how: Decoding, total: int) -> Choose:
    generator = torch.Generator().manual_seed(how.seed)

    def choose(logits: Tensor, rows: Tensor) -> Tensor:
        uniform = torch.rand(total, generator=generator).clamp_(max=LAST).to(logits.device)[rows]
        probabilities = (logits if how.temperature == 1 else logits / how.temperature).softmax(dim=-1)
        order = None
        if how.top_k or how.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
            if how.top_k:
                probabilities[:, how.top_k :] = 0
                probabilities /= probabilities.sum(dim=-1, keepdim=True)
            before = probabilities.cumsum(dim=-1) - probabilities  # what likelier tokens hold
            probabilities = probabilities.where(before < how.top_p, 0)
        reached = probabilities.cumsum(dim=-1)  # [n, V]
        drawn = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
        return (drawn if order is None else order.gather(1, drawn))[:, 0]

    return choose


# -------------------------------------------------------------------------------------------------- beam search


def _beam_search(decoder: Decoder, logits: Tensor, end: int, limit: int, never: Sequence[int], how: Decoding) -> list[list[int]]:
    """Beam search: the best finished text of each row, with `beams` open texts per row. A row stops once none of them can win."""
    device, beams = logits.device, how.beams
    best = torch.full((len(logits), limit), end, device=device)
    best_score = torch.full((len(logits),), float("-inf"), device=device)
    rows = torch.arange(len(logits), device=device)  # rows of `best` that are still open
    texts = torch.empty(len(logits), 1, 0, dtype=torch.long, device=device)  # [n, K, place]: one empty text each at first
    scores = torch.zeros(len(logits), 1, device=device)  # [n, K] log-probabilities
    for place in range(limit):
        n, k = scores.shape
        tokens_log_p = _legal(logits, never).log_softmax(dim=-1).view(n, k, -1)  # [n, K, V]
        # At most half of 2K candidates end (one per beam), so at least K continue.
        found, flat = (scores[:, :, None] + tokens_log_p).flatten(1).topk(min(2 * beams, k * tokens_log_p.shape[2]))
        parents, tokens = flat // tokens_log_p.shape[2], flat % tokens_log_p.shape[2]  # [n, 2K]
        longer = torch.cat([texts[torch.arange(n, device=device)[:, None], parents], tokens[:, :, None]], dim=-1)

        ended = tokens == end
        leading = torch.arange(found.shape[1], device=device) < beams
        complete = leading & (ended | (place == limit - 1))
        final, which = (found / (place + 1) ** how.length_penalty).masked_fill(~complete, float("-inf")).max(dim=1)
        better = final > best_score[rows]
        best[rows[better], : place + 1] = longer[better, which[better]]
        best[rows[better], place + 1 :] = end
        best_score[rows[better]] = final[better]

        scores, going_on = found.masked_fill(ended, float("-inf")).topk(min(beams, found.shape[1]))  # [n, K]
        hope = torch.maximum(scores[:, 0] / limit**how.length_penalty, scores[:, 0] / (place + 2) ** how.length_penalty)
        open_ = (hope > best_score[rows]).nonzero()[:, 0]
        if not len(open_) or place == limit - 1:
            break
        going_on, scores, rows = going_on[open_], scores[open_], rows[open_]
        texts = longer[open_[:, None], going_on]
        decoder.select((open_[:, None] * k + parents[open_[:, None], going_on]).flatten())
        logits = decoder.step(texts[:, :, -1].flatten())
    return _until(end, best)


def _legal(logits: Tensor, never: Sequence[int]) -> Tensor:
    logits = logits.float()
    return logits.index_fill(-1, torch.tensor(never, device=logits.device), float("-inf")) if never else logits


def _until(end: int, written: Tensor) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in written.tolist()]
