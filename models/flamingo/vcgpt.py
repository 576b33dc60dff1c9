"""VC-GPT: a language model left whole, a decoder that reads the picture on top of it, and the sum of both predictions (Luo et al., 2022,
arXiv 2201.12723).

The logits of the next word are W_lm h + W_fuse f: h are the language model's states, f those of a fusion decoder whose queries are h and
whose keys and values are the image's patches ("self-ensemble"). No cross-attention is put into the language model.

No code was published: the fusion's depth is a guess. Deviations: the image tower stays frozen, and there is no self-critical training; the
language model's head stays tied to its word embedding; a learned vector stands in the place of the picture, as in this package's Flamingo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import IGNORE_INDEX
from models.flamingo.collate import NOTHING, Row
from models.flamingo.gated import PictureAttention
from models.flamingo.model import Flamingo, FlamingoConfig, PageReader
from models.flamingo.visualgpt import GPT2
from models.shared.backbones import LanguageConfig, cache_name
from models.shared.images import distinct
from models.shared.prefix import PADDING, label_nll, right_padded
from models.shared.ranges import check_heads
from models.shared.text import Tokenizer
from models.shared.transformer import Attention, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig

TEXTS = 256  # scored at a time


@dataclass(frozen=True)
class VCGPTConfig(FlamingoConfig):
    fusion_depth: int = 2
    ensemble: bool = True  # False: the paper's comparison, predictions of the fusion alone
    tune_language: bool = True
    pages: float = 0.0

    @classmethod
    def tiny(cls) -> VCGPTConfig:
        resampler = TransformerConfig(width=160, depth=1, heads=5)
        return cls(vision=TINY_TOWER, resampler=resampler, heads=3, context=64, pairs_weight=1.0)

    @classmethod
    def small(cls) -> VCGPTConfig:
        """For one GPU: CLIP's `small` tower and GPT-2."""
        vision, language = FlamingoConfig.small().vision, LanguageConfig(source="gpt2", architecture=GPT2)
        return cls(vision=vision, language=language, heads=12, fusion_depth=4, context=64, pairs_weight=1.0, vocab_size=50_257)

    @classmethod
    def paper(cls) -> VCGPTConfig:
        """CLIP's ViT-B/16 and GPT-2."""
        language = LanguageConfig(source="gpt2", architecture=GPT2)
        vision, name = VisionConfig(width=768, depth=12, heads=12, pool="token", pre_norm=True), "vit_base_patch16_clip_224.openai"
        return cls(
            vision=vision, timm_name=name, language=language, heads=12, fusion_depth=6, context=64, pairs_weight=1.0, vocab_size=50_257
        )


class VCGPT(Flamingo):
    Config = VCGPTConfig
    paradigm = "cross-attention"

    def __init__(self, config: VCGPTConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.config: VCGPTConfig
        self.collate = replace(self.collate, questions=config.questions, pages=config.pages)
        self.norm = nn.LayerNorm(self.width)
        self.fuse_head = nn.Linear(self.width, self.language.get_output_embeddings().weight.shape[0], bias=False)
        nn.init.normal_(self.fuse_head.weight, std=0.02)

    def _joined(self, config: Any, language: Any, features: int) -> tuple[nn.Module, list[nn.Module]]:
        return nn.LayerNorm(features), [FusionBlock(self.width, features, config.heads) for _ in range(config.fusion_depth)]

    def _read(self, ids: Tensor, seen: Tensor, media: Tensor) -> Tensor:
        self._look_at(media, seen)
        try:
            mask = (ids != PADDING).long()
            out = self.language(inputs_embeds=self._embed(ids), attention_mask=mask, use_cache=False, output_hidden_states=True)
            return self.both(out.logits, out.hidden_states[-1])
        finally:
            self._forget()

    def both(self, logits: Tensor, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """The language model's logits `[B, T, V]`, for the last tokens of its states `[B, S, D]`, plus those of the fusion. `mask` is True
        where a state may attend to another, `[B, 1, S, S]`; causal by default."""
        x = states
        for block in self.blocks:
            x = block(x, mask)
        fused = self.fuse_head(self.norm(x[:, -logits.shape[1] :]))
        return logits + fused if self.config.ensemble else fused

    def _likelihood(self, images: Sequence[Any], rows: Sequence[Row]) -> Tensor:
        """Without shared prefixes: the fusion has no tree attention."""
        pictures, places = distinct(images)
        media = self._look(pictures)[:, None]
        found = []
        for first in range(0, len(rows), TEXTS):
            part = rows[first : first + TEXTS]
            ids, seen = (right_padded([getattr(row, name) for row in part], fill) for name, fill in (("ids", PADDING), ("seen", NOTHING)))
            labels = right_padded([row.labels for row in part], IGNORE_INDEX).to(media.device)
            logits = self._read(ids.to(media.device), seen.to(media.device), media[places[first : first + TEXTS]])
            found.append(-label_nll(logits[:, :-1], labels[:, 1:])[0])
        return torch.cat(found) if found else media.new_zeros(0)

    def _reader(self, seen: Tensor) -> PageReader:
        return FusionReader(self, seen)


class FusionBlock(nn.Module):
    """Pre-norm decoder layer: causal self-attention, attention to the picture, MLP."""

    def __init__(self, width: int, media_width: int, heads: int) -> None:
        super().__init__()
        check_heads(heads, width, "the language model's width")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(TransformerConfig(width, 1, heads))
        self.attention = PictureAttention(width, media_width, heads, bias=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`."""
        x = x + self.self_attention(self.norm1(x), causal=mask is None, mask=mask)
        x = x + self.attention(self.norm2(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm3(x))))


class FusionReader(PageReader):
    """Generation by both: the language model has a cache, and the fusion, which is small, reads all of its states again for every token."""

    def __init__(self, model: VCGPT, seen: Tensor) -> None:
        super().__init__(model.language, model.readers, seen)
        self.both, self.seen = model.both, seen
        self.states: Tensor | None = None

    def step(self, tokens: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, self.last], dim=1)
        self.last = self.seen  # the fusion's queries are all tokens
        try:
            return super().step(tokens)
        finally:
            self.last = self.seen[:, -1:]

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.seen = self.seen[rows]
        if self.states is not None:
            self.states = self.states[rows]

    def _read(self, places: Tensor, **inputs: Tensor) -> Tensor:
        out = self.model(
            **inputs,
            attention_mask=self.real.long(),
            position_ids=places,
            use_cache=True,
            output_hidden_states=True,
            **{cache_name(self.model): self.cache},
        )
        new = out.hidden_states[-1]
        self.states = new if self.states is None else torch.cat([self.states, new], dim=1)
        size = self.real.shape[1]
        before = torch.ones(size, size, dtype=torch.bool, device=new.device).tril()
        itself = torch.eye(size, dtype=torch.bool, device=new.device)  # for padding: a softmax over nothing would be NaN
        sees = before & self.real[:, None] | itself
        return self.both(out.logits[:, -1:], self.states, sees[:, None])[:, -1]
