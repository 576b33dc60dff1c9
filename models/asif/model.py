"""ASIF: compare images and texts without any training (Norelli et al., 2023, arXiv 2210.01738).

It uses two separately trained encoders and n image-text pairs, the anchors. An image is represented by its similarities to the images
of all anchors, a text by its similarities to their texts, so both representations have the same n dimensions.

Deviations: `tiny` has the suite's own encoders (trained on labels instead of ImageNet-21k, and a language model instead of a sentence
encoder, see `texts`); anchors with negative similarity never count (see `relative`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.asif.anchors import NOTHING, Anchors
from models.asif.relative import Relative, products, relative, rows
from models.asif.texts import surprising_words, text_encoder
from models.contract import Losses, Model
from models.shared import device
from models.shared.backbones import LanguageConfig, fetch_language, freeze, known, looked_at, named_tower
from models.shared.collate import PairCollate
from models.shared.distributed import gather
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.sentences import fetch_sentences, mean_states
from models.shared.text import Tokenizer, of_like_length, until_end
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

PASSES = 4  # on a CPU texts of like length are read together: less padding
ROWS = 1024  # anchors' texts compared with pictures at a time, in captioning


@dataclass(frozen=True)
class ASIFConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12))
    timm_name: str = ""  # a timm model that replaces `vision`, of which only image_size is then used
    language: LanguageConfig = field(default_factory=LanguageConfig)
    sentences: bool = False  # `language` names a sentence encoder, not a causal language model
    k: int = 800  # anchors that describe a thing
    p: float = 8.0  # power of their similarities
    context: int = 64  # tokens of a text
    side: int = 32  # size in pixels of the stored anchor images, which `explain` shows; 0: none are stored
    permuted: bool = False  # a control: every anchor's picture has the text of another
    vocab_size: int = 4096
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        if self.k < 1 or self.p <= 0:
            raise ValueError(f"k must be at least 1 and p above 0, got k = {self.k} and p = {self.p:g}")

    @classmethod
    def tiny(cls) -> ASIFConfig:
        """The towers of `make train-classifier` and `make train-lm`."""
        return cls(vision=TINY_TOWER)

    @classmethod
    def real(cls) -> ASIFConfig:
        """Published encoders that come in wheels: EfficientNet-Lite0, supervised on ImageNet-1k, and MiniLM."""
        language = LanguageConfig(source="wheel:all-MiniLM-L6-v2")
        return replace(cls.paper(), timm_name="wheel:tf_efficientnet_lite0", language=language, context=64)

    @classmethod
    def small(cls) -> ASIFConfig:
        """Published encoders of a fifth of the paper's size."""
        return replace(cls.paper(), timm_name="vit_small_patch16_224.augreg_in21k")

    @classmethod
    def paper(cls) -> ASIFConfig:
        """ViT-B/16 supervised on ImageNet-21k, and a sentence encoder on MPNet."""
        return cls(
            vision=VisionConfig(width=768, depth=12, heads=12, image_size=224),
            timm_name="vit_base_patch16_224.augreg_in21k",
            language=LanguageConfig(source="sentence-transformers/all-mpnet-base-v2"),
            sentences=True,
            context=128,
            mean=HALF,
            std=HALF,
        )


class Reason(NamedTuple):
    """The contribution of one anchor to a score: its row, its pair, and its share of the score, from 0 to 1."""

    row: int
    picture: np.ndarray  # uint8 `[side, side, 3]`
    text: str
    share: float


class ASIF(Model):
    paradigm = "training-free"
    Config = ASIFConfig

    def __init__(self, config: ASIFConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if tokenizer.start is None:
            raise ValueError(f"a text begins with a start token, and the tokenizer {tokenizer.name!r} has none")
        config = replace(config, language=known(replace(config.language, vocab_size=config.vocab_size)))
        self.config, self.tokenizer = config, tokenizer
        self.collate = PairCollate(ImageTransform(config.vision.image_size), tokenizer, config.context)
        self.visual: Any = freeze(named_tower(config.timm_name) if config.timm_name else vision_transformer(config.vision, pooled=True))
        self.language: Any = freeze(text_encoder(config.language, sentences=config.sentences))
        width = self.language.get_input_embeddings().embedding_dim
        self.anchors = Anchors(self.visual.num_features, width, context=config.context, side=config.side)
        self._caption_anchors: Relative | None = None  # the anchors' texts, once captions have been asked for

    # ------------------------------------------------------------------------------------------------ the encoders

    def adopt(self, modules: Mapping[str, nn.Module]) -> None:
        """ "image_tower": a trained `Classifier`; "language_model": a trained `LM`."""
        if "image_tower" in modules:
            self.visual.load_state_dict(modules["image_tower"].visual.state_dict())  # type: ignore[union-attr]
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())  # type: ignore[union-attr]

    def fetch(self) -> dict[str, str]:
        """Load the weights of the encoders that the configuration names. Returns module -> where they came from."""
        sources, tower, source = super().fetch(), self.config.timm_name, self.config.language.source
        if tower:
            self.visual.load_state_dict(named_tower(tower, weights=True).state_dict())
        if source:
            (fetch_sentences if self.config.sentences else fetch_language)(self.language, source, self.tokenizer)
        return sources | {module: name for module, name in (("visual", tower), ("language", source)) if name}

    def _image_vectors(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` -> unit length `[B, D]`."""
        return F.normalize(looked_at(self.visual, normalise(pixels, self.config.mean, self.config.std)), dim=-1)

    def _text_vectors(self, ids: Tensor) -> Tensor:
        """`[B, T]` -> unit length `[B, E]`; 0 for a text of no tokens."""
        encode = mean_states if self.config.sentences else surprising_words
        if not device.host_knows(ids):
            return F.normalize(encode(self.language, ids, self.tokenizer), dim=-1)
        groups, back = of_like_length(until_end(ids, self.tokenizer).sum(dim=1), PASSES)
        found = [encode(self.language, ids[rows, :longest], self.tokenizer) for rows, longest in groups]
        return F.normalize(torch.cat(found)[back], dim=-1)

    # ------------------------------------------------------------------------------------------------- the anchors

    @torch.no_grad()
    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The vectors stored for each pair. Computed in float32 even under autocast, like all comparisons with anchors."""
        ids, pixels = batch["ids"], batch["pixels"]
        words = ids[:, 1:]  # without the start
        words = words.where(until_end(ids, self.tokenizer)[:, 1:] & (words != self.tokenizer.end), NOTHING)
        words = F.pad(words, (0, self.config.context - words.shape[1]), value=NOTHING)
        side = self.config.side
        shown = F.interpolate(pixels.float(), size=(side, side), mode="area").round().byte() if side else pixels[:, :, :0, :0]
        with torch.autocast(pixels.device.type, enabled=False):
            return {"image": self._image_vectors(pixels), "text": self._text_vectors(ids), "words": words, "shown": shown}

    @torch.no_grad()
    def objective(self, features: dict[str, Tensor]) -> Losses:
        """Add the pairs of all ranks as anchors; nothing is trained."""
        text, words = features["text"], features["words"]
        if self.config.permuted:
            text, words = text.roll(1, dims=0), words.roll(1, dims=0)
        self.anchors.add(*map(gather, (features["image"], text, words, features["shown"])))
        self._caption_anchors = None
        return Losses.none(text)

    def add(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> None:
        """Add anchors from the i-th image and the i-th text. Raises ValueError if one of the two is missing."""
        if len(images) != len(texts):
            raise ValueError(f"an anchor is a picture with its text: got {len(images)} pictures and {len(texts)} texts")
        if blank := [place for place, text in enumerate(texts) if not text.strip()]:
            raise ValueError(f"an anchor is a picture with its text: picture {blank[0]} of {len(texts)} has none")
        for start in range(0, len(images), 256):
            some = slice(start, start + 256)
            batch = {"pixels": self.collate.images(images[some]), "ids": self.collate.texts(texts[some])}
            self({name: tensor.to(self.anchors.image.device) for name, tensor in batch.items()})

    def delete(self, rows: Sequence[int]) -> None:
        """Delete anchors, exactly as if they had never been added; later rows move up. Raises IndexError for unknown rows."""
        self.anchors.delete(torch.tensor(rows, dtype=torch.long))
        self._caption_anchors = None

    def anchor(self, row: int) -> tuple[np.ndarray, str]:
        """The pair in a row: uint8 `[side, side, 3]`, and the text as the tokenizer gives it back, cut to the context."""
        ids = self.anchors.ids[row]
        picture = self.anchors.pictures[row].permute(1, 2, 0).cpu().numpy()
        return picture, self.tokenizer.decode(ids[ids != NOTHING].tolist())

    # ------------------------------------------------------------------------------------------------ capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """Relative representations over all n anchors, L2-normalised float32 `[N, n]`; all 0 where no anchor is like the picture,
        and `[N, 1]` zeros where there are no anchors. With millions of anchors use `compare`."""
        return self._see(images).dense(max(1, len(self.anchors)))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """As `encode_image`, float32 `[N, n]`."""
        return self._read(texts).dense(max(1, len(self.anchors)))

    @torch.no_grad()
    def compare(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """The score of every image with every text, float32 `[N, T]`, from 0 to 1; memory does not grow with the anchors."""
        return products(self._see(images), self._read(texts), len(self.anchors))

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """The best-scoring text of all anchors for each image; "" if no anchor is similar to the image."""
        seen, n = self._see(images), len(self.anchors)
        if self._caption_anchors is None:
            parts = [relative(part, self.anchors.text, k=self.config.k, p=self.config.p) for part in self.anchors.text.split(ROWS)]
            self._caption_anchors = Relative(*(torch.cat(columns) for columns in zip(*parts, strict=True))) if parts else seen
        best, where = seen.weights.new_zeros(len(images)), torch.full((len(images),), NOTHING, device=seen.weights.device)
        for number, part in enumerate(rows(self._caption_anchors, ROWS) if n else ()):
            score, place = products(seen, part, n).max(dim=1)
            where = torch.where(score > best, place + number * ROWS, where)
            best = torch.maximum(best, score)
        return [self.anchor(row)[1] if row != NOTHING else "" for row in where.tolist()]

    @torch.no_grad()
    def explain(self, images: Sequence[np.ndarray], texts: Sequence[str], *, most: int = 5) -> list[list[Reason]]:
        """The anchors that contribute to the score of the i-th image with the i-th text, the largest contribution first."""
        seen, read = self._see(images), self._read(texts)
        found = []
        for one, weights, other, more in zip(*seen, *read, strict=True):
            both = torch.isin(one, other)
            shared, mine = one[both], weights[both]
            where = torch.argsort(other)  # torch.searchsorted wants them in order
            parts = mine * more[where][torch.searchsorted(other[where], shared)]
            total = float(parts.sum())
            shares, places = parts.sort(descending=True, stable=True)
            chosen = zip(shared[places][:most].tolist(), shares[:most].tolist(), strict=True)
            found.append([Reason(row, *self.anchor(row), share / total) for row, share in chosen if share > 0])
        return found

    def _see(self, images: Sequence[np.ndarray]) -> Relative:
        held = self.anchors.image
        vectors = self._image_vectors(self.collate.images(images).to(held.device)) if len(images) else held[:0]
        return relative(vectors, held, k=self.config.k, p=self.config.p)

    def _read(self, texts: Sequence[str]) -> Relative:
        held = self.anchors.text
        vectors = self._text_vectors(self.collate.texts(texts).to(held.device)) if len(texts) else held[:0]
        return relative(vectors, held, k=self.config.k, p=self.config.p)
