"""VirTex: captions in both directions teach an image encoder, which is all that is kept (Desai and Johnson, 2021, arXiv 2006.06666).

The text half is CoCa's decoder without its unimodal layers, class token and contrast, with post-norm layers.

Deviations: the ResNet's norms are group norms, because batch statistics would differ between micro-batches, ranks and the full batch.
AdamW with one learning rate replaces SGD with Lookahead and two. Crops are square, and colours are not changed. `tiny` and `small`
have vision transformers, whose states are the grid that captions attend to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.coca.captioning import Captioning
from models.coca.decoder import Memory
from models.coca.objective import caption_nll
from models.contract import Batch, Losses, Model
from models.shared.backbones import named_tower
from models.shared.collate import PairCollate
from models.shared.distributed import mean_of_all
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.mirror import mirrored
from models.shared.text import Tokenizer, until_end
from models.shared.transformer import ACTIVATIONS, Attention, CrossAttention, KeyValueCache, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer


@dataclass(frozen=True)
class VirTexConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, pool="none"))
    timm_name: str = ""  # a timm model in the place of `vision`; the paper's is a ResNet-50
    text: TransformerConfig = field(default_factory=lambda: TransformerConfig(width=2048, depth=1, heads=32))  # of each direction
    backward: bool = True  # captions in both directions, or forwards only
    dropout: float = 0.1
    mirror: float = 0.5  # share of the pictures that are mirrored, with their captions
    context: int = 30
    vocab_size: int = 10_000
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> VirTexConfig:
        text = TransformerConfig(width=128, depth=1, heads=4)
        return cls(vision=replace(TINY_TOWER, pool="none"), text=text, dropout=0.0, context=32)

    @classmethod
    def small(cls) -> VirTexConfig:
        """For 128 px pictures and one GPU."""
        vision = VisionConfig(width=384, depth=12, heads=6, image_size=128, pool="none")
        return cls(vision=vision, text=TransformerConfig(width=512, depth=1, heads=8), context=64, random_crop=0.9)

    @classmethod
    def paper(cls) -> VirTexConfig:
        """ResNet-50 and the widest head, H = 2048. A crop's side is .45 to 1 of the picture's, its area .2 to 1."""
        return cls(timm_name="resnet50_gn", random_crop=0.45)

    @classmethod
    def h1024(cls) -> VirTexConfig:
        """The head of most of the paper's comparisons."""
        return replace(cls.paper(), text=TransformerConfig(width=1024, depth=1, heads=16))


@dataclass(frozen=True)
class MirroringCollate(PairCollate):
    """As `PairCollate`; with a generator a share of the samples is mirrored."""

    mirror: float = 0.0

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        if rng is not None:
            samples = [mirrored(sample) if rng.random() < self.mirror else sample for sample in samples]
        return super().__call__(samples, rng)


@dataclass(frozen=True)
class VirTexTokensConfig(VirTexConfig):
    """`text`, `backward` and `dropout` are not used."""


class Grid:
    """The image encoder and its features, for a `Model` that reads captions."""

    config: VirTexConfig
    tokenizer: Tokenizer
    collate: PairCollate
    visual: Any

    def _build(self, config: VirTexConfig, tokenizer: Tokenizer) -> int:
        """Set the attributes above. Returns the width of the grid's states."""
        if tokenizer.start is None:
            raise ValueError(f"captions begin with a start token, and the tokenizer {tokenizer.name!r} has none")
        self.config, self.tokenizer = config, tokenizer
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        self.collate = MirroringCollate(transform, tokenizer, config.context, mirror=config.mirror)
        self.visual = named_tower(config.timm_name) if config.timm_name else vision_transformer(config.vision)
        return self.visual.num_features

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> the mean of the grid, L2-normalised float32 `[N, width]`."""
        pixels = self.collate.images(images).to(next(self.visual.parameters()).device)
        return F.normalize(self._grid(pixels).float().mean(dim=1), dim=-1)

    def _grid(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the image encoder's states `[B, N, width]`, row by row."""
        states = self.visual.forward_features(normalise(pixels, self.config.mean, self.config.std))
        return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


class VirTex(Captioning, Grid, Model):
    paradigm = "generative"
    Config = VirTexConfig

    def __init__(self, config: VirTexConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        width = self._build(config, tokenizer)
        self.text = BiDecoder(
            config.text,
            backward=config.backward,
            vocab_size=config.vocab_size,
            context=config.context,
            image_width=width,
            dropout=config.dropout,
        )

    def encode(self, batch: Batch) -> Batch:
        """Of each caption its number of "tokens" `[B]`, and in each direction its negative log-likelihood in nats `[B]`."""
        ids, image = batch["ids"], self._image_tokens(batch["pixels"])
        real = until_end(ids, self.tokenizer)
        nll, count = caption_nll(self.text.look(self.text.embed(ids[:, :-1]), image), ids, real)
        features = {"tokens": count, "forward": nll}
        if self.config.backward:
            reverse = backwards(ids, real)
            logits = self.text.look(self.text.embed(reverse[:, :-1]), image, backward=True)
            features["backward"] = caption_nll(logits, reverse, real)[0]
        return features

    def objective(self, features: Batch) -> Losses:
        """Section 3.2: the sum of both directions, each a mean over all tokens of the batch."""
        terms = {name: mean_of_all(nll, features["tokens"]) for name, nll in features.items() if name != "tokens"}
        total = torch.stack(list(terms.values())).sum()
        return Losses(total, terms, dict.fromkeys(terms, math.log(self.config.vocab_size)))

    def _image_tokens(self, pixels: Tensor) -> Tensor:
        return self.text.projection(self._grid(pixels))

    def _text_states(self, ids: Tensor) -> Tensor:
        return self.text.embed(ids)


class VirTexTokens(Grid, Model):
    """Token classification, a pretext task that the paper compares with: which tokens a caption has, in no order."""

    paradigm = "generative"
    Config = VirTexTokensConfig

    def __init__(self, config: VirTexTokensConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.head = nn.Linear(self._build(config, tokenizer), config.vocab_size)

    def encode(self, batch: Batch) -> Batch:
        """Of each caption the mean negative log-likelihood of its distinct tokens in nats, and whether it has any, `[B]` each."""
        real = until_end(batch["ids"], self.tokenizer)
        nll, counted = bag_nll(self.head(self._grid(batch["pixels"]).mean(dim=1)), batch["ids"], real)
        return {"nll": nll, "counted": counted}

    def objective(self, features: Batch) -> Losses:
        loss = mean_of_all(features["nll"], features["counted"])
        return Losses(loss, {"tokens": loss}, {"tokens": math.log(self.config.vocab_size)})


def backwards(ids: Tensor, real: Tensor) -> Tensor:
    """Captions `start w1 .. wT end` `[B, L]` as `end wT .. w1 start`; padding stays behind, where `real` `[B, L]` is False."""
    from_end = real.sum(dim=1, keepdim=True) - 1 - torch.arange(ids.shape[1], device=ids.device)
    return torch.where(real, ids.gather(1, from_end.clamp(min=0)), ids)


def bag_nll(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of a caption's distinct tokens from logits `[B, V]`, their mean in nats `[B]`, and 1, or 0 for a caption without any `[B]`.

    The first and the last of the `real` tokens of `ids` `[B, T]`, start and end, do not count.
    """
    inner = real[:, 2:]  # one row shorter at both ends
    bag = torch.zeros_like(logits, dtype=torch.float32).scatter_reduce(1, ids[:, 1:-1], inner.float(), "amax")
    each = -(logits.float().log_softmax(dim=-1) * bag).sum(dim=1)
    count = bag.sum(dim=1)
    return each / count.clamp(min=1), (count > 0).long()


class BiDecoder(nn.Module):
    """Two stacks of layers for the two directions (figure 2 of the paper). Visual projection, embedding and output layer, which is tied to
    the embedding, are shared."""

    def __init__(
        self, config: TransformerConfig, *, backward: bool, vocab_size: int, context: int, image_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(image_width, config.width)
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.unimodal = nn.ModuleList()  # no layer reads text alone
        self.multimodal = nn.ModuleList(PostNormBlock(config, dropout) for _ in range(config.depth))
        self.backward_layers = nn.ModuleList(PostNormBlock(config, dropout) for _ in range(config.depth if backward else 0))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self._initialise()

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Tokens `[B, T]` at the places from `first` on -> `[B, T, D]`."""
        return self.dropout(self.norm(self.tokens(ids) + self.positions[first : first + ids.shape[1]]))

    def look(self, x: Tensor, image: Tensor, *, sees: Tensor | None = None, backward: bool = False) -> Tensor:
        """Embedded texts `[B, T, D]` and image tokens `[B, S, D]` -> logits of each next token `[B, T, V]`. Attention is causal unless
        given by `sees`, bool `[B, T, T]`."""
        for block in self.backward_layers if backward else self.multimodal:
            x = block(x, block.remember(image), mask=None if sees is None else sees[:, None])  # type: ignore[operator]
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tokens.weight, self.bias)

    def _initialise(self) -> None:
        """BERT's: deviations of .02, biases 0."""
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class PostNormBlock(nn.Module):
    """Attention to the text so far, attention to the image, MLP, with a norm after each residual sum."""

    def __init__(self, config: TransformerConfig, dropout: float) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross = CrossAttention(config.width, config.heads, memory_width=config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)
        self.norm3 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Memory, *, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x, causal=mask is None, mask=mask, cache=cache)))
        x = self.norm2(x + self.dropout(self.cross(x, memory)))
        return self.norm3(x + self.dropout(self.fc2(self.dropout(self.act(self.fc1(x))))))

    def remember(self, image: Tensor) -> Memory:
        return self.cross.remember(image)
