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
from transformers import AutoModel

from models.shared.backbones import LanguageConfig, described, known, language_model
from models.shared.sources import fetched
from models.shared.text import Tokenizer, named_tokenizer, until_end

PROBE = "A photo of 3 large, blue stars."


def text_encoder(config: LanguageConfig, *, sentences: bool) -> Any:
    """transformers' sentence encoder, or a causal language model, with random weights."""
    return AutoModel.from_config(described(known(config)), trust_remote_code=False) if sentences else language_model(config)


def fetch_sentences(encoder: Any, source: str, tokenizer: Tokenizer) -> None:
    """Load the weights of a sentence encoder of the hub into `encoder`, which has its architecture.

    Raises ConnectionError if the hub is out of reach, ValueError if the model's tokenizer is not the encoder's own.
    """
    theirs: Any = fetched(
        f"sentence encoder {source!r}",
        AutoModel.from_pretrained,
        source,
        config=encoder.config,
        use_safetensors=True,
        trust_remote_code=False,
    )
    own = named_tokenizer(source)
    if own.encode(PROBE) != tokenizer.encode(PROBE) or own.end != tokenizer.end:
        raise ValueError(f"sentence encoder {source!r} does not know the tokens of tokenizer {tokenizer.name!r}: add --tokenizer {source}")
    encoder.load_state_dict(theirs.state_dict())


def mean_states(encoder: Any, ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """The last states of a sentence encoder, averaged over a text with its start and end: `[B, T]` -> `[B, D]`."""
    real = until_end(ids, tokenizer)
    states = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return _mean(states.float(), real.float())


def surprising_words(language: Any, ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """A causal language model's embeddings, averaged with the surprisal of each token, -log p(token | preceding tokens), as its weight.

    ids `[B, T]` begin with a start token; neither it nor the end counts. `[B, D]`, 0 for a text of no tokens.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    logits = language(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
    surprise = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")  # [B, T - 1]
    counts = until_end(ids, tokenizer)[:, 1:] & (targets != tokenizer.end)
    return _mean(language.get_input_embeddings()(targets).float(), surprise * counts)


def _mean(vectors: Tensor, weights: Tensor) -> Tensor:  # [B, T, D], [B, T]
    return (vectors * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
