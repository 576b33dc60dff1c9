"""Causal language models by folder: every architecture that transformers knows, as it writes them, in a model that builds on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import models
from models.frozen import Frozen, FrozenConfig
from models.shared.backbones import LanguageConfig, language_backbone
from models.shared.text import named_tokenizer
from tests.models.kit import assert_close, randomise
from tests.stand_ins import opt

WORDS = opt(["a small red star", "question: which shape is it? answer: the star"])
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
KINDS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=96),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=1),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=1),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "gemma": lambda: transformers.GemmaConfig(**SIZES, head_dim=16, num_key_value_heads=1),
    "bloom": lambda: transformers.BloomConfig(vocab_size=len(WORDS), hidden_size=32, n_layer=1, n_head=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_config(KINDS[kind](), trust_remote_code=False)
    randomise(theirs, 0)
    theirs.eval().save_pretrained(tmp_path / "hub")
    WORDS.save_pretrained(tmp_path / "hub")
    source = str(tmp_path / "hub")
    ours, tokenizer = language_backbone(source)
    ids = torch.tensor([tokenizer.encode("a small red star")])
    with torch.no_grad():
        assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, "logits")

    tiny = FrozenConfig.tiny()
    config = replace(tiny, language=LanguageConfig(source=source), vocab_size=tokenizer.vocab_size)
    model = Frozen(config, named_tokenizer(source))
    assert model.fetch() == {"language": source}
    models.save(model, tmp_path / "run")
    (tmp_path / "hub").rename(tmp_path / "gone")  # the run folder is complete
    again: Any = models.load(tmp_path / "run")
    picture = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    assert again.caption([picture]) == model.eval().caption([picture])
