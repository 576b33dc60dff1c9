"""Llip: SigLIP's loss on an image vector that depends on the text, for a picture has many captions (Lavoie et al., 2024, arXiv
2405.00740).

The image tower has K class tokens. A text attends to them, and its mixture of them is the picture's vector for that text. There is no
vector of a picture alone, so pairs are compared: with their K keys and values, which a picture has once.

Deviations: the bias starts at -ln(B - 1) for small batches of B, where -10 would be far from the share of matching pairs. `tiny` has
convolutions before the image blocks, ReLU, and its own small vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.clip.model import TextTower
from models.contract import Losses, Model
from models.shared.collate import PairCollate
from models.shared.distributed import gather, rank
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.ranges import check_heads
from models.shared.text import Tokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer
from models.siglip.objective import at_chance

PAIRS = 1 << 16  # mixed at once: each has a vector


def _vit(patch_size: int) -> VisionConfig:
    return VisionConfig(768, 12, 12, "quick_gelu", image_size=224, patch_size=patch_size, pool="none", pre_norm=True)


@dataclass(frozen=True)
class LlipConfig:
    vision: VisionConfig = field(default_factory=lambda: _vit(32))
    text: TransformerConfig = field(default_factory=lambda: TransformerConfig(512, 12, 8, "quick_gelu"))
    tokens: int = 64  # K, visual mixture tokens
    heads: int = 8
    embed_dim: int = 512
    mixing_temperature: float = 5.0  # T, which divides the attention's logits: larger is flatter
    mix: Literal["text", "mean"] = "text"  # "mean": the same mean for every text, a control
    context: int = 77
    vocab_size: int = 49_408
    temperature: float = 0.07  # initial
    bias: float = -10.0  # initial
    max_scale: float = 100.0
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> LlipConfig:
        """2.4 M parameters; minutes on two CPU cores."""
        return cls(
            vision=replace(TINY_TOWER, pool="none"),
            text=TransformerConfig(width=128, depth=2, heads=4, activation="relu"),
            tokens=8,
            embed_dim=128,
            context=32,
            bias=-math.log(127),
        )

    @classmethod
    def small(cls) -> LlipConfig:
        """The paper's towers at a sixth of their size, for 128 px pictures and one GPU."""
        return cls(
            vision=VisionConfig(384, 12, 6, "quick_gelu", image_size=128, patch_size=16, pool="none", pre_norm=True),
            text=TransformerConfig(256, 6, 4, "quick_gelu"),
            tokens=16,
            embed_dim=256,
            bias=-math.log(1023),
            random_crop=0.9,
        )

    @classmethod
    def paper(cls) -> LlipConfig:
        """ViT-B/32 with 64 tokens."""
        return cls(random_crop=0.9)

    @classmethod
    def vit_b16(cls) -> LlipConfig:
        return cls(vision=_vit(16), tokens=32)


class Llip(Model):
    paradigm = "contrastive"
    Config = LlipConfig
    builds_on = ("clip",)
    score_kind = "text-conditioned similarity"

    def __init__(self, config: LlipConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.collate = PairCollate(ImageTransform(config.vision.image_size, config.random_crop), tokenizer, config.context)
        width, dim, tokens = config.vision.width, config.embed_dim, config.tokens
        check_heads(config.heads, dim, "embed-dim")
        if config.vision.tower:
            raise ValueError("Llip has class tokens of its own, which no published tower has: leave out --model.vision.tower")
        self.visual = vision_transformer(config.vision, pooled=False)
        self.visual.cls_token = nn.Parameter(torch.empty(1, tokens, width))  # K of them instead of one
        self.visual.num_prefix_tokens = tokens
        self.visual.pos_embed = nn.Parameter(torch.empty(1, tokens + self.visual.patch_embed.num_patches, width))
        self.text = TextTower(config.text, vocab_size=config.vocab_size, context=config.context, tokenizer=tokenizer)
        self.key_projection = nn.Parameter(torch.empty(tokens, width, dim))  # each token has its own
        self.value_projection = nn.Parameter(torch.empty(tokens, width, dim))
        self.query_projection = nn.Linear(config.text.width, dim, bias=False)
        self.text_projection = nn.Linear(config.text.width, dim, bias=False)
        self.out_projection = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.bias)))
        for vectors in (self.visual.cls_token, self.visual.pos_embed, self.key_projection, self.value_projection):
            nn.init.normal_(vectors, std=width**-0.5)
        for projection in (self.query_projection, self.text_projection, self.out_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        if config.mix == "mean":  # nobody asks
            self.key_projection.requires_grad_(False)
            self.query_projection.requires_grad_(False)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-pair "keys" and "values" `[B, H, K, D/H]`, "query" `[B, H, D/H]` and the L2-normalised "text" `[B, D]`, float32."""
        keys, values = self._image_parts(batch["pixels"])
        query, text = self._text_parts(batch["ids"])
        return {"keys": keys, "values": values, "query": query, "text": text}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """-1/B sum_ij log sigmoid(y_ij (s z_ij . t_j + b)): y = +1 for pairs and -1 for all others, z_ij what text j makes of picture i.

        Each rank compares its pictures with the texts of all ranks, some at a time; what is between is computed again in the backward
        pass, since every pair has a vector.
        """
        keys, values = features["keys"], features["values"]
        queries, texts = gather(features["query"]), gather(features["text"])
        b, total = len(keys), len(texts)
        places = rank() * b + torch.arange(b, device=keys.device)
        positive, negative = keys.new_zeros(()), keys.new_zeros(())
        some = max(1, PAIRS // b)
        for start in range(0, total, some):
            part = keys, values, queries[start : start + some].transpose(0, 1), texts[start : start + some]
            logits = self._logits(*part) if total <= some else checkpoint(self._logits, *part, use_reentrant=False)  # [b, some]
            own = places[:, None] == torch.arange(start, start + logits.shape[1], device=keys.device)
            losses = -F.logsigmoid(torch.where(own, logits, -logits))
            positive = positive + (losses * own).sum() / b
            negative = negative + (losses * ~own).sum() / b
        return Losses(positive + negative, {"positive": positive, "negative": negative}, {"total": at_chance(total)})

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(min=0.0, max=math.log(self.config.max_scale))

    def mixed(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        """The vectors of pictures for texts, L2-normalised after the output projection.

        keys, values: `[N, H, K, D/H]`; queries: of T texts for all pictures `[H, T, D/H]`, or of T for each `[N, H, T, D/H]`. Returns
        `[N, T, D]`; with the mean in place of attention `[N, 1, D]`.
        """
        if self.config.mix == "mean":
            found = values.mean(dim=2, keepdim=True)
        else:
            attention = (queries @ keys.transpose(-1, -2) / self.config.mixing_temperature).softmax(dim=-1)  # [N, H, T, K]
            found = attention @ values
        weight = self.out_projection.weight.to(found.dtype)
        return F.normalize(F.linear(found.transpose(1, 2).flatten(2), weight), dim=-1)

    def _logits(self, keys: Tensor, values: Tensor, queries: Tensor, texts: Tensor) -> Tensor:
        """Of pictures with texts `[T, D]`: `[N, T]`; or with T texts for each `[N, T, D]`."""
        return self.logit_scale.exp() * (self.mixed(keys, values, queries) * texts).sum(dim=-1) + self.logit_bias

    # ------------------------------------------------------------------------------------------------ capabilities

    @torch.no_grad()
    def image_parts(self, images: Sequence[np.ndarray]) -> Tensor:
        """What of pictures does not depend on a text: keys and values, float32 `[N, 2, H, K, D/H]`."""
        return torch.stack(self._image_parts(self.collate.images(images).to(self.logit_scale.device)), dim=1)

    @torch.no_grad()
    def text_parts(self, texts: Sequence[str]) -> Tensor:
        """Query and L2-normalised vector, float32 `[T, 2, D]`. The mean over several prompts stands for their class."""
        query, text = self._text_parts(self.collate.texts(texts).to(self.logit_scale.device))
        return torch.stack([query.flatten(1), text], dim=1)

    @torch.no_grad()
    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits of all pictures with all texts, from their parts: float64 `[N, T]`, so that they do not depend on who is compared with
        whom at the same time."""
        found = images.new_zeros(len(images), len(texts), dtype=torch.float64)
        keys, values = images.double().unbind(1)
        some = max(1, PAIRS // max(1, len(images)))
        for start in range(0, len(texts), some):
            queries, vectors = self._asked(texts[start : start + some])
            found[:, start : start + some] = self._logits(keys, values, queries.transpose(0, 1), vectors)
        return found

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """The logit of each picture with its text, float32 `[N]`."""
        pictures, rows = distinct(images)
        keys, values = self.image_parts(pictures)[rows].double().unbind(1)
        queries, vectors = self._asked(self.text_parts(texts))
        return self._logits(keys, values, queries[:, :, None], vectors[:, None])[:, 0].float()

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """The mean of the tokens' values, which no text has weighed, L2-normalised float32 `[N, D]`: to train probes on."""
        return F.normalize(self.out_projection(self.image_parts(images)[:, 1].mean(dim=2).flatten(1)), dim=-1)

    def _asked(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `[T, H, D/H]` and L2-normalised vectors `[T, D]` of parts `[T, 2, D]`, float64."""
        queries, vectors = texts.double().unbind(1)
        return queries.unflatten(1, (self.config.heads, -1)), F.normalize(vectors, dim=-1)

    def _image_parts(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `[B, 3, S, S]` -> keys and values, float32 `[B, H, K, D/H]`."""
        states = self.visual(normalise(pixels, self.config.mean, self.config.std))[:, : self.config.tokens]  # [B, K, W]
        keys, values = (torch.einsum("bkw,kwd->bkd", states, each) for each in (self.key_projection, self.value_projection))
        return self._headed(keys), self._headed(values)

    def _headed(self, x: Tensor) -> Tensor:  # [B, K, D] -> [B, H, K, D/H]
        return x.float().unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    def _text_parts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids `[B, T]` -> query `[B, H, D/H]` and L2-normalised vector `[B, D]`, float32."""
        state = self.text(ids)
        query = self.query_projection(state).float().unflatten(-1, (self.config.heads, -1))
        return query, F.normalize(self.text_projection(state).float(), dim=-1)
