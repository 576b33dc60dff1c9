"""MiniGPT-4: one linear layer connects a frozen BLIP-2 to a frozen chat model (Zhu et al., 2023, arXiv 2304.10592).

Stage "captions" trains the layer on captions without any request, stage "instructions" on a small set of conversations.
Deviations: the words between two images or replies are tokenised together (`Template`), only the first turn has a start token,
a request is drawn for each picture rather than for each batch, and conversations have up to two turns. `tiny` sees with the suite's
own BLIP-2 and speaks with its own language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.blip2 import BLIP2Config
from models.blip2.qformer import QFormer
from models.minigpt4.instructions import CaptionCollate, InstructionCollate
from models.shared.backbones import LanguageConfig, freeze, image_tower, known
from models.shared.chat import ChatModel, Template
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import Tokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig, image_states, vision_transformer

NEIGHBOURS = 4  # patches that become one vector where there is no Q-Former


@dataclass(frozen=True)
class MiniGPT4Config:
    vision: VisionConfig = field(default_factory=lambda: BLIP2Config.paper().vision)
    timm_name: str = ""  # a timm transformer in the place of `vision`, as BLIP-2's
    qformer: TransformerConfig = field(default_factory=lambda: BLIP2Config.paper().qformer)
    queries: int = 32  # 0 leaves the Q-Former out: every four neighbouring patches become a vector
    every: int = 2  # layers of the Q-Former from one attention to the image to the next
    language: LanguageConfig = field(default_factory=LanguageConfig)
    bridge: int = 1  # layers between the two; the paper also tries 3
    tune_qformer: bool = False  # the paper's comparison: the Q-Former learns, too
    context: int = 160  # tokens of a request, and of a target
    vocab_size: int = 32_000
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> MiniGPT4Config:
        return cls._seeing(BLIP2Config.tiny(), context=48)

    @classmethod
    def small(cls) -> MiniGPT4Config:
        """For one GPU: BLIP-2's `small`, and a chat model of 135 M parameters."""
        return cls._seeing(BLIP2Config.small(), context=64, language=LanguageConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"))

    @classmethod
    def paper(cls) -> MiniGPT4Config:
        """EVA ViT-g/14 with BLIP-2's Q-Former, and Vicuna: 3.9 M (13 B) or 3.1 M (7 B) parameters are trained."""
        return cls._seeing(BLIP2Config.paper(), language=LanguageConfig(source="lmsys/vicuna-13b-v1.5"))

    @classmethod
    def _seeing(cls, blip2: BLIP2Config, **changes: Any) -> MiniGPT4Config:
        """With the image's side of a BLIP-2."""
        names = ("vision", "timm_name", "qformer", "queries", "every", "language", "mean", "std")
        return cls(**{name: getattr(blip2, name) for name in names} | changes)


class MiniGPT4(ChatModel):
    paradigm = "pretrained backbones"
    Config = MiniGPT4Config
    builds_on = ("blip2",)
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}

    def __init__(self, config: MiniGPT4Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.visual: Any = freeze(
            image_tower(config.timm_name, image_size=config.vision.image_size) if config.timm_name else vision_transformer(config.vision)
        )
        width, patches = self.visual.num_features, self.visual.patch_embed.num_patches
        self.norm_image = freeze(nn.LayerNorm(width, eps=config.vision.norm_eps))
        self.qformer = _queries(config, width).requires_grad_(config.tune_qformer) if config.queries else None
        self.add_language(config.language, config.vocab_size)
        self.to_language = _bridge(config.qformer.width if config.queries else NEIGHBOURS * width, self.width, config.bridge)
        self.transform = ImageTransform(config.vision.image_size)
        if not config.queries and patches % NEIGHBOURS:
            raise ValueError(
                f"groups of {NEIGHBOURS} patches are joined, and the image tower has {patches}: name another --model.vision.tower"
            )
        self.places = config.queries or patches // NEIGHBOURS
        self.template = Template(tokenizer, self.places, config.context)
        self.collate: Any = CaptionCollate(self.transform, self.template)

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained `BLIP2`, whose image side is used; "language_model": a trained `LM`, unless one is named."""
        blip2 = modules["vision"]
        self.visual.load_state_dict(blip2.visual.state_dict())
        self.norm_image.load_state_dict(blip2.norm_image.state_dict())
        if self.qformer is not None:
            theirs = blip2.qformer.state_dict()
            self.qformer.load_state_dict({name: theirs[name] for name in self.qformer.state_dict()})
        super().adopt(modules)

    def enter_stage(self, name: str) -> None:
        """Both stages train the same parameters; "captions" and "instructions" differ in their texts."""
        if name not in ("captions", "instructions"):
            raise ValueError(f"stage {name!r}: expected captions or instructions")
        kind = CaptionCollate if name == "captions" else InstructionCollate
        self.collate = kind(self.transform, self.template)

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the embeddings of each image `[B, places, D]`."""
        pixels = normalise(pixels, self.config.mean, self.config.std)
        with torch.no_grad():
            states = self.visual.forward_features(pixels) if self.config.timm_name else image_states(self.visual, pixels)
            image = self.norm_image(states)
        if self.qformer is not None:
            return self.to_language(self.qformer.look(image))
        patches = image[:, self.visual.num_prefix_tokens :]
        return self.to_language(patches.unflatten(1, (-1, NEIGHBOURS)).flatten(2))


def _queries(config: MiniGPT4Config, image_width: int) -> QFormer:
    """The image side of BLIP-2's Q-Former, frozen and without its text layers."""
    qformer = QFormer(config.qformer, queries=config.queries, every=config.every, image_width=image_width, rows=1, context=1)
    qformer.tokens = qformer.positions = None  # type: ignore[assignment]
    for layer in qformer.layers:
        layer.text_mlp = None  # type: ignore[assignment]
    return freeze(qformer)


def _bridge(seen: int, language: int, layers: int) -> nn.Module:
    if layers < 1:
        raise ValueError(f"the bridge has one layer or more, got {layers}")
    rest = [layer for _ in range(layers - 1) for layer in (nn.GELU(), nn.Linear(language, language))]
    return nn.Sequential(nn.Linear(seen, language), *rest) if rest else nn.Linear(seen, language)
