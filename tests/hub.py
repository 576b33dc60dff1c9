"""A hub that is no further away than the end of the wire: names with architectures of given sizes and random weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

import models.shared.backbones
from models.shared.text import BPETokenizer


def connect(patch: pytest.MonkeyPatch, folder: Path, configs: dict[str, Any], tokenizer: BPETokenizer) -> list[str]:
    """Names -> transformers' configurations; every name has `tokenizer`, with one token for start and end as OPT's. Towers are timm's,
    written into `folder`. Returns what has been asked for so far, a list that grows."""
    asked: list[str] = []

    def config_of(name: str, *, trust_remote_code: bool) -> Any:
        assert trust_remote_code is False
        asked.append(f"config {name}")
        return configs[name]

    def model_of(name: str, *, config: Any, use_safetensors: bool, trust_remote_code: bool) -> Any:
        assert use_safetensors
        assert trust_remote_code is False
        assert type(config) is type(configs[name])
        asked.append(f"weights {name}")
        torch.manual_seed(len(name))
        kind = AutoModelForSeq2SeqLM if configs[name].is_encoder_decoder else AutoModelForCausalLM
        return kind.from_config(configs[name], trust_remote_code=False)

    def tokenizer_of(name: str, *, trust_remote_code: bool) -> Any:
        assert trust_remote_code is False
        asked.append(f"tokenizer {name}")
        special = {"eos_token": "<end>", "pad_token": "<pad>"}
        start = {} if configs[name].is_encoder_decoder else {"bos_token": "<end>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer.fast, **special, **start)

    def file_of(repository: str, file: str) -> str:
        assert file == "model.safetensors"
        asked.append(f"weights {repository}")
        torch.manual_seed(1)
        path = folder / f"{repository.replace('/', '--')}.safetensors"
        if not path.exists():
            save_file(timm.create_model(repository.removeprefix("timm/"), num_classes=0).state_dict(), path)
        return str(path)

    patch.setattr(AutoConfig, "from_pretrained", config_of)
    patch.setattr(AutoModelForCausalLM, "from_pretrained", model_of)
    patch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", model_of)
    patch.setattr(AutoTokenizer, "from_pretrained", tokenizer_of)
    patch.setattr(models.shared.backbones, "cached_file", file_of)
    return asked


def disconnect(patch: pytest.MonkeyPatch) -> None:
    """Out of reach, and nothing in the cache."""

    def nobody(*_: object, **__: object) -> SimpleNamespace:
        raise OSError("no route to host\nand more")

    for kind in (AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer):
        patch.setattr(kind, "from_pretrained", nobody)
    patch.setattr(models.shared.backbones, "cached_file", nobody)
