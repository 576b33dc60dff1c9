"""A language model as a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.lm.model import LM
from models.shared.export import TEXTS, Check, fast_tokenizer


def refuse_transformers(model: Any) -> None:
    fast_tokenizer(model.tokenizer, model.config.context)


def transformers(model: LM, folder: Path) -> list[Check]:
    """For `AutoModelForCausalLM.from_pretrained(folder)`, with the tokenizer."""
    ids_of = {"bos_token_id": model.tokenizer.start, "eos_token_id": model.tokenizer.end, "pad_token_id": model.tokenizer.pad}
    model.language.config.update(ids_of)
    model.language.save_pretrained(folder)
    fast_tokenizer(model.tokenizer, model.config.context).save_pretrained(folder)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(TEXTS[0], return_tensors="pt").input_ids
    mine = torch.tensor([[model.start, *model.tokenizer.encode(TEXTS[0])]])
    if not torch.equal(mine, ids[:, : mine.shape[1]]):
        raise ValueError(f"their tokenizer reads {TEXTS[0]!r} as {ids.tolist()}, ours as {mine.tolist()}")
    with torch.no_grad():
        return [Check.of("logits", model.language(input_ids=ids).logits, theirs(input_ids=ids).logits)]
