"""MAGIC: a frozen CLIP guides the decoding of a frozen language model, and nothing is trained on pairs (Su et al., 2022,
arXiv 2205.02655).

Deviations: `tiny` has the suite's own CLIP and a language model trained only on captions; k, alpha and beta are
those that `make tune-magic` found on the val split. An end token that is a candidate leaves the text that CLIP reads as it is,
where the authors' code spells it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import models
from models.clip import CLIPConfig
from models.contract import Losses, Model
from models.magic.search import Eyes, Search, magic_search
from models.shared.backbones import LanguageConfig, fetch_language, freeze, known, language_model
from models.shared.collate import PairCollate
from models.shared.generate import not_text
from models.shared.text import LONGEST, Tokenizer, as_text, from_text

GPT2 = '{"model_type": "gpt2"}'  # transformers' defaults are its smallest, 124 M


@dataclass(frozen=True)
class MAGICConfig:
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    clip_source: str = ""  # published weights, such as open_clip:ViT-B-32/laion2b_s34b_b79k, in the place of a prerequisite
    clip_tokenizer: str = ""  # CLIP's, as json; filled in with its weights, the language model's until then
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vocab_size: int = 4096  # of the language model
    search: Search = field(default_factory=Search)
    limit: int = 15  # tokens of a caption; the paper's length of 16 (section 4.1) counts the start token
    seen: int = 60  # last tokens of the text that CLIP reads

    @classmethod
    def tiny(cls) -> MAGICConfig:
        return cls(clip=CLIPConfig.tiny(), search=Search(k=20, alpha=0.1, beta=0.6), limit=40)

    @classmethod
    def small(cls) -> MAGICConfig:
        """Both models as the suite trains them on one GPU."""
        language = LanguageConfig(width=512, depth=8, heads=8, hidden=1376, context=512)
        return cls(clip=CLIPConfig.small(), language=language, search=Search(k=20, alpha=0.1, beta=0.6), limit=60)

    @classmethod
    def paper(cls) -> MAGICConfig:
        """CLIP ViT-B/32 and GPT-2: 151 M and 124 M, none of them trained. The search is the one for COCO."""
        language = LanguageConfig(architecture=GPT2)
        return cls(clip=CLIPConfig.paper(), clip_source="open_clip:ViT-B-32/laion2b_s34b_b79k", language=language, vocab_size=50_257)


class MAGIC(Model):
    paradigm = "training-free"
    Config: ClassVar[type[Any]] = MAGICConfig
    builds_on = ("clip",)

    def __init__(self, config: MAGICConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if tokenizer.start is None:
            raise ValueError(f"a text begins with a start token, and the tokenizer {tokenizer.name!r} has none")
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer, self.start = config, tokenizer, tokenizer.start
        eyes = models.model_of(config.clip)
        self.clip: Any = freeze(eyes(config.clip, from_text(config.clip_tokenizer) if config.clip_tokenizer else tokenizer))
        self.language: Any = freeze(language_model(replace(config.language, vocab_size=config.vocab_size)))

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "clip": a trained `CLIP`; "language_model": a trained `LM`."""
        if "clip" in modules:
            self._see_with(modules["clip"])
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the published models that the configuration names. Returns module -> where they came from."""
        sources = {"clip": self.config.clip_source, "language": self.config.language.source}
        if sources["clip"]:
            self._see_with(models.load(sources["clip"]))
        if sources["language"]:
            fetch_language(self.language, sources["language"], self.tokenizer)
        return {module: source for module, source in sources.items() if source}

    @property
    def collate(self) -> PairCollate:
        return self.clip.collate

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Does nothing: there is no training on pairs."""
        return {}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return Losses.none(self.clip.logit_scale)

    # -------------------------------------------------------------------------------------------- capabilities

    def caption(self, images: Sequence[np.ndarray], *, how: Search | None = None) -> list[str]:
        return self.write(images, [""] * len(images), how=how)

    @torch.no_grad()
    def write(self, images: Sequence[np.ndarray], prompts: Sequence[str], *, how: Search | None = None) -> list[str]:
        """What follows the i-th prompt with the i-th image in sight (section 5: stories that a title begins), up to the end of the
        text or for as many tokens as the configuration allows. CLIP reads the generated text, not the prompt."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each image")
        if not len(images):
            return []
        eyes = Eyes(self.clip.encode_image(images), self.clip.logit_scale.exp().item(), self._features)
        rows = [[self.start, *self.tokenizer.encode(prompt[:LONGEST])] for prompt in prompts]
        end, never = self.tokenizer.end, not_text(self.tokenizer)
        how, limit = how or self.config.search, self.config.limit
        written = magic_search(self.language, rows, eyes, end=end, limit=limit, never=never, how=how)
        return [self.tokenizer.decode(tokens) for tokens in written]

    def _features(self, texts: Sequence[Sequence[int]]) -> Tensor:
        return self.clip.encode_text([self.tokenizer.decode(tokens[-self.config.seen :]) for tokens in texts])

    def _see_with(self, clip: Any) -> None:
        if not isinstance(clip, type(self.clip)):
            raise ValueError(f"MAGIC's image-text model must be {type(self.clip).__name__}, not {type(clip).__name__}")
        self.config = replace(self.config, clip=clip.config, clip_tokenizer=as_text(clip.tokenizer))
        self.clip = freeze(type(self.clip)(clip.config, clip.tokenizer))
        self.clip.load_state_dict(clip.state_dict())
