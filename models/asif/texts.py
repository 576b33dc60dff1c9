"""Text encoders that were trained without images.

ASIF needs similar vectors for texts with similar content. The paper averages the states of a sentence encoder. The states of a causal
language model mostly predict the next token, so its *embeddings* are averaged instead, weighted by the surprisal of each token:
predictable tokens ("there is a") have a low weight, "star" has a high one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shared.backbones import LanguageConfig, language_model
from models.shared.sentences import sentence_encoder, weighted_mean
from models.shared.text import Tokenizer, until_end


def text_encoder(config: LanguageConfig, *, sentences: bool) -> Any:
    """transformers' sentence encoder, or a causal language model, with random weights."""
    return sentence_encoder(config) if sentences else language_model(config)


def surprising_words(language: Any, ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """A causal language model's embeddings, averaged with the surprisal of each token, -log p(token | preceding tokens), as its weight.

    ids `[B, T]` begin with a start token; neither it nor the end counts. `[B, D]`, 0 for a text of no tokens.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = language(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
    surprise = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")  # [B, T - 1]
    counts = until_end(ids, tokenizer)[:, 1:] & (targets != tokenizer.end)
    return weighted_mean(language.get_input_embeddings()(targets).float(), surprise * counts)
