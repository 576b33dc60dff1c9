"""CoCa: one encoder-decoder trained to contrast images with texts and to caption them (Yu et al., 2022, arXiv 2205.01917).

Deviations at small scale, all in the configuration: `tiny` uses a convolutional stem, ReLU, its own small vocabulary, and
parallel poolers on the encoder. The paper does not specify the norms of the poolers and the projections after them; they
follow open_clip, and so does the captioning loss, a mean over tokens where equation 3 has a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require
from models.coca.captioning import Captioning
from models.coca.decoder import TextDecoder
from models.coca.objective import caption_nll, coca_loss
from models.coca.pooling import ImagePooling, Pooling
from models.contract import Losses, Model
from models.shared.collate import PairCollate
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.ranges import check_heads
from models.shared.text import Tokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer


def _vit(*, width: int, depth: int, heads: int, mlp_ratio: float = 4.0, image_size: int = 288, patch_size: int = 18) -> VisionConfig:
    return VisionConfig(width, depth, heads, mlp_ratio=mlp_ratio, image_size=image_size, patch_size=patch_size, pool="none")


@dataclass(frozen=True)
class CoCaConfig:
    vision: VisionConfig = field(default_factory=lambda: _vit(width=1408, depth=40, heads=16, mlp_ratio=6144 / 1408))
    text: TransformerConfig = field(default_factory=lambda: TransformerConfig(width=1408, depth=18, heads=16))  # the unimodal half
    multimodal_depth: int = 18  # section 3.2: as many as unimodal layers
    queries: int = 256  # of the generative pooler; section 3.2
    pooling: Pooling = "cascade"  # section 3.2, table 8f
    pooler_heads: int = 8
    embed_dim: int = 1408
    context: int = 76
    vocab_size: int = 64_000
    contrastive_weight: float = 1.0  # section 4.1; a term of weight 0 is not computed
    captioning_weight: float = 2.0  # section 4.1, table 8c; of the mean over tokens, where equation 3 sums
    temperature: float = 0.07  # initial; section 4.1
    max_scale: float = 100.0  # as CLIP's
    random_crop: float = 1.0
    second_mlp: bool = False  # open_clip's multimodal layers have another MLP between their two attentions
    shifted_mask: bool = False  # open_clip's released weights learned with a padding mask that is one place off
    mean: tuple[float, float, float] = OPENAI_MEAN  # of the pixels; some published weights were trained with another
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> CoCaConfig:
        """2.7 M parameters; minutes on two CPU cores."""
        vision = replace(TINY_TOWER, pool="none")
        text = TransformerConfig(width=128, depth=2, heads=4, activation="relu")
        return cls(vision=vision, text=text, multimodal_depth=2, queries=16, pooling="parallel", pooler_heads=4, embed_dim=128, context=32)

    @classmethod
    def small(cls) -> CoCaConfig:
        """Base at a tenth of its size (34 M), for 128 px pictures and one GPU."""
        vision = _vit(width=384, depth=12, heads=6, image_size=128, patch_size=16)
        text = TransformerConfig(width=256, depth=6, heads=4)
        return cls(vision=vision, text=text, multimodal_depth=6, queries=64, pooler_heads=4, embed_dim=256, random_crop=0.9)

    @classmethod
    def base(cls) -> CoCaConfig:
        """Table 1: 383 M."""
        text = TransformerConfig(width=768, depth=12, heads=12)
        return cls(vision=_vit(width=768, depth=12, heads=12), text=text, multimodal_depth=12, embed_dim=768)

    @classmethod
    def large(cls) -> CoCaConfig:
        """Table 1: 787 M."""
        text = TransformerConfig(width=1024, depth=12, heads=16)
        return cls(vision=_vit(width=1024, depth=24, heads=16), text=text, multimodal_depth=12, embed_dim=1024)

    @classmethod
    def paper(cls) -> CoCaConfig:
        """Table 1: the model of the title, 2.1 B."""
        return cls()


class CoCa(Captioning, Model):
    paradigm = "generative"
    Config = CoCaConfig
    builds_on = ("clip",)

    def __init__(self, config: CoCaConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        whole = config.vision.pool in ("none", "token")
        require(whole, "--model.vision.pool", config.vision.pool, "none or token: the poolers read all tokens of the image tower")
        require(config.text.depth >= 1, "--model.text.depth", config.text.depth, "1 layer or more")
        check_heads(config.pooler_heads, config.text.width, "text.width", "pooler-heads")
        if tokenizer.start is None:
            raise ValueError(f"captions begin with a start token, and the tokenizer {tokenizer.name!r} has none")
        self.config = config
        self.tokenizer = tokenizer
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        # The shifted mask lets the class token see the first padding: there has to be some.
        self.collate = PairCollate(transform, tokenizer, config.context, fixed_length=config.shifted_mask)
        self.visual = vision_transformer(config.vision)
        if config.pooling == "single":
            self.visual.norm = nn.Identity()  # it comes after the pooler
        width = config.text.width
        self.pooling = ImagePooling(config.vision, pooling=config.pooling, queries=config.queries, width=width, heads=config.pooler_heads)
        self.text = TextDecoder(
            config.text,
            multimodal_depth=config.multimodal_depth,
            vocab_size=config.vocab_size,
            context=config.context,
            tokenizer=tokenizer,
            second_mlp=config.second_mlp,
            shifted_mask=config.shifted_mask,
        )
        self.visual_projection = nn.Linear(width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        nn.init.normal_(self.visual_projection.weight, std=width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """Figure 2 of the paper: one pass through both towers serves both losses."""
        return self.objective(self.encode(batch))

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """L2-normalised features "image" and "text" `[B, embed_dim]`, and each caption's "nll" in nats and number of "tokens" `[B]`."""
        ids = batch["ids"]
        image, tokens = self._look(batch["pixels"])
        states, text = self.text.read(ids)
        features: dict[str, Tensor] = {}
        if self.config.contrastive_weight:
            features |= {"image": image, "text": self._text_feature(text)}
        if self.config.captioning_weight:
            nll, count = caption_nll(self.text.look(states[:, :-1], tokens), ids, self.text.real(ids))
            features |= {"nll": nll, "tokens": count}
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        config = self.config
        return coca_loss(
            features,
            self.logit_scale.exp(),
            contrastive=config.contrastive_weight,
            captioning=config.captioning_weight,
            vocab_size=config.vocab_size,
        )

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.config.max_scale))

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self._look(self._pixels(images))[0]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        return self._text_feature(self.text.read(self._ids(texts))[1])

    def _image_tokens(self, pixels: Tensor) -> Tensor:
        return self._look(pixels)[1]

    def _text_states(self, ids: Tensor) -> Tensor:
        return self.text.read(ids)[0]

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """L2-normalised features `[B, embed_dim]` and the image tokens for the decoder `[B, S, D]`."""
        pooled, tokens = self.pooling(self.visual.forward_features(normalise(pixels, self.config.mean, self.config.std)))
        return F.normalize(self.visual_projection(pooled).float(), dim=-1), tokens

    def _text_feature(self, cls: Tensor) -> Tensor:
        return F.normalize(self.text_projection(cls).float(), dim=-1)
