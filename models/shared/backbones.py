"""Pretrained backbones: build them from a configuration or fetch them by name, freeze them, and generate text with them.

Language models are transformers' classes, so a tiny Llama trained by this suite, `gpt2` and `facebook/opt-125m` all work the same way;
image towers are timm's. How a paper uses a frozen language model is implemented in its package; here is only generation from embeddings.

A hub name requires the network twice: for the architecture when the model is first built, and for the weights when training begins
(`Model.fetch`). Both are stored in the run folder, which loads without a network.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import timm
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.utils.hub import cached_file

import models
from data.fields import require
from models.shared.sources import WHEEL, fetched, run_folder
from models.shared.text import Tokenizer, named_tokenizer
from models.shared.wheels import located, wheel_folder

Module = TypeVar("Module", bound=nn.Module)
OWN = ", or use the suite's own language model (`make train-lm`)"


# In the names of fields of transformers' configurations that name code or another place; an "implementation" may be a kernel of the hub.
ELSEWHERE = ("auto_map", "name_or_path", "implementation")


@dataclass(frozen=True)
class LanguageConfig:
    """A language model by name or, without a name, a Llama (rotary positions, RMSNorm, SwiGLU) of the given size."""

    source: str = ""  # tiny:lm, a run folder, wheel:NAME, a hub id such as gpt2, or a local copy of one; it determines the sizes below
    architecture: str = ""  # transformers' JSON configuration of the source; set by `known`, so that a trained run loads without it
    width: int = 192
    depth: int = 4
    heads: int = 3
    hidden: int = 512
    context: int = 256
    vocab_size: int = 4096


def known(config: LanguageConfig) -> LanguageConfig:
    """The configuration with the architecture of its source, which is looked up if it is not known yet.

    Raises ConnectionError, with advice for offline use, if the hub cannot be reached.
    """
    if not config.source or config.architecture:
        return config
    run = run_folder(config.source)
    theirs: Any = (
        _trained(run, weights=False).config
        if run
        else fetched(
            f"language model {config.source!r}", AutoConfig.from_pretrained, located(config.source), trust_remote_code=False, instead=OWN
        )
    )
    return replace(config, architecture=architecture_of(theirs))


def architecture_of(theirs: Any) -> str:
    """transformers' configuration as JSON, without what could name code or another place."""
    return json.dumps(_sizes(json.loads(theirs.to_json_string())))


def described(config: LanguageConfig) -> Any:
    """transformers' configuration of a known architecture, without what could name code or another place."""
    return described_as(config.architecture)


def described_as(architecture: str) -> Any:
    """transformers' configuration of the JSON that `architecture_of` wrote. Raises ValueError for one that would fetch a part of its model
    when it is built."""
    try:
        values = json.loads(architecture)
        found: Any = AutoConfig.for_model(**_sizes(values))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        expected = 'transformers\' configuration in JSON, such as {"model_type": "llama", ...}'
        raise ValueError(f"architecture is {architecture!r:.80}, expected {expected} ({' '.join(str(error).split())[:200]})") from error
    if place := _fetched_part(found.to_dict()):
        raise ValueError(f"the architecture {found.model_type!r} has a backbone {place!r}, which would be fetched: name another one")
    return found


def _fetched_part(values: dict[str, Any]) -> str:
    """The backbone that transformers takes from timm or the hub when it builds a model of this configuration; "" for none."""
    if str(values.get("model_type", "")).startswith("timm"):
        return str(values.get("architecture") or values.get("backbone") or values["model_type"])
    if isinstance(values.get("backbone"), str) and values["backbone"]:
        return str(values["backbone"])
    return next(filter(None, (_fetched_part(each) for each in values.values() if isinstance(each, dict))), "")


def _sizes(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if not any(word in name for word in ELSEWHERE)}
    return {name: _sizes(value) if isinstance(value, dict) else value for name, value in kept.items()}


def known_positions(language: Any) -> int | None:
    """Tokens that a language model with learned positions (GPT-2, OPT, MPNet), or with biases for so many (MPT), can read; None for rotary
    positions, which do not end."""
    config, tokens = language.config, language.get_input_embeddings()
    if limit := getattr(config, "max_seq_len", None):
        return int(limit)
    limit = getattr(config, "max_position_embeddings", None)
    tables = [each.num_embeddings for each in language.modules() if isinstance(each, nn.Embedding) and each is not tokens]
    return limit if limit and any(limit <= size <= limit + 2 for size in tables) else None  # OPT has two more


def language_model(config: LanguageConfig, *, weights: bool = False) -> nn.Module:
    """The transformers module: with `weights`, the pretrained model; otherwise its architecture with random weights. Raises
    ConnectionError like `known`."""
    if not config.source and not config.architecture:
        side = config.width // max(1, config.heads)
        require(
            side % 2 == 0, "--model.language.heads", config.heads, f"an even width of each: rotary positions turn pairs, and {side} is odd"
        )
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
    theirs = described(known(config))
    kind = AutoModelForSeq2SeqLM if theirs.is_encoder_decoder else AutoModelForCausalLM
    if not weights:
        return kind.from_config(theirs, trust_remote_code=False, attn_implementation=None if torch.cuda.is_available() else "eager")
    run = run_folder(config.source)
    if run:
        return _trained(run, weights=True)
    return fetched(
        f"language model {config.source!r}",
        kind.from_pretrained,
        located(config.source),
        config=theirs,
        use_safetensors=True,
        trust_remote_code=False,
        instead=OWN,
    )


def language_backbone(source: str) -> tuple[nn.Module, Tokenizer]:
    """The named language model, frozen and in eval mode, and its tokenizer."""
    return freeze(language_model(LanguageConfig(source=source), weights=True)), named_tokenizer(source)


def fetch_language(language: nn.Module, source: str, tokenizer: Tokenizer) -> dict[str, str]:
    """Load the weights of the language model `source` into `language`, which has the same architecture. Does nothing if `source` is "".

    Returns {"language": source} or {}, for use in `Model.fetch`. Raises ValueError if `tokenizer` is not that of the language model.
    """
    if not source:
        return {}
    theirs, own = language_backbone(source)
    text = "question: which of the 3 shapes, the largest, is blue? answer: the large one"
    if own.encode(text) != tokenizer.encode(text) or own.end != tokenizer.end:
        raise ValueError(f"language model {source!r} was not trained with tokenizer {tokenizer.name!r}: add --tokenizer {source}")
    language.load_state_dict(theirs.state_dict())
    return {"language": source}


def image_tower(name: str, *, weights: bool = False, dropped: int = 1, image_size: int | None = None) -> Any:
    """timm's vision transformer `name` without its last block (or the last `dropped`) and final norm (BLIP-2's image encoder, section 4.1).
    `forward_features` maps normalised pixels `[B, 3, S, S]` to states `[B, 1 + N, num_features]`. For an `image_size` other than the
    published one, position embeddings are interpolated.

    Raises ValueError for models that are not transformers, and otherwise like `named_tower`.
    """
    tower = named_tower(name, weights=weights, image_size=image_size)
    if not hasattr(tower, "blocks"):
        raise ValueError(f"timm's {name!r} is not a vision transformer: it has no blocks")
    return without_last(tower, dropped)


def without_last(tower: Any, blocks: int) -> Any:
    """A vision transformer without its last `blocks` blocks and its final norm. Raises ValueError unless a block is left."""
    if hasattr(tower, "without_last"):  # a tower of models/shared/towers.py
        return tower.without_last(blocks)
    if not hasattr(tower, "blocks"):
        raise ValueError("states before the last block are read, and this image tower has no blocks: name a timm vision transformer")
    if len(tower.blocks) <= blocks:
        raise ValueError(f"an image tower of {len(tower.blocks)} blocks has no states before the last {blocks}; expected a deeper one")
    tower.blocks = tower.blocks[: len(tower.blocks) - blocks]
    tower.norm = tower.fc_norm = nn.Identity()
    return tower


def named_tower(name: str, *, weights: bool = False, image_size: int | None = None) -> Any:
    """timm's model `name`, which maps normalised pixels `[B, 3, S, S]` to a pooled feature `[B, num_features]`.

    With `weights` it has the published weights, of the hub or for `wheel:NAME` of a wheel, otherwise random ones. Raises ValueError for
    names unknown to timm, and ConnectionError if the weights cannot be downloaded.
    """
    architecture = name.removeprefix(WHEEL)
    if not timm.is_model(architecture) or ("." in name and not timm.is_model_pretrained(name)):
        near = timm.list_models(f"{name.split('.')[0]}*", pretrained=True) or timm.list_models(f"{name.split('_')[0]}*", pretrained=True)
        raise ValueError(f"timm has no model {name!r}; it has {', '.join(near[:8]) or 'those of timm.list_models()'}")
    published: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    if weights:
        if name.startswith(WHEEL):
            file = str(wheel_folder(name) / "model.safetensors")
        else:
            repository = timm.get_pretrained_cfg(name).hf_hub_id
            file = fetched(f"image tower {name!r}", cached_file, repository, "model.safetensors")  # timm would also accept a pickle
        published |= {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    # channels_last: convolutions on a CPU take less time
    return timm.create_model(architecture, num_classes=0, **published).to(memory_format=torch.channels_last)


PIXELS = 16 * 224 * 224  # that a CPU looks at together: with four times as many they leave its cache, and each takes a third more time


@torch.no_grad()
def looked_at(tower: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """A frozen tower's features `[B, ...]` in float32 of normalised pixels `[B, 3, S, S]`, in parts that suit a CPU's cache."""
    rows = len(pixels) if pixels.is_cuda else PIXELS // (pixels.shape[-1] * pixels.shape[-2])
    return torch.cat([tower(part).float() for part in pixels.split(max(rows, 1))])


def _trained(run: Path, *, weights: bool) -> Any:
    model = models.load(run, weights=weights)
    if not hasattr(model, "language"):
        raise ValueError(f"{run} contains {type(model).__name__}, which has no language model; `make train-lm` trains one")
    return model.language


def fetch_tower(visual: nn.Module, name: str) -> dict[str, str]:
    """Load timm's published weights of that name into the image tower `visual`, which has their shape; nothing for the name "".

    Returns its part of what a model's `fetch` returns: {"visual": name}, or {}. Raises ValueError where the shapes differ, and as
    `named_tower` does.
    """
    if not name:
        return {}
    try:
        visual.load_state_dict(named_tower(name, weights=True).state_dict())
    except RuntimeError as error:
        raise ValueError(f"timm's {name!r} has another shape than this image tower: set --model.vision to its own ({error})") from error
    return {"visual": name}


def freeze(module: Module) -> Module:
    """Set the module to eval mode and disable gradients of its parameters; gradients still flow through it."""
    return module.requires_grad_(False).eval()


def decoder_layers(language: Any) -> nn.ModuleList:
    """The layers of a transformers language model, whatever it calls them. Raises ValueError if it has no such list."""
    depth = language.config.num_hidden_layers
    for module in language.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"{type(language).__name__} has no list of {depth} layers; expected a decoder such as Llama, OPT or GPT-2")


def cache_name(model: nn.Module) -> str:
    """The name of the cache argument and output of a transformers model: `cache` since version 5.24, `past_key_values` before."""
    return "cache" if "cache" in _arguments(type(model).forward) else "past_key_values"


@functools.cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


ROOM = 32  # tokens


class RoomyLayer(DynamicLayer):
    """A layer's cache with room for tokens to come: its parent copies all that it holds with every new token."""

    _room: tuple[Tensor, Tensor] | None = None  # keys and values begin there

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep more keys and values `[N, heads, T, D]`. Returns all of them."""
        held = self.get_seq_length()
        total = held + key_states.shape[-2]
        if self._room is None or total > self._room[0].shape[-2]:
            roomy = [new.new_empty(*new.shape[:-2], total + ROOM, new.shape[-1]) for new in (key_states, value_states)]
            if held:
                roomy[0][..., :held, :], roomy[1][..., :held, :] = self.keys, self.values
            self._room, self.is_initialized = (roomy[0], roomy[1]), True
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., held:total, :] = new
        return self._show(total)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows only."""
        if self._room is not None:
            held = self.get_seq_length()
            self._room = (self._room[0][indices], self._room[1][indices])
            self._show(held)

    def _show(self, total: int) -> tuple[Tensor, Tensor]:
        assert self._room is not None
        self.keys, self.values = (room[..., :total, :] for room in self._room)
        return self.keys, self.values


class Continuation:
    """Text generation with a transformers language model: implements `Decoder` of models/shared/generate.py with its cache.

    Prompts are embeddings `[N, T, D]`, padded on the left; `real` `[N, T]` is False for padding. Construct it with `begin`.
    """

    def __init__(self, model: Any, real: Tensor) -> None:
        self.model, self.real, self.cache = model, real, Cache(layer_class_to_replicate=RoomyLayer)

    @classmethod
    @torch.no_grad()
    def begin(cls, model: nn.Module, embeddings: Tensor, real: Tensor) -> tuple[Self, Tensor]:
        """Read the prompts. Returns the decoder and the logits of the first new token `[N, V]`."""
        self = cls(model, real.new_empty(len(real), 0).bool())
        return self, self.read(embeddings, real)

    @torch.no_grad()
    def read(self, embeddings: Tensor, real: Tensor) -> Tensor:
        """Read more of the prompts `[N, T, D]`, again padded on the left. Returns the logits of the next token `[N, V]`."""
        self.real = torch.cat([self.real, real.bool()], dim=1)
        places = (self.real.cumsum(dim=1) - 1).clamp(min=0)
        return self._read(places[:, -real.shape[1] :], inputs_embeds=embeddings)

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
