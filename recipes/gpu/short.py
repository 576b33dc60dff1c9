"""Shortened recipes, and stand-ins for models from the hub."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from transformers import BertConfig, GPT2Config, GPTJConfig, GPTNeoXConfig, LlamaConfig, MPNetConfig, OPTConfig

import models
from models.shared.backbones import LanguageConfig
from recipes.train.pages import names, page
from recipes.train.recipe import AnyRecipe, Log, Stage

# The architectures of the language models that presets name: neither the speed of a step nor its memory depends on their weights.
ARCHITECTURES = {
    "gpt2": GPT2Config(),
    "facebook/opt-2.7b": OPTConfig(
        hidden_size=2560, word_embed_proj_dim=2560, num_hidden_layers=32, num_attention_heads=32, ffn_dim=10_240, vocab_size=50_272
    ),
    "lmsys/vicuna-13b-v1.5": LlamaConfig(
        hidden_size=5120, intermediate_size=13_824, num_hidden_layers=40, num_attention_heads=40, vocab_size=32_000
    ),
    "meta-llama/Llama-2-7b-chat-hf": LlamaConfig(
        hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32_000
    ),
    "lmsys/vicuna-7b-v1.5": LlamaConfig(
        hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32_000
    ),
    "EleutherAI/gpt-j-6b": GPTJConfig(),
    "sentence-transformers/all-mpnet-base-v2": MPNetConfig(),
    "wheel:all-MiniLM-L6-v2": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "facebook/opt-125m": OPTConfig(),
    "EleutherAI/pythia-410m": GPTNeoXConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50_304
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        tie_word_embeddings=True,
    ),
}


def learns(name: str) -> bool:
    """Whether the page's model is trained by gradient."""
    return models.model_of(next(iter(page(name).PRESETS.values())).model).paradigm != "training-free"


def pages(preset: str) -> list[str]:
    return [name for name in names() if preset in page(name).PRESETS]


def stage_of(stage: Stage, *, steps: int, batch: int) -> Stage:
    return replace(stage, budget=steps * batch, batch=batch, optim=replace(stage.optim, warmup=0))


def few_steps(recipe: AnyRecipe, *, steps: int, batch: int, **options: Any) -> AnyRecipe:
    """The recipe with so many steps of so many samples in every stage, and without what needs more."""
    options = {"micro_batch": None, "log": Log(every=1, validate=0), "workers": 0, **options}
    if recipe.stages:
        return replace(recipe, stages=tuple(stage_of(stage, steps=steps, batch=batch) for stage in recipe.stages), **options)
    return replace(recipe, budget=steps * batch, batch=batch, optim=replace(recipe.optim, warmup=0), **options)


def from_hub(config: Any) -> list[str]:
    """Names of the published backbones in a model's configuration."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, LanguageConfig):
            found += [value.source] * bool(value.source)
        elif is_dataclass(value):
            found += from_hub(value)
        elif field.name in ("timm_name", "image_weights") and value:
            found.append(value)
    return found


def offline(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe without what other runs and the hub would give it: the same shapes with random weights, and a tokenizer of its own."""
    tokenizer = recipe.tokenizer if recipe.tokenizer.startswith("train") else "train+questions"
    return replace(recipe, model=anonymous(recipe.model), prerequisites=(), tokenizer=tokenizer, weights="")


def anonymous(config: Any) -> Any:
    """The configuration with the architectures of its published language models in place of their names."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, LanguageConfig) and value.source:
            if not value.architecture and value.source not in ARCHITECTURES:
                raise ValueError(f"the architecture of {value.source!r} is not known without the hub: add it to {__name__}.ARCHITECTURES")
            known = value.architecture or ARCHITECTURES[value.source].to_json_string()
            changes[field.name] = replace(value, source="", architecture=known)
        elif is_dataclass(value):
            changes[field.name] = anonymous(value)
    return replace(config, **changes)
