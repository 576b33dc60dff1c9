"""Frozen: an image encoder learns to provide the input of a frozen language model (Tsimpoukelli et al., 2021, arXiv 2106.13884).

Deviations: the language models are Llama-style (rotary positions serve the paper's purpose, images anywhere in a prompt). `tiny`
sees through convolutions and transformer blocks, has the suite's own language model, and learns from questions as well as from
captions (`questions`), where the paper uses only captions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from models.shared.backbones import LanguageConfig, known, named_tower
from models.shared.generate import GREEDY, Decoding
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.prefix import SOFT, PrefixCollate, write
from models.shared.prefix_model import PrefixModel
from models.shared.prompts import ask
from models.shared.text import Tokenizer
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

LLAMA_7B = json.dumps(
    {
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }
)


@dataclass(frozen=True)
class FrozenConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, pool="avg"))
    timm_name: str = ""  # a timm model in the place of `vision`; the paper's is nf_resnet50
    language: LanguageConfig = field(default_factory=LanguageConfig)
    prefix: int = 2  # vectors an image becomes; section 3, 1 and 4 were tried
    context: int = 64  # tokens of a caption, or of a question with its answer
    vocab_size: int = 4096
    questions: float = 0.0  # share of the training samples with a question to answer instead of a caption
    tune_language: bool = False  # the paper's comparison: the language model learns, too
    blind: bool = False  # the paper's comparison: every image is black
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> FrozenConfig:
        return cls(vision=TINY_TOWER, questions=0.5)

    @classmethod
    def small(cls) -> FrozenConfig:
        """For 128 px pictures and one GPU, on a language model with rotary positions."""
        vision = VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pool="avg")
        return cls(vision=vision, language=LanguageConfig(source="EleutherAI/pythia-410m"), questions=0.5)

    @classmethod
    def paper(cls) -> FrozenConfig:
        """NF-ResNet-50, from scratch, and a language model of 7 G parameters: 40.3 M are trained. The paper's own was never published;
        LLaMA's has its size, its vocabulary's size, and rotary positions."""
        language = LanguageConfig(source="huggyllama/llama-7b", architecture=LLAMA_7B)
        return cls(timm_name="nf_resnet50", language=language, vocab_size=32_000)


class Frozen(PrefixModel):
    paradigm = "pretrained backbones"
    Config = FrozenConfig
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}
    score_kind = "likelihood"

    def __init__(self, config: FrozenConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.places = config.prefix
        features = self._add_image_side()
        self.add_language(config.language, config.vocab_size)
        self.language.requires_grad_(config.tune_language)
        self.to_prefix = self._bridge(features)

    def _add_image_side(self) -> int:
        """Add the image encoder and what prepares its batches. Returns the number of its features."""
        config = self.config
        self.transform = ImageTransform(config.vision.image_size)
        self.collate = PrefixCollate(self.transform, self.tokenizer, config.prefix, config.context, config.questions)
        if config.timm_name:
            self.visual: Any = named_tower(config.timm_name)
            return int(self.visual.num_features)
        self.visual = vision_transformer(config.vision, pooled=True)
        return config.vision.width

    def _bridge(self, features: int) -> nn.Module:
        """From the image encoder's features to the visual prefix."""
        return nn.Linear(features, self.config.prefix * self.width)

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the visual prefix of each image `[B, prefix, D]` (section 3.1)."""
        if self.config.blind:
            pixels = torch.zeros_like(pixels)
        pooled = self.visual(normalise(pixels, self.config.mean, self.config.std))
        return self.to_prefix(pooled).unflatten(-1, (self.config.prefix, self.width))

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        return self._write([[image] for image in images], how=how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return self._write([[image, "\n" + ask(question)] for image, question in zip(images, questions, strict=True)])

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[str | np.ndarray]]) -> list[str]:
        """What follows each prompt of images and texts in any order (section 4.2), up to the end of a line."""
        return [text.split("\n")[0].strip() for text in self._write(prompts)]

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`: the sum over the text's tokens, its end included."""
        return self._likelihood(images, [[]] * len(texts), texts)

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        return self._likelihood(images, [self.collate.question(question) for question in questions], answers)

    def _likelihood(self, images: Sequence[np.ndarray], prompts: Sequence[list[int]], targets: Sequence[str]) -> Tensor:
        return self.likelihoods(images, *self.collate.laid_out(prompts, targets))

    def _write(self, prompts: Sequence[Sequence[str | np.ndarray]], how: Decoding = GREEDY) -> list[str]:
        images = [part for prompt in prompts for part in prompt if not isinstance(part, str)]
        rows = []
        for prompt in prompts:
            parts = [self.collate.tokens(part) if isinstance(part, str) else [SOFT] * self.config.prefix for part in prompt]
            rows.append([token for part in parts for token in part] or [self.tokenizer.end])  # nothing at all: a new document
        return write(self.language, self.tokenizer, rows, self.look(images), limit=self.config.context, how=how)
