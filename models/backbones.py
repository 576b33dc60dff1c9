"""Pretrained language models as building blocks: built from a configuration or fetched by name, frozen, read and continued.

They are transformers' own classes, so that a suite-trained tiny Llama, `gpt2` and `facebook/opt-125m` are one thing here. What
a paper does with a frozen language model stands in its package; this page only answers "what follows these embeddings?".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class LanguageConfig:
    """A causal language model: one of the hub by name, or else a Llama (rotary positions, RMSNorm, SwiGLU) of these sizes."""

    source: str = ""  # hub id or local folder, such as gpt2; the sizes below are then the hub's
    width: int = 192
    depth: int = 4
    heads: int = 3
    hidden: int = 512
    context: int = 256
    vocab_size: int = 4096


def language_model(config: LanguageConfig, *, weights: bool = False) -> nn.Module:
    """transformers' module. With `weights` a named one is fetched (the hub has to be within reach, or its files in the cache);
    without, it has its architecture and random weights, to load others into.

    Raises ConnectionError, naming what can be done offline, when a named model can be had neither way.
    """
    if not config.source:
        llama = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM._from_config(llama, attn_implementation="eager")  # the fused kernel is slow in bf16 on a CPU
    try:
        if weights:
            return AutoModelForCausalLM.from_pretrained(config.source, use_safetensors=True)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.source))
    except OSError as error:
        raise ConnectionError(
            f"language model {config.source!r} is neither a folder nor cached, and the hub is out of reach: fetch it where there is a "
            f"network and give its folder, or take the suite's own (`make train-lm`). transformers says: {error}"
        ) from error


def freeze(module: Module) -> Module:
    """In eval mode and without gradients of its own; gradients still flow through it."""
    return module.requires_grad_(False).eval()


def token_nll(logits: Tensor, ids: Tensor, real: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each row's tokens `ids` `[B, T]` where `real`, summed `[B]`; logits `[B, T, V]` are those
    that predict them (of the places before)."""
    nll = nn.functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")  # [B, T]
    return (nll * real).sum(dim=1)


class Continuation:
    """Texts being continued by a language model: the `Decoder` of models/generate.py over its cache.

    Prompts are embeddings `[N, T, D]`, padded on the left, where `real` `[N, T]` is False. Construct it with `begin`.
    """

    def __init__(self, model: Any, real: Tensor) -> None:
        self.model, self.real, self.cache = model, real, DynamicCache()

    @classmethod
    @torch.no_grad()
    def begin(cls, model: nn.Module, embeddings: Tensor, real: Tensor) -> tuple[Continuation, Tensor]:
        """The decoder that has read the prompts, and the logits of the first new token `[N, V]`."""
        self = cls(model, real.bool())
        places = (self.real.cumsum(dim=1) - 1).clamp(min=0)
        return self, self._read(places, inputs_embeds=embeddings)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        self.real = torch.cat([self.real, self.real.new_ones(len(tokens), 1)], dim=1)
        return self._read(self.real.sum(dim=1, keepdim=True) - 1, input_ids=tokens[:, None])

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.real = self.real[rows]

    def _read(self, places: Tensor, **inputs: Tensor) -> Tensor:
        out = self.model(
            **inputs,
            attention_mask=self.real.long(),
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings `[T_i, D]` of several prompts -> `[N, T, D]` with zeros on the left, and where they are real `[N, T]`."""
    longest = max(len(row) for row in rows)
    padded = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    real = torch.zeros(len(rows), longest, dtype=torch.bool, device=padded.device)
    for place, row in enumerate(rows):
        if len(row):
            padded[place, -len(row) :] = row
            real[place, -len(row) :] = True
    return padded, real
