"""FLAVA: one model of images, of texts and of both, from masked prediction, contrast and matching (Singh et al., 2022, arXiv 2112.04482).

Deviations: batches mix pairs, pictures and texts instead of drawing one data set a step (`Mixture`). `tiny` puts convolutions
before the image blocks, so that masked patches are blanked in the pixels, too; its discrete targets are the suite's own image
tokenizer's instead of DALL-E's; some mismatched captions are foils, without which matching does not learn who is where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import freeze
from models.flava.collate import IMAGE, PAIR, TEXT, MaskedCollate, Mixture
from models.flava.objective import flava_loss
from models.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.layers import ACTIVATIONS, Block, Losses, TransformerConfig, VisionConfig, vision_transformer
from models.masking import UNSEEN, TokenMasking, image_states
from models.text import Tokenizer, layout, until_end
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig

BASE = TransformerConfig(width=768, depth=12, heads=12, norm_eps=1e-12)


@dataclass(frozen=True)
class Weights:
    """Of the losses; the paper's are all 1 (section 3.2). A term of weight 0 is not computed."""

    contrastive: float = 1.0
    itm: float = 1.0
    mim: float = 1.0
    mlm: float = 1.0
    mmm_image: float = 1.0
    mmm_text: float = 1.0


def _dalle() -> VQConfig:
    """DALL-E's encoder in shape: 112 px -> 14 x 14 codes out of 8,192 (section 4.1)."""
    return VQConfig(network=NetworkConfig(image_size=112, multiplier=(1, 1, 2, 4)), codes=8192)


@dataclass(frozen=True)
class FLAVAConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, norm_eps=1e-12))
    text: TransformerConfig = BASE
    fusion: TransformerConfig = field(default_factory=lambda: replace(BASE, depth=6))
    codebook: VQConfig = field(default_factory=_dalle)
    embed_dim: int = 768  # of the contrast; the paper says 512, the released weights have 768
    context: int = 77
    vocab_size: int = 30_522
    weights: Weights = field(default_factory=Weights)
    mixture: Mixture = field(default_factory=lambda: Mixture(mismatched=0.5))
    masked_patches: int = 75  # of 196, as BEiT
    masking: TokenMasking = field(default_factory=TokenMasking)
    temperature: float = 0.07  # initial
    max_scale: float = 100.0
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> FLAVAConfig:
        vision = VisionConfig(width=160, depth=3, heads=5, activation="relu", image_size=64, patch_size=8, stem="conv")
        text = TransformerConfig(width=128, depth=2, heads=4, activation="relu")
        return cls(
            vision=vision,
            text=text,
            fusion=TransformerConfig(width=160, depth=2, heads=5, activation="relu"),
            codebook=VQConfig.tiny(),
            embed_dim=128,
            context=32,
            mixture=Mixture(mismatched=0.5, hard=0.5),
            masked_patches=26,
            masking=TokenMasking(whole_words=True),
        )

    @classmethod
    def small(cls) -> FLAVAConfig:
        """For 128 px pictures and one GPU."""
        return cls(
            vision=VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=8),
            text=TransformerConfig(width=256, depth=6, heads=4),
            fusion=TransformerConfig(width=384, depth=4, heads=6),
            codebook=VQConfig.small(),
            embed_dim=256,
            mixture=Mixture(mismatched=0.5, hard=0.5),
            masked_patches=98,
            masking=TokenMasking(whole_words=True),
            random_crop=0.9,
        )

    @classmethod
    def paper(cls) -> FLAVAConfig:
        """Section 4.1: 241 M parameters in the three encoders."""
        return cls()


class TextEncoder(nn.Module):
    """BERT's embeddings, then the image encoder's pre-norm blocks (section 3.1)."""

    def __init__(self, config: TransformerConfig, *, rows: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(rows, config.width)
        self.positions = nn.Parameter(torch.empty(context, config.width))
        self.segments = nn.Parameter(torch.empty(2, config.width))  # BERT's; captions are all of the first
        self.norm_tokens = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        for table in (self.tokens.weight, self.positions, self.segments):
            nn.init.normal_(table, std=0.02)

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """Texts `[B, T]`, `real` where they are no padding -> states before the last norm `[B, T, D]`."""
        x = self.norm_tokens(self.tokens(ids) + self.segments[0] + self.positions[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask=real[:, None, None])
        return x


class Fusion(nn.Module):
    """Self-attention over [class; image states; text states], each projected to its width (section 3.1)."""

    def __init__(self, config: FLAVAConfig) -> None:
        super().__init__()
        width = config.fusion.width
        self.image = nn.Linear(config.vision.width, width)
        self.text = nn.Linear(config.text.width, width)
        self.cls_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(config.fusion) for _ in range(config.fusion.depth))
        self.norm = nn.LayerNorm(width, eps=config.fusion.norm_eps)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, image: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """Image states `[B, 1 + N, D_I]`, text states `[B, T, D_T]` -> `[B, 1 + 1 + N + T, D]`."""
        x = torch.cat([self.cls_token.expand(len(image), 1, -1), self.image(image), self.text(text)], dim=1)
        always = torch.ones(len(image), 1 + image.shape[1], dtype=torch.bool, device=real.device)
        mask = torch.cat([always, real], dim=1)[:, None, None]
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)


class PredictionHead(nn.Sequential):
    """Linear, GELU, norm, linear: one of its own for each of the four masked predictions."""

    def __init__(self, config: TransformerConfig, classes: int) -> None:
        super().__init__(
            nn.Linear(config.width, config.width),
            ACTIVATIONS[config.activation](),
            nn.LayerNorm(config.width, eps=config.norm_eps),
            nn.Linear(config.width, classes),
        )


class MatchingHead(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


class FLAVA(nn.Module):
    paradigm = "masking"
    score_kind = "matching head"

    def __init__(self, config: FLAVAConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        mask = getattr(tokenizer, "mask", None)
        self.mask_id = config.vocab_size if mask is None else mask  # a tokenizer without one gets one more row
        self.side = config.vision.image_size // config.vision.patch_size
        self.codebook = freeze(VQ(config.codebook))
        if self.codebook.side != self.side:
            raise ValueError(
                f"every patch needs one code: there are {self.side} x {self.side} patches and {self.codebook.side} x {self.codebook.side} "
                f"codes; choose vision.patch_size and codebook.network so that they agree"
            )
        self.visual = vision_transformer(config.vision)
        self.mask_token = nn.Parameter(torch.empty(config.vision.width))
        self.text = TextEncoder(config.text, rows=config.vocab_size + (mask is None), context=config.context)
        self.fusion = Fusion(config)
        self.image_projection = nn.Linear(config.vision.width, config.embed_dim)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.mim_head = PredictionHead(config.vision, self.codebook.size)
        self.mlm_head = PredictionHead(config.text, config.vocab_size)
        self.mmm_image_head = PredictionHead(config.fusion, self.codebook.size)
        self.mmm_text_head = PredictionHead(config.fusion, config.vocab_size)
        self.match_head = MatchingHead(config.fusion.width)
        nn.init.normal_(self.mask_token, std=0.02)
        self.collate = MaskedCollate(
            ImageTransform(config.vision.image_size, config.random_crop),
            tokenizer,
            config.context,
            self.side,
            config.masked_patches,
            config.masking,
            self.mask_id,
            config.mixture,
        )

    def adopt(self, modules: Mapping[str, nn.Module]) -> None:
        """ "image_tokenizer": a trained `VQ`, which gives the targets of masked patches."""
        self.codebook.load_state_dict(modules["image_tokenizer"].state_dict())

    def enter_stage(self, name: str) -> None:
        """ "unimodal": pictures alone and texts alone, half and half, as the paper initialises its encoders; "joint": the mixture."""
        if name not in ("unimodal", "joint"):
            raise ValueError(f"stage {name!r}: expected unimodal or joint")
        self.collate = replace(self.collate, mixture=self.config.mixture if name == "joint" else Mixture(pictures=0.5, texts=0.5))

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        return self.objective(self.encode(batch))

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per sample what `flava_loss` takes. Rows that have no part in a term are 0 there."""
        kind, rows = batch["kind"], len(batch["kind"])
        pair, image, text = kind == PAIR, kind != TEXT, kind != IMAGE
        targets = torch.where(batch["patches"], self.codes(batch["pixels"]), UNSEEN)  # [B, N]
        real = self._real(batch["ids"])
        features = {"kind": kind, "match": batch["match"]}

        pixels = normalise(batch["pixels"], self.config.mean, self.config.std)
        clear_image = self.visual.norm(self._image_states(pixels[pair]))
        clear_text = self.text.norm(self.text(batch["ids"][pair], real[pair]))
        features["image"] = _spread(self._image_feature(clear_image), pair)
        features["text"] = _spread(self._text_feature(clear_text), pair)

        hidden_image = _spread(self._image_states(pixels[image], batch["patches"][image]), image)  # [B, 1 + N, D]
        hidden_text = _spread(self.text(batch["masked_ids"][text], real[text]), text)  # [B, T, D]
        fused = _spread(self.fusion(hidden_image[pair], hidden_text[pair], real[pair]), pair)
        features["match_logits"] = self.match_head(fused[:, 0]).float()

        positive, patches = pair & batch["match"], slice(2, 2 + self.side**2)
        words = slice(2 + self.side**2, None)
        predictions: dict[str, tuple[Any, ...]] = {
            "mim": (self.mim_head, lambda x: self.visual.norm(x)[:, 1:], hidden_image, targets, kind == IMAGE),
            "mlm": (self.mlm_head, self.text.norm, hidden_text, batch["labels"], kind == TEXT),
            "mmm_image": (self.mmm_image_head, lambda x: x[:, patches], fused, targets, positive),
            "mmm_text": (self.mmm_text_head, lambda x: x[:, words], fused, batch["labels"], positive),
        }
        for term, (head, states, source, labels, asked) in predictions.items():
            if getattr(self.config.weights, term):
                nll, count = _masked_nll(head, states(source), labels, asked)
                features |= {f"{term}_nll": nll, f"{term}_n": count}
        assert all(len(feature) == rows for feature in features.values())
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return flava_loss(
            features, self.logit_scale.exp(), vars(self.config.weights), codes=self.codebook.size, words=self.config.vocab_size
        )

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.config.max_scale))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """The code of every patch: uint8 pixels `[B, 3, S, S]` -> `[B, N]`."""
        size = self.config.codebook.network.image_size
        if size != pixels.shape[-1]:
            pixels = F.interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)
        return self.codebook.tokenise(pixels)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self._image_feature(self.visual.norm(self._image_states(self._pixels(images))))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        ids = self._ids(texts)
        return self._text_feature(self.text.norm(self.text(ids, self._real(ids))))

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """Logit of "this text belongs to this image" by the matching head, float32 `[N]`; nothing is masked."""
        distinct = {id(image): image for image in images}  # the same picture with many texts is looked at once
        order = {name: place for place, name in enumerate(distinct)}
        states = self._image_states(self._pixels(list(distinct.values())))[[order[id(image)] for image in images]]
        ids = self._ids(texts)
        real = self._real(ids)
        logits = self.match_head(self.fusion(states, self.text(ids, real), real)[:, 0]).float()
        return logits[:, 1] - logits[:, 0]

    def _image_states(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        return image_states(self.visual, pixels, hidden, self.mask_token)

    def _image_feature(self, states: Tensor) -> Tensor:
        return F.normalize(self.image_projection(states[:, 0]).float(), dim=-1)

    def _text_feature(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = self.collate.transform(images).to(self.logit_scale.device)
        return normalise(pixels, self.config.mean, self.config.std)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return layout(self.tokenizer, texts, self.config.context).to(self.logit_scale.device)

    def _real(self, ids: Tensor) -> Tensor:
        return until_end(ids, self.tokenizer.end)


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """Back to the whole batch: `values` `[n, ...]` at the `rows` `[B]` that are set, 0 elsewhere."""
    whole = values.new_zeros(len(rows), *values.shape[1:])
    return whole.index_put((rows.nonzero()[:, 0],), values)


def _masked_nll(head: nn.Module, states: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every label that is asked for in the `rows` `[B]`, summed, and their number: `[B]` each."""
    asked = (labels != UNSEEN) & rows[:, None]  # [B, T]
    each = F.cross_entropy(head(states[asked]).float(), labels[asked], reduction="none")
    total = torch.zeros(len(rows), device=each.device).index_add(0, asked.nonzero()[:, 0], each)
    return total, asked.sum(dim=1)
