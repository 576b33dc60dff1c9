"""Pretrained backbones as building blocks: built from a configuration or fetched by name, frozen, and decoded from.

Language models are transformers' own classes, so that a suite-trained tiny Llama, `gpt2` and `facebook/opt-125m` work alike here;
image towers are timm's. How a paper uses a frozen language model is in its package; this page only continues embeddings.

A hub name needs the network twice: for the architecture when the model is first built, and for the weights when training begins
(the model's `fetch`, which the trainer calls). Both become part of the run folder, which loads without a network.
"""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import timm
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils.hub import cached_file

import models
from models.shared.sources import fetched, run_folder
from models.shared.text import Tokenizer, named_tokenizer

Module = TypeVar("Module", bound=nn.Module)
OWN = ", or take the suite's own language model (`make train-lm`)"


@dataclass(frozen=True)
class LanguageConfig:
    """A language model: one by name, or else a Llama (rotary positions, RMSNorm, SwiGLU) of these sizes."""

    source: str = ""  # tiny:lm, a run folder, a hub id such as gpt2, or a folder like one; the sizes below are then its own
    architecture: str = ""  # of the source, transformers' json; filled in by `known`, so that a trained run loads without the source
    width: int = 192
    depth: int = 4
    heads: int = 3
    hidden: int = 512
    context: int = 256
    vocab_size: int = 4096


def known(config: LanguageConfig) -> LanguageConfig:
    """With the architecture of the language model that it names, looked up unless it is known already.

    Raises ConnectionError, naming what can be done offline, where the hub is out of reach.
    """
    if not config.source or config.architecture:
        return config
    run = run_folder(config.source)
    theirs: Any = _trained(run, weights=False).config if run else _ask_hub(AutoConfig, config.source)
    return replace(config, architecture=theirs.to_json_string())


def language_model(config: LanguageConfig, *, weights: bool = False) -> nn.Module:
    """transformers' module: with `weights` the named one as it was trained, else its architecture with random weights, to load
    others into. Raises ConnectionError as `known` does."""
    if not config.source and not config.architecture:
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
    theirs = AutoConfig.for_model(**json.loads(known(config).architecture))
    kind = AutoModelForSeq2SeqLM if theirs.is_encoder_decoder else AutoModelForCausalLM
    if not weights:
        return kind.from_config(theirs, attn_implementation=None if torch.cuda.is_available() else "eager")
    run = run_folder(config.source)
    return _trained(run, weights=True) if run else _ask_hub(kind, config.source, use_safetensors=True)


def language_backbone(source: str) -> tuple[nn.Module, Tokenizer]:
    """The language model of that name, frozen and in eval mode, and the tokenizer it was trained with."""
    return freeze(language_model(LanguageConfig(source=source), weights=True)), named_tokenizer(source)


def fetch_language(language: nn.Module, source: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Load the named language model's weights into `language`, which has its architecture; nothing for the name "".

    Returns its part of what a model's `fetch` returns: {"language": source}, or {}. Raises ValueError where texts are read with
    another tokenizer than its own.
    """
    if not source:
        return {}
    theirs, own = language_backbone(source)
    text = "question: which of the 3 shapes, the largest, is blue? answer: the large one"
    if own.encode(text) != tokenizer.encode(text) or own.end != tokenizer.end:
        raise ValueError(f"language model {source!r} does not know the tokens of tokenizer {tokenizer.name!r}: add --tokenizer {source}")
    language.load_state_dict(theirs.state_dict())
    return {"language": source}


def image_tower(name: str, *, weights: bool = False) -> Any:
    """timm's transformer of that name without its last block and last norm (BLIP-2's image encoder, section 4.1): its
    `forward_features` takes normalised pixels `[B, 3, S, S]` to states `[B, 1 + N, num_features]`.

    Raises ValueError for models that are no transformers, and as `named_tower` does.
    """
    tower = named_tower(name, weights=weights)
    if not hasattr(tower, "blocks"):
        raise ValueError(f"timm's {name!r} is no vision transformer: it has no blocks")
    tower.blocks = tower.blocks[:-1]
    tower.norm = tower.fc_norm = nn.Identity()
    return tower


def named_tower(name: str, *, weights: bool = False) -> Any:
    """timm's model of that name, from normalised pixels `[B, 3, S, S]` to a pooled feature `[B, num_features]`.

    With `weights` the published ones, else random. Raises ValueError for names that timm does not know, ConnectionError where the
    weights are out of reach.
    """
    if not timm.is_model(name) or ("." in name and not timm.is_model_pretrained(name)):
        near = timm.list_models(f"{name.split('.')[0]}*", pretrained=True) or timm.list_models(f"{name.split('_')[0]}*", pretrained=True)
        raise ValueError(f"timm has no model {name!r}; it has {', '.join(near[:8]) or 'those of timm.list_models()'}")
    published: dict[str, Any] = {}
    if weights:
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        file = fetched(f"image tower {name!r}", cached_file, repository, "model.safetensors")  # timm would take a pickle, too
        published = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    return timm.create_model(name, num_classes=0, **published)


def _ask_hub(kind: Any, source: str, **options: Any) -> Any:
    return fetched(f"language model {source!r}", kind.from_pretrained, source, instead=OWN, **options)


def _trained(run: Path, *, weights: bool) -> Any:
    model = models.load(run, weights=weights)
    if not hasattr(model, "language"):
        raise ValueError(f"{run} holds a {type(model).__name__}, which has no language model; `make train-lm` trains one")
    return model.language


def freeze(module: Module) -> Module:
    """In eval mode and without gradients of its own; gradients still flow through it."""
    return module.requires_grad_(False).eval()


def cache_name(model: nn.Module) -> str:
    """What a transformers model calls its cache, argument and output: `cache` from version 5.24 on, `past_key_values` before."""
    return "cache" if _takes_cache(type(model)) else "past_key_values"


@functools.cache
def _takes_cache(kind: type[nn.Module]) -> bool:
    return "cache" in inspect.signature(kind.forward).parameters


class Continuation:
    """Texts being continued by a language model: the `Decoder` of models/shared/generate.py over its cache.

    Prompts are embeddings `[N, T, D]`, padded on the left, where `real` `[N, T]` is False. Construct it with `begin`.
    """

    def __init__(self, model: Any, real: Tensor) -> None:
        self.model, self.real, self.cache = model, real, DynamicCache()

    @classmethod
    @torch.no_grad()
    def begin(cls, model: nn.Module, embeddings: Tensor, real: Tensor) -> tuple[Self, Tensor]:
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
            use_cache=True,
            logits_to_keep=1,
            **{cache_name(self.model): self.cache},
        )
        return out.logits[:, -1]
