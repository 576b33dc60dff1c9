"""Encoder-decoder language models (T5) for BLIP-2: prefix language modelling (section 3.3).

The encoder reads the image embeddings and the beginning of a text, the decoder generates the rest. `nll` and `write` correspond to those
of models/shared/prefix.py for decoder-only models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from data.sample import Sample
from models.contract import IGNORE_INDEX
from models.shared.backbones import cache_name
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.prefix import PADDING, SOFT, PrefixCollate, embed, label_nll, right_padded
from models.shared.text import Tokenizer


@dataclass(frozen=True)
class SplitCollate(PrefixCollate):
    """As `PrefixCollate`, but "ids" `[B, T]` are the encoder's input, "labels" `[B, L]` the decoder's target: an answer to the question
    in the input, or the rest of a caption that is cut at a random place (without a generator: the whole caption)."""

    def laid_out(self, prompts: Sequence[list[int]], targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids of image and prompt, and labels."""
        ids = right_padded([[*[SOFT] * self.prefix, *prompt] for prompt in prompts])
        return ids, right_padded([[*self.tokens(target), self.tokenizer.end] for target in targets], IGNORE_INDEX)

    def _text(self, sample: Sample, rng: np.random.Generator | None) -> tuple[list[int], str]:
        prompt, target = super()._text(sample, rng)
        if rng is None or prompt:
            return prompt, target
        words = target.split()
        cut = int(rng.integers(max(1, len(words))))
        return self.tokens(" ".join(words[:cut])), " ".join(words[cut:])


def nll(language: Any, ids: Tensor, labels: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of `labels` `[N, L]` (`IGNORE_INDEX` for padding) after `ids` `[N, T]` with vectors `soft`, summed
    `[N]`, and the number of tokens `[N]`."""
    start = labels.new_full((len(labels), 1), _start(language))
    out = language(
        inputs_embeds=embed(language, ids, soft),
        attention_mask=(ids != PADDING).long(),
        decoder_input_ids=torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1),
        use_cache=False,
    )
    return label_nll(out.logits, labels)


@torch.no_grad()
def log_likelihood(language: Any, ids: Tensor, labels: Tensor, soft: Tensor, pictures: Sequence[int]) -> Tensor:
    """As -`nll`'s sum `[N]`, of sequences of which the i-th shows picture `pictures[i]` of `soft` `[P, places, D]`. An encoder sees both
    sides, so that nothing of what it reads could be shared."""
    return -nll(language, ids, labels, soft[torch.tensor(pictures, device=soft.device)])[0]


@torch.no_grad()
def write(
    language: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    soft: Tensor,
    *,
    limit: int,
    how: Decoding = GREEDY,
    pictures: Sequence[int] | None = None,
) -> list[str]:
    """The text generated for each sequence, until the tokenizer's end or for `limit` tokens. With `pictures`, the i-th sequence shows
    picture `pictures[i]` of `soft` `[P, places, D]`."""
    if not rows:
        return []
    soft = soft if pictures is None else soft[list(pictures)]
    ids = right_padded(rows).to(soft.device)
    reply = Reply(language, embed(language, ids, soft), ids != PADDING)
    logits = reply.step(ids.new_full((len(ids),), _start(language)))
    written = generate(reply, logits, end=tokenizer.end, limit=limit, never=not_text(tokenizer), how=how)
    return [tokenizer.decode(tokens) for tokens in written]


class Reply:
    """Texts generated from embeddings `[N, T, D]` that the encoder has read: the `Decoder` of models/shared/generate.py."""

    def __init__(self, language: Any, embeddings: Tensor, real: Tensor) -> None:
        self.language, self.real = language, real.long()
        self.read = language.get_encoder()(inputs_embeds=embeddings, attention_mask=self.real).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        out = self.language(
            encoder_outputs=BaseModelOutput(self.read),
            attention_mask=self.real,
            decoder_input_ids=tokens[:, None],
            use_cache=True,
            **{cache_name(self.language): self.cache},
        )
        return out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.read, self.real = self.read[rows], self.real[rows]


def _start(language: Any) -> int:
    """The decoder's first token: padding, as T5's, unless the configuration names another."""
    start = getattr(language.config, "decoder_start_token_id", None)
    return language.config.pad_token_id if start is None else start
