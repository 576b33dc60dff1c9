"""Sentence encoders of transformers: a text's vector is the mean of its last states."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModel

from models.shared.backbones import LanguageConfig, described, known
from models.shared.sources import fetched
from models.shared.text import Tokenizer, named_tokenizer, until_end
from models.shared.wheels import located

PROBE = "A photo of 3 large, blue stars."


def sentence_encoder(config: LanguageConfig) -> Any:
    """The encoder that the configuration names, with random weights."""
    return AutoModel.from_config(described(known(config)), trust_remote_code=False)


def fetch_sentences(encoder: Any, source: str, tokenizer: Tokenizer) -> None:
    """Load the published weights of a sentence encoder into `encoder`, which has its architecture.

    Raises ConnectionError if they are out of reach, ValueError if the model's tokenizer is not the encoder's own.
    """
    theirs: Any = fetched(
        f"sentence encoder {source!r}",
        AutoModel.from_pretrained,
        located(source),
        config=encoder.config,
        use_safetensors=True,
        trust_remote_code=False,
    )
    own = named_tokenizer(source)
    if own.encode(PROBE) != tokenizer.encode(PROBE) or own.end != tokenizer.end:
        raise ValueError(f"sentence encoder {source!r} does not know the tokens of tokenizer {tokenizer.name!r}: add --tokenizer {source}")
    encoder.load_state_dict(theirs.state_dict())


def mean_states(encoder: Any, ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """The last states of a sentence encoder, averaged over a text with its start and end: `[B, T]` -> float32 `[B, D]`."""
    real = until_end(ids, tokenizer)
    states = encoder(input_ids=ids, attention_mask=real.long()).last_hidden_state
    return weighted_mean(states.float(), real.float())


def weighted_mean(vectors: Tensor, weights: Tensor) -> Tensor:
    """`[B, T, D]` with weights `[B, T]` -> `[B, D]`, 0 for a row without weight."""
    return (vectors * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
