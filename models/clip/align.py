"""ALIGN: a dual encoder trained on raw alt-texts, many and noisy, instead of few and curated ones (Jia et al., 2021, arXiv 2102.05918).

What differs from CLIP: the image's vector is the tower's output without a projection, a text's is BERT's [CLS] state through a linear layer
with a bias, the learned temperature divides and starts at 1, and labels are smoothed.

Deviations: `tiny` and `small` keep CLIP's image tower instead of a second convolutional one. The statistics of an EfficientNet's BatchNorm
are those of its weights or, from scratch, of some training pictures, and stay: with those of a batch, its samples would not be independent
of each other. The loss is the mean of both directions, as in transformers, where the paper has the sum.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AlignTextConfig, AlignTextModel, AlignVisionConfig, AlignVisionModel

from data.fields import require
from data.sample import Sample
from models.contract import Losses, Model
from models.shared.collate import PairCollate
from models.shared.distributed import gather, rank
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import Tokenizer, until_end
from models.shared.transformer import Activation, TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

BERT_ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}


@dataclass(frozen=True)
class EfficientNetConfig:
    """EfficientNet-B0's blocks, scaled in width and depth; the names are transformers'."""

    width_coefficient: float = 0.0  # 0: no EfficientNet
    depth_coefficient: float = 0.0
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    in_channels: tuple[int, ...] = (32, 16, 24, 40, 80, 112, 192)
    out_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    num_block_repeats: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expand_ratios: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    depthwise_padding: tuple[int, ...] = ()  # blocks that pad all sides alike: those with a stride that see maps of an odd size
    drop_connect_rate: float = 0.0


@dataclass(frozen=True)
class ALIGNConfig:
    vision: VisionConfig  # the image tower, and the size of pictures
    text: TransformerConfig  # BERT
    efficientnet: EfficientNetConfig = field(default_factory=EfficientNetConfig)  # the image tower in its stead, if it has a width
    context: int = 64
    vocab_size: int = 30_522
    temperature: float = 1.0  # initial
    min_temperature: float = 0.01  # it is a plain parameter, and must not reach 0
    smoothing: float = 0.1  # of the labels
    noise: float = 0.0  # share of training pictures that come with the caption of another picture; for claims
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> Self:
        """1.9 M parameters; minutes on two CPU cores."""
        return cls(vision=TINY_TOWER, text=TransformerConfig(width=128, depth=2, heads=4, activation="relu", norm_eps=1e-12), context=32)

    @classmethod
    def small(cls) -> Self:
        """CLIP's image tower of that size."""
        vision = VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pre_norm=True)
        return cls(vision=vision, text=TransformerConfig(width=256, depth=6, heads=4, norm_eps=1e-12), context=77, random_crop=0.9)

    @classmethod
    def paper(cls) -> Self:
        """EfficientNet-L2 and BERT-large, from scratch."""
        return cls._efficientnet(4.3, 5.3, TransformerConfig(width=1024, depth=24, heads=16, norm_eps=1e-12), vocab_size=100_000)

    @classmethod
    def released(cls) -> Self:
        """EfficientNet-B7 and BERT-base: the weights on the hub are a reproduction by others."""
        text = TransformerConfig(width=768, depth=12, heads=12, norm_eps=1e-12)
        return cls._efficientnet(2.0, 3.1, text, context=512)

    @classmethod
    def _efficientnet(cls, width: float, depth: float, text: TransformerConfig, **options: Any) -> Self:
        blocks = EfficientNetConfig(width_coefficient=width, depth_coefficient=depth)
        size = VisionConfig(width=1, depth=0, heads=1, image_size=289)  # only the image size counts
        return cls(vision=size, text=text, efficientnet=blocks, random_crop=289 / 346, mean=HALF, std=HALF, **options)


@dataclass(frozen=True)
class NoisyCollate(PairCollate):
    """With `noise`, some pictures come with a caption of the batch's next sample: always the same pictures, by a hash of their keys."""

    noise: float = 0.0

    def captions(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Tensor:
        if rng is None or not self.noise:  # evaluation is clean
            return super().captions(samples, rng)
        following = [*samples[1:], samples[0]]
        wrong = [zlib.crc32(sample.key.encode()) < self.noise * 2**32 for sample in samples]
        return super().captions([other if is_wrong else own for own, other, is_wrong in zip(samples, following, wrong, strict=True)], rng)


class ALIGN(Model):
    paradigm = "contrastive"
    Config = ALIGNConfig

    def __init__(self, config: ALIGNConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        self.collate = NoisyCollate(transform, tokenizer, config.context, noise=config.noise)
        wide = config.efficientnet.width_coefficient
        self.visual: Any = _efficientnet(config) if wide else vision_transformer(config.vision, pooled=True)
        self.text: Any = _bert(config)
        self.text_projection = nn.Linear(config.text.width, _width(self.visual))
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature)))
        nn.init.xavier_uniform_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)

    @property
    def logit_scale(self) -> Tensor:
        """ln(1 / temperature), by which the harness scales similarities."""
        return -self.temperature.log()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.visual.modules():  # statistics of a batch would make its rows depend on each other
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.no_grad()
    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Give the BatchNorm of an EfficientNet from scratch, whose statistics no weights came with, those of some training pictures."""
        norms = [module for module in self.visual.modules() if isinstance(module, nn.BatchNorm2d)]
        if not norms or any(norm.running_mean.any() for norm in norms):  # type: ignore[union-attr]
            return
        some = next(iter(batches))[:64]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self._tower(self.collate.images([sample.image for sample in some]).to(self.temperature.device))
        self.train(self.training)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per-pair features, L2-normalised `[B, D]`."""
        return {"image": self._image_features(batch["pixels"]), "text": self._text_features(batch["ids"])}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return align_loss(features["image"], features["text"], self.temperature, self.config.smoothing)

    def after_step(self) -> None:
        with torch.no_grad():
            self.temperature.clamp_(min=self.config.min_temperature)

    # ------------------------------------------------------------------------------------------------ capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, D]`."""
        return self._image_features(self.collate.images(images).to(self.temperature.device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, D]`."""
        return self._text_features(self.collate.texts(texts).to(self.temperature.device))

    def _image_features(self, pixels: Tensor) -> Tensor:
        return F.normalize(self._tower(pixels).float(), dim=-1)

    def _tower(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` -> `[B, D]`."""
        found = self.visual(normalise(pixels, self.config.mean, self.config.std))
        return found if isinstance(found, Tensor) else found.pooler_output

    def _text_features(self, ids: Tensor) -> Tensor:
        hidden = ~until_end(ids, self.tokenizer)[:, None, None]  # [B, 1, 1, T]
        mask = torch.zeros(hidden.shape, device=ids.device).masked_fill(hidden, torch.finfo(torch.float32).min)
        states = self.text(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, W]
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)


def align_loss(image: Tensor, text: Tensor, temperature: Tensor, smoothing: float) -> Losses:
    """CLIP's cross-entropy in both directions with smoothed labels: the right one has 1 - smoothing + smoothing / B of the mass, each other
    smoothing / B. Its minimum is above 0.

    image, text: L2-normalised features of this rank's pairs `[b, D]`. Equal logits still have a loss of ln B.
    """
    right = rank() * len(image) + torch.arange(len(image), device=image.device)
    logits = {"image_to_text": image @ gather(text).T / temperature, "text_to_image": text @ gather(image).T / temperature}  # [b, B]
    terms = {name: F.cross_entropy(each, right, label_smoothing=smoothing) for name, each in logits.items()}
    chance = math.log(logits["image_to_text"].shape[1])
    return Losses((terms["image_to_text"] + terms["text_to_image"]) / 2, terms, dict.fromkeys(terms, chance))


# ------------------------------------------------------------------------------------------------------------- the towers


def _efficientnet(config: ALIGNConfig) -> AlignVisionModel:
    """EfficientNet without its last convolution, with global pooling."""
    for name in ("width_coefficient", "depth_coefficient"):
        value = getattr(config.efficientnet, name)
        require(
            0.1 <= value <= 100,
            f"--model.efficientnet.{name.replace('_', '-')}",
            value,
            "0.1 to 100, or 0 for both without an EfficientNet",
        )
    return AlignVisionModel(AlignVisionConfig(image_size=config.vision.image_size, **vars(config.efficientnet)))


def _bert(config: ALIGNConfig) -> AlignTextModel:
    text = config.text
    require(
        text.activation in BERT_ACTIVATIONS, "--model.text.activation", text.activation, f"one of BERT's: {', '.join(BERT_ACTIVATIONS)}"
    )
    theirs = AlignTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.depth,
        num_attention_heads=text.heads,
        intermediate_size=int(text.width * text.mlp_ratio),
        hidden_act=BERT_ACTIVATIONS[text.activation],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=config.context,
        layer_norm_eps=text.norm_eps,
        pad_token_id=None,  # padding is masked, and for some tokenizers its id is that of a word
        attn_implementation="eager",  # the fused kernel is slow in bf16 on a CPU
    )
    return AlignTextModel(theirs, add_pooling_layer=False)


def _width(tower: Any) -> int:
    if isinstance(tower, AlignVisionModel):
        return tower.encoder.blocks[-1].projection.project_conv.out_channels
    return tower.num_features
