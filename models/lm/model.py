"""A small causal language model, trained on texts only: captions, questions and in-context patterns.

It plays the part of the pretrained language models (OPT, Vicuna, GPT-2) that Frozen, BLIP-2, MiniGPT-4, MAGIC and ASIF start
from, where nothing may be downloaded: a Llama of transformers, trained on nothing but the texts of the training split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from models.contract import Losses, Model
from models.lm.corpus import captions, documents
from models.lm.objective import contrast
from models.shared import device
from models.shared.backbones import Continuation, LanguageConfig, fetch_language, known, language_model
from models.shared.distributed import mean_of_all
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.prefix import token_nll
from models.shared.text import Tokenizer, layout, of_like_length, until_end
from models.shared.transformer import as_autocast

PASSES = 4  # on a CPU documents of like length are read together: a third less padding


@dataclass(frozen=True)
class LMConfig:
    language: LanguageConfig = field(default_factory=LanguageConfig)
    context: int = 128  # tokens of a training document
    vocab_size: int = 4096
    corpus: Literal["all", "captions"] = "all"  # training text, see `corpus`
    margin: float = 0.0  # rho of SimCTG's contrastive term; 0 leaves the term out

    @classmethod
    def tiny(cls) -> LMConfig:
        """1.8 M parameters and its vocabulary; minutes on two CPU cores."""
        return cls()

    @classmethod
    def small(cls) -> LMConfig:
        """25 M, for one GPU."""
        return cls(language=LanguageConfig(width=512, depth=8, heads=8, hidden=1376, context=512), context=256)

    def describing(self) -> LMConfig:
        """The same model for captions only, as MAGIC adapts its own (2205.02655, section 3.1: margin 0.5, texts of 64 tokens)."""
        return replace(self, corpus="captions", margin=0.5, context=64)


@dataclass(frozen=True)
class TextCollate:
    """Token ids `[B, T]` of one document about each sample (see `corpus`)."""

    tokenizer: Tokenizer
    context: int
    corpus: Literal["all", "captions"] = "all"

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """Without a generator the documents are drawn with seed 0."""
        write = captions if self.corpus == "captions" else documents
        return {"ids": layout(self.tokenizer, write(samples, rng or np.random.default_rng(0)), self.context)}


class LM(Model):
    paradigm = "prerequisite"
    Config = LMConfig

    def __init__(self, config: LMConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if tokenizer.start is None:
            raise ValueError(f"documents begin with a start token, and the tokenizer {tokenizer.name!r} has none")
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer, self.start = config, tokenizer, tokenizer.start
        self.collate = TextCollate(tokenizer, config.context, config.corpus)
        self.language: Any = language_model(replace(config.language, vocab_size=config.vocab_size))

    def fetch(self) -> dict[str, str]:
        """Load the initial weights of the language model that the configuration names. Returns module -> source."""
        return fetch_language(self.language, self.config.language.source, self.tokenizer)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each document its negative log-likelihood "nll" in nats and how many "tokens" that is, `[B]`; with a margin, also
        the sum "contrast" over its "pairs" of tokens `[B]`."""
        if not device.host_knows(batch["ids"]):
            return self._read(batch["ids"])
        lengths = until_end(batch["ids"], self.tokenizer).sum(dim=1)
        groups, back = of_like_length(lengths, PASSES)
        parts = [self._read(batch["ids"][rows, :longest]) for rows, longest in groups]
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _read(self, ids: Tensor) -> dict[str, Tensor]:
        margin = self.config.margin
        real = until_end(ids, self.tokenizer)[:, 1:]  # the predicted tokens, and the positions that predict them
        embeddings = as_autocast(self.language.get_input_embeddings()(ids[:, :-1]))  # the residual stream too: faster on a CPU
        mask = torch.ones_like(ids[:, :-1])
        out = self.language(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, output_hidden_states=margin > 0)
        features = {"nll": token_nll(out.logits, ids[:, 1:], real), "tokens": real.sum(dim=1)}
        if margin:
            features["contrast"], features["pairs"] = contrast(out.hidden_states[-1], real, margin)
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """Mean negative log-likelihood of a token; with a margin, plus the mean over the pairs of tokens."""
        terms = {"next token": mean_of_all(features["nll"], features["tokens"])}
        if self.config.margin:
            terms["contrast"] = mean_of_all(features["contrast"], features["pairs"])
        return Losses(sum(terms.values(), torch.tensor(0.0)), terms, {"next token": float(np.log(self.config.vocab_size))})

    @torch.no_grad()
    def write(self, prompts: Sequence[str], *, limit: int = 40, how: Decoding = GREEDY) -> list[str]:
        """What follows each prompt, until the end of the document or for `limit` tokens."""
        rows = [[self.start, *self.tokenizer.encode(prompt)] for prompt in prompts]
        longest = max(map(len, rows), default=1)
        device = self.language.device
        ids = torch.tensor([[self.tokenizer.pad] * (longest - len(row)) + row for row in rows], device=device)
        real = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows], device=device)
        decoder, logits = Continuation.begin(self.language, self.language.get_input_embeddings()(ids), real)
        written = generate(decoder, logits, end=self.tokenizer.end, limit=limit, never=not_text(self.tokenizer), how=how)
        return [self.tokenizer.decode(tokens) for tokens in written]
