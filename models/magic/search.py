"""MAGIC search (section 3.2): at each step the language model proposes its k likeliest tokens, and the chosen one maximises

    (1 - alpha) p(v | text)  -  alpha max_j cos(h_v, h_j)  +  beta f(v | image, text)
     model confidence           degeneration penalty          magic score

where h are the states of the language model's last layer and f is a softmax over the k candidates of CLIP's score of the image and
the text with v. Nothing is sampled and no gradient is taken.

The language model's states do not depend on the image, so images with the same text so far share one row: the beginning of a
thousand captions is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shared.backbones import Continuation, cache_name
from models.shared.prefix import left_padded


@dataclass(frozen=True)
class Search:
    """Weights of the search. beta = 0 is contrastive search without the image; alpha = beta = 0 is greedy."""

    k: int = 45
    """candidates at each step"""
    alpha: float = 0.1
    """of the degeneration penalty"""
    beta: float = 2.0
    """of the magic score"""
    score: Literal["softmax", "cosine"] = "softmax"
    """the score weighted by beta: CLIP's softmax over the candidates, or its cosine"""

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha <= 1 or self.beta < 0:
            raise ValueError(f"expected k >= 1, 0 <= alpha <= 1 and beta >= 0; got {self}")


@dataclass(frozen=True)
class Eyes:
    """CLIP's side of the search: the images' L2-normalised features `[N, E]`, its logit scale, and a function for features of texts, as the
    language model's token ids, `[M, E]`."""

    images: Tensor
    scale: float
    read: Callable[[Sequence[Sequence[int]]], Tensor]


@torch.no_grad()
def magic_search(
    language: Any, prompts: Sequence[Sequence[int]], eyes: Eyes, *, end: int, limit: int, never: Sequence[int], how: Search
) -> list[list[int]]:
    """Continue the i-th prompt about the i-th image until its `end` token (not part of the result) or for `limit` tokens.

    never: ids that are not proposed. CLIP reads the generated text, without the prompt. Raises ValueError for a prompt without tokens,
    for more candidates than tokens, and when the logits are NaN.
    """
    if not prompts or limit < 1:
        return [[] for _ in prompts]
    if not all(prompts):
        raise ValueError("a prompt has no tokens: give at least the start token")
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    device = eyes.images.device
    ids = left_padded(distinct).to(device)  # [P, T]
    reader, logits = Reader.begin(language, language.get_input_embeddings()(ids.clamp(min=0)), ids >= 0)
    if (possible := logits.shape[1] - len(set(never))) < how.k:
        raise ValueError(f"k = {how.k} candidates of a vocabulary in which {possible} tokens can be written: choose a smaller k")
    if logits.isnan().any():
        raise ValueError("the logits of the first token are NaN: the weights may have diverged, look at train.jsonl")

    context = reader.states  # [P, T, D] of all that was read; the rows below are the distinct texts written so far
    texts: list[list[int]] = [[] for _ in distinct]
    text_of = torch.tensor([distinct.index(tuple(prompt)) for prompt in prompts], device=device)  # [n] of each open image
    images = torch.arange(len(prompts), device=device)  # [n]
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(limit):
        confidence, candidates = _propose(logits, never, how.k)  # [P, k]
        reader.select(torch.arange(len(texts), device=device).repeat_interleave(how.k))
        logits = reader.step(candidates.flatten())  # [P k, V]
        states = reader.states.view(len(texts), how.k, -1)
        penalty = degeneration(states, context, reader.real[:: how.k, :-1])
        longer = [[*text, token] for text, row in zip(texts, candidates.tolist(), strict=True) for token in row]
        known = ((1 - how.alpha) * confidence - how.alpha * penalty)[text_of]  # [n, k]
        chosen = text_of * how.k + (known + _magic(eyes, images, text_of, longer, how)).argmax(dim=-1)  # [n] of the P k texts
        for image, row in zip(images.tolist(), chosen.tolist(), strict=True):
            written[image] = longer[row]
        open_ = candidates.flatten()[chosen] != end
        if not open_.any():
            break
        images = images[open_]
        going_on, text_of = chosen[open_].unique(return_inverse=True)
        context = torch.cat([context[going_on // how.k], reader.states[going_on]], dim=1)
        texts, logits = [longer[row] for row in going_on.tolist()], logits[going_on]
        reader.select(going_on)
    return [tokens[:-1] if tokens[-1] == end else tokens for tokens in written]


def degeneration(states: Tensor, context: Tensor, real: Tensor) -> Tensor:
    """max_j cos(h_v, h_j) `[P, k]`: normalised states of candidates `[P, k, D]`, of the context `[P, T, D]` where `real` `[P, T]`."""
    similarity = states @ context.transpose(1, 2)  # [P, k, T]
    return similarity.masked_fill(~real[:, None], float("-inf")).amax(dim=-1)


def magic_score(similarity: Tensor, scale: float, how: Search) -> Tensor:
    """f of each candidate from CLIP's cosines, both `[n, k]`."""
    return (scale * similarity).softmax(dim=-1) if how.score == "softmax" else similarity


def _propose(logits: Tensor, never: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens and their probabilities among all tokens, both `[P, k]`."""
    probabilities = logits.float().softmax(dim=-1)
    legal = probabilities.index_fill(-1, torch.tensor(never, dtype=torch.long, device=logits.device), -1.0)
    candidates = legal.topk(k).indices
    return probabilities.gather(1, candidates), candidates


def _magic(eyes: Eyes, images: Tensor, text_of: Tensor, longer: Sequence[Sequence[int]], how: Search) -> Tensor | float:
    """beta f `[n, k]` of the open images; `longer` holds the candidates of their texts, k by k."""
    if not how.beta:
        return 0.0
    texts = eyes.read(longer).unflatten(0, (-1, how.k))  # [P, k, E], in one go
    similarity = (texts[text_of] @ eyes.images[images][:, :, None])[..., 0]  # [n, k]
    return how.beta * magic_score(similarity, eyes.scale, how)


class Reader(Continuation):
    """A continuation with the states of the last layer, after its norm and L2-normalised, of the tokens read last `[N, T, D]`."""

    states: Tensor

    def _read(self, places: Tensor, **inputs: Tensor) -> Tensor:
        out = self.model(
            **inputs,
            attention_mask=self.real.long(),
            position_ids=places,
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
            **{cache_name(self.model): self.cache},
        )
        self.states = F.normalize(out.hidden_states[-1].float(), dim=-1)
        return out.logits[:, -1]
