"""MaskVLM: each modality is reconstructed from its masked self and the other one unmasked (Kwon et al., 2023, arXiv 2208.02131).

Deviations: a rank finds its hard negatives among its own pairs, as ALBEF does. `tiny` puts convolutions before the image blocks,
so that hidden patches are blanked in the pixels, too, and has no class token: the mean of an image's states replaces it. Its
image encoder starts from CLIP's where `paper`'s starts from ImageNet's, its text encoder from random weights. It takes some of
its negative texts from the foils of the data, and pixels inside of objects' boxes weigh more, where boxes are known, by a smooth
L1. In the stage "retrieval" nothing is masked, and only contrast and matching remain: the paper's fine-tuning for retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.contract import Losses, Model
from models.maskvlm.blocks import CrossEncoder, TextEncoder
from models.maskvlm.convert import fetch_roberta
from models.maskvlm.objective import contrastive, masked_pixels, masked_words, visible_median
from models.shared.backbones import fetch_tower
from models.shared.distributed import gather
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, inside_boxes, normalise
from models.shared.masking import TokenMasking, random_mask
from models.shared.matching import CHANCE as MATCHING_CHANCE
from models.shared.matching import draw_foil, hard_negatives, matching_loss
from models.shared.text import Tokenizer, layout, until_end
from models.shared.transformer import TransformerConfig, as_autocast, autocast_like
from models.shared.vision import TINY_TOWER, VisionConfig, image_states, patches_to_pixels, plain, vision_transformer

BASE = TransformerConfig(width=768, depth=12, heads=12, norm_eps=1e-5)
SWAPS = 0.9  # share of the foils that exchange words, where a picture has both kinds


@dataclass(frozen=True)
class Weights:
    """Of the losses; the paper's are all 1. A term of weight 0 is not computed."""

    itc: float = 1.0
    itm: float = 1.0
    mlm: float = 1.0
    mim: float = 1.0


@dataclass(frozen=True)
class MaskVLMConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, norm_eps=1e-6))
    text: TransformerConfig = BASE
    cross: TransformerConfig = field(default_factory=lambda: TransformerConfig(width=768, depth=3, heads=12))  # of each cross encoder
    decoder_depth: int = 3  # cross-attention blocks of the image decoder
    image_weights: str = ""  # timm's published weights that `vision` starts from; "" for random ones
    text_weights: str = ""  # a RoBERTa of the hub, or a folder like one, that `text` starts from; "" for random ones
    embed_dim: int = 256
    context: int = 77
    vocab_size: int = 50_265
    weights: Weights = field(default_factory=Weights)  # in the stage "pretraining"
    retrieval: Weights = field(default_factory=lambda: Weights(mlm=0.0, mim=0.0))  # in the stage of this name
    masked_patches: float = 0.6  # share
    masking: TokenMasking = field(default_factory=lambda: TokenMasking(rate=0.3))
    foils: float = 0.0  # share of the pairs, where there are foils, whose negative text is one, and whose text is its true counterpart
    retrieval_foils: float = 0.0  # the same in the stage "retrieval"
    object_weight: float = 0.0  # added to the weight 1 of hidden pixels inside of objects' boxes
    rounded: float = 0.0  # painting errors below this count by their square, see `masked_pixels`; 0 is the paper's L1
    relative: bool = False  # the decoder predicts the difference from the median colour of the visible patches
    hide_both: bool = False  # reconstruct from the other modality masked, too: FLAVA's way, for comparison
    temperature: float = 0.07  # initial
    max_scale: float = 100.0
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> MaskVLMConfig:
        return cls(
            vision=TINY_TOWER,
            text=TransformerConfig(width=128, depth=2, heads=4, activation="relu"),
            cross=TransformerConfig(width=128, depth=2, heads=4, activation="relu"),
            decoder_depth=1,
            embed_dim=128,
            context=32,
            foils=0.5,
            retrieval_foils=0.8,
            object_weight=3.0,
            rounded=1.0,
            relative=True,
            weights=Weights(itm=2.0, mim=4.0),
            retrieval=Weights(itm=2.0, mlm=0.0, mim=0.0),
        )

    @classmethod
    def small(cls) -> MaskVLMConfig:
        """For 128 px pictures and one GPU."""
        return cls(
            vision=VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pre_norm=True),
            text=TransformerConfig(width=384, depth=6, heads=6),
            cross=TransformerConfig(width=384, depth=3, heads=6),
            context=64,
            foils=0.5,
            random_crop=0.9,
        )

    @classmethod
    def paper(cls) -> MaskVLMConfig:
        """ViT-B/16, from ImageNet, and RoBERTa-base with nine cross-attention blocks."""
        return cls(image_weights="vit_base_patch16_224.augreg_in1k", text_weights="roberta-base", mean=HALF, std=HALF)


@dataclass(frozen=True)
class MaskedCollate:
    transform: ImageTransform
    tokenizer: Tokenizer
    context: int
    side: int
    patches: float
    masking: TokenMasking
    mask: int
    foils: float

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`; "objects" bool `[B, 1, S, S]`, inside of their boxes; "ids", "masked_ids", "labels" `[B, T]`;
        "patches" bool `[B, N]`, the hidden ones; "foil_ids", "masked_foil_ids" `[B, T]` and "has_foil" `[B]`: a false text of the
        picture's own. Without a generator everything is drawn with seed 0."""
        draw = rng or np.random.default_rng(0)
        captions = [sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples]
        foils = [draw_foil(sample, draw, swaps=SWAPS) if draw.random() < self.foils else None for sample in samples]
        captions = [foil.caption if foil else caption for foil, caption in zip(foils, captions, strict=True)]
        false = [foil.foil if foil else caption for foil, caption in zip(foils, captions, strict=True)]
        # Foils are masked as captions are: a text that is whole would give itself away.
        ids, masked, labels = self.masking(self.tokenizer, [*captions, *false], self.context, mask=self.mask, rng=draw)
        hidden = [random_mask(self.side, round(self.patches * self.side**2), draw).reshape(-1) for _ in samples]
        rows = len(samples)
        seed = draw.integers(2**63)  # the boxes are cropped as the pictures are
        crops = [None, None] if rng is None else [np.random.default_rng(seed) for _ in range(2)]
        return {
            "pixels": self.transform([sample.image for sample in samples], crops[0]),
            "objects": self.transform(inside_boxes(samples), crops[1])[:, :1] > 127,
            "ids": ids[:rows],
            "masked_ids": masked[:rows],
            "labels": labels[:rows],
            "patches": torch.from_numpy(np.stack(hidden)),
            "foil_ids": ids[rows:],
            "masked_foil_ids": masked[rows:],
            "has_foil": torch.tensor([foil is not None for foil in foils]),
        }


class Sides(NamedTuple):
    """States of one modality: those that attend to the other one (masked in training) and those that it attends to (never masked)."""

    asking: Tensor
    answering: Tensor


class MaskVLM(Model):
    paradigm = "masking"
    Config = MaskVLMConfig
    builds_on = ("clip",)
    score_kind = "matching head"

    def __init__(self, config: MaskVLMConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        mask = tokenizer.mask
        mask_id = config.vocab_size if mask is None else mask  # a tokenizer without one gets one more row
        self.side = config.vision.image_size // config.vision.patch_size
        transform = ImageTransform(config.vision.image_size, config.random_crop)
        self.collate = MaskedCollate(
            transform, tokenizer, config.context, self.side, config.masked_patches, config.masking, mask_id, config.foils
        )
        self.visual = plain(vision_transformer(config.vision), "MaskVLM hides patches")
        self.mask_token = nn.Parameter(torch.empty(config.vision.width))
        self.text = TextEncoder(config.text, rows=config.vocab_size + (mask is None), context=config.context)
        width = config.cross.width
        self.image_in, self.text_in = nn.Linear(config.vision.width, width), nn.Linear(config.text.width, width)
        self.image_cross = CrossEncoder(config.cross, memory_width=width)
        self.text_cross = CrossEncoder(config.cross, memory_width=width)
        decoder = TransformerConfig(**(vars(config.cross) | {"depth": config.decoder_depth}))
        self.image_decoder = CrossEncoder(decoder, memory_width=width)
        self.pixel_head = nn.Linear(width, 3 * config.vision.patch_size**2)
        self.word_head = nn.Linear(width, config.vocab_size)
        self.match_head = nn.Linear(width, 2)
        self.image_projection = nn.Linear(config.vision.width, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        nn.init.normal_(self.mask_token, std=0.02)
        if config.relative:  # begin with the trivial fill
            nn.init.zeros_(self.pixel_head.weight)
            nn.init.zeros_(self.pixel_head.bias)
        self.enter_stage("pretraining")

    def adopt(self, modules: Mapping[str, nn.Module]) -> None:
        """ "image_encoder": a trained CLIP whose image tower has the shape of this one's; the contrast starts from its projection."""
        donor: Any = modules["image_encoder"]
        self.visual.load_state_dict(donor.visual.state_dict())
        if donor.visual_projection.weight.shape == self.image_projection.weight.shape:
            self.image_projection.load_state_dict(donor.visual_projection.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the encoders' published weights, where they are named. Returns module -> where they came from."""
        tower = super().fetch() | fetch_tower(self.visual, self.config.image_weights)
        return tower | fetch_roberta(self.text, self.config.text_weights, self.tokenizer)

    def enter_stage(self, name: str) -> None:
        """ "pretraining" (also the only stage of a recipe without any, "train"), or "retrieval", for which the paper fine-tunes by
        contrast and matching: with nothing to reconstruct nothing is masked."""
        if name not in ("train", "pretraining", "retrieval"):
            raise ValueError(f"stage {name!r}: expected pretraining or retrieval")
        config, tuning = self.config, name == "retrieval"
        self.weights = config.retrieval if tuning else config.weights
        self.collate = replace(self.collate, foils=config.retrieval_foils if tuning else config.foils)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four passes of the two encoders (figure 2): states `[B, 1 + N, D]` and `[B, T, D]`, clear and masked, and the contrast's
        features; beside them what the losses compare with. If nothing is reconstructed, the unmasked states replace the masked ones."""
        weights = self.weights
        pixels = normalise(batch["pixels"], self.config.mean, self.config.std)
        real = until_end(batch["ids"], self.tokenizer)
        features = {name: batch[name] for name in ("ids", "labels", "patches", "objects", "has_foil")} | {"pixels": pixels, "real": real}
        image, text = self._see(pixels), self.text(batch["ids"], real)
        features |= {"image_states": image, "text_states": text, "image": self._image_feature(image), "text": self._text_feature(text)}
        masks = bool(weights.mim or weights.mlm)
        features["masked_image_states"] = self._see(pixels, batch["patches"]) if masks else image
        features["masked_text_states"] = self.text(batch["masked_ids"], real) if masks else text
        if weights.itm and self.collate.foils:
            foil_real = until_end(batch["foil_ids"], self.tokenizer)
            clear = self.text(batch["foil_ids"], foil_real)
            masked = self.text(batch["masked_foil_ids"], foil_real) if masks else clear
            features |= {"foil_real": foil_real, "foil_states": clear, "masked_foil_states": masked}
        return features | {name: as_autocast(states) for name, states in features.items() if name.endswith("_states")}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """What couples pairs (contrast, hard negatives), and the cross encoders, which need the pairs that those chose."""
        config = self.config
        fill = visible_median(features["pixels"], features["patches"])
        with autocast_like(features["image_states"]):
            terms = self._terms(features, fill)
        chance: dict[str, float | Tensor] = {
            "itc": math.log(max(2, len(gather(features["has_foil"])))),
            "itm": MATCHING_CHANCE,
            "mlm": math.log(config.vocab_size),
            "mim": self._pixel_loss(fill, features),
        }
        return Losses.weighted(terms, vars(self.weights), chance)

    def _terms(self, features: dict[str, Tensor], fill: Tensor) -> dict[str, Tensor]:
        weights, terms = self.weights, dict[str, Tensor]()
        scale = self.logit_scale.exp()
        if weights.itc:
            terms["itc"] = contrastive(features["image"], features["text"], scale)
        if not (weights.itm or weights.mlm or weights.mim):
            return terms
        clear_image, clear_text = self.image_in(features["image_states"]), self.text_in(features["text_states"])
        masked_image, masked_text = self.image_in(features["masked_image_states"]), self.text_in(features["masked_text_states"])
        if self.config.hide_both:
            clear_image, clear_text = masked_image, masked_text
        images, texts, real = Sides(masked_image, clear_image), Sides(masked_text, clear_text), features["real"]
        image_out, text_out = self._cross(images, texts, real)
        if weights.itm:
            terms["itm"] = self._matching(features, images, texts, self._product(image_out, text_out))
        if weights.mlm:
            terms["mlm"] = masked_words(self.word_head(text_out), features["labels"])
        if weights.mim:
            terms["mim"] = self._pixel_loss(self._paint(image_out, clear_text, real, fill), features)
        return terms

    def _matching(self, features: dict[str, Tensor], images: Sides, texts: Sides, positive: Tensor) -> Tensor:
        """Positives, each image with a false text (a foil, or a hard one of another pair), each text with a hard image: cross-entropy
        over 3 B pairs."""
        similarity = self.logit_scale.exp() * features["image"] @ features["text"].T
        hard_text, hard_image = hard_negatives(similarity, features["ids"])
        false, real = Sides(*(side[hard_text] for side in texts)), features["real"][hard_text]
        if "foil_states" in features:
            own = features["has_foil"][:, None]
            asking, answering = self.text_in(features["masked_foil_states"]), self.text_in(features["foil_states"])
            foils = Sides(asking, asking if self.config.hide_both else answering)
            false = Sides(*(torch.where(own[..., None], foil, side) for foil, side in zip(foils, false, strict=True)))
            real = torch.where(own, features["foil_real"], real)
        others = [
            self._product(*self._cross(images, false, real)),
            self._product(*self._cross(Sides(*(side[hard_image] for side in images)), texts, features["real"])),
        ]
        return matching_loss(self.match_head(torch.cat([positive, *others])), positives=len(positive))

    def _product(self, image_out: Tensor, text_out: Tensor) -> Tensor:
        """The matching head's input for a pair: the product of both sides' summaries."""
        return self._whole(image_out) * text_out[:, 0]

    def _cross(self, images: Sides, texts: Sides, real: Tensor) -> tuple[Tensor, Tensor]:
        """The two cross encoders (equations 1 and 2): each masked modality attends to the other one, unmasked."""
        image_out = self.image_cross(images.asking, texts.answering, memory_real=real)
        text_out = self.text_cross(texts.asking, images.answering, real=real)
        return image_out, text_out

    def _paint(self, image_out: Tensor, text: Tensor, real: Tensor, fill: Tensor) -> Tensor:
        """States `[B, (1 +) N, D]` -> normalised pixels `[B, 3, S, S]`; `fill` is what is visible at the median, `[B, 3, 1, 1]`."""
        patches = self.pixel_head(self.image_decoder(image_out, text, memory_real=real)[:, self.visual.num_prefix_tokens :])
        # [B, N, 3 * P * P]
        grid = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
        painted = F.pixel_shuffle(grid, self.config.vision.patch_size).float()
        return fill + painted if self.config.relative else painted

    def _pixel_loss(self, predicted: Tensor, features: dict[str, Tensor]) -> Tensor:
        weights = 1 + self.config.object_weight * features["objects"].float()
        return masked_pixels(predicted, features["pixels"], features["patches"], weights, rounded=self.config.rounded)

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.config.max_scale))

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self._image_feature(self._see(self._pixels(images)))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        ids = self._ids(texts)
        return self._text_feature(self.text(ids, until_end(ids, self.tokenizer)))

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """Logit of "this text belongs to this image" by the matching head, float32 `[N]`; nothing is masked."""
        pictures, rows = distinct(images)
        states = self.image_in(self._see(self._pixels(pictures)))[rows]
        ids = self._ids(texts)
        real = until_end(ids, self.tokenizer)
        words = self.text_in(self.text(ids, real))
        image_out, text_out = self._cross(Sides(states, states), Sides(words, words), real)
        logits = self.match_head(self._product(image_out, text_out)).float()
        return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def words(self, images: Sequence[np.ndarray], masked_ids: Tensor) -> Tensor:
        """Logits of every word for every place of the texts `[B, T]`, from whole pictures: `[B, T, V]`."""
        ids = masked_ids.to(self.logit_scale.device)
        real = until_end(ids, self.tokenizer)
        states = self.image_in(self._see(self._pixels(images)))
        return self.word_head(self.text_cross(self.text_in(self.text(ids, real)), states, real=real))

    @torch.no_grad()
    def unmask(self, images: Sequence[np.ndarray], texts: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each picture with masked patches, and its reconstruction given the text ("" for none): uint8 `[S, S, 3]`."""
        pixels = self._pixels(images)
        rng = np.random.default_rng(seed)
        count = round(self.config.masked_patches * self.side**2)
        hidden = torch.from_numpy(np.stack([random_mask(self.side, count, rng).reshape(-1) for _ in images])).to(pixels.device)
        ids = self._ids(texts)
        real = until_end(ids, self.tokenizer)
        words = self.text_in(self.text(ids, real))
        image_out = self.image_cross(self.image_in(self._see(pixels, hidden)), words, memory_real=real)
        squares = patches_to_pixels(hidden, pixels.shape[-1])
        painted = torch.where(squares, self._paint(image_out, words, real, visible_median(pixels, hidden)), pixels)
        grey = pixels.masked_fill(squares, 0.0)
        return list(zip(self._as_images(grey), self._as_images(painted), strict=True))

    def _see(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """States `[B, (1 +) N, D]` after the tower's norm, which is called `fc_norm` where there is no class token."""
        return self.visual.fc_norm(self.visual.norm(image_states(self.visual, pixels, hidden, self.mask_token)))

    def _whole(self, states: Tensor) -> Tensor:
        """A summary of the image: the class token's state, or the mean of all states."""
        return states[:, 0] if self.visual.has_class_token else states.mean(dim=1)

    def _image_feature(self, states: Tensor) -> Tensor:
        return F.normalize(self.image_projection(self._whole(states)).float(), dim=-1)

    def _text_feature(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        return normalise(self.collate.transform(images).to(self.logit_scale.device), self.config.mean, self.config.std)

    def _as_images(self, pixels: Tensor) -> list[np.ndarray]:
        mean, std = (torch.tensor(each, device=pixels.device).view(3, 1, 1) for each in (self.config.mean, self.config.std))
        levels = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return list(levels.permute(0, 2, 3, 1).cpu().numpy())

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return layout(self.tokenizer, texts, self.config.context).to(self.logit_scale.device)
