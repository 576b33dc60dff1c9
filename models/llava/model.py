"""LLaVA: all patch states of a CLIP through an MLP into a language model, which is tuned (arXiv 2304.08485; 1.5: arXiv 2310.03744).

Stage "align" trains the MLP on captions, stage "tune" the MLP and the language model, or low-rank updates of it, on visual instructions.
The image tower is frozen.

Deviations: instructions are generated from the annotations of images instead of by a language model. With `conversations` > 1, several
conversations about one image are learned in a step, without seeing each other; they share the computation of what they begin with.
Images are cropped to a square instead of padded. Low-rank updates and the MLP have the same learning rate. `tiny` has the suite's own CLIP
and language model, and no system prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.fields import require
from models.contract import Batch
from models.llava.instructions import CaptionCollate, DialogueCollate, RequestsCollate
from models.shared.backbones import LanguageConfig, freeze, image_tower, known, without_last
from models.shared.chat import ChatModel, Signs, Template, Turn, laid_out
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform
from models.shared.instructions import BRIEFLY, IN_ONE_WORD
from models.shared.lora import low_rank_updates
from models.shared.prefix_model import LockedTowerModel
from models.shared.text import Tokenizer
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

VICUNA = Signs(human="USER: ", assistant=" ASSISTANT:", closing="\n")  # of its version 1
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all linear layers of a Llama's blocks
VIT_L_336 = VisionConfig(width=1024, depth=24, heads=16, activation="quick_gelu", image_size=336, patch_size=14, pre_norm=True)
"""CLIP's ViT-L/14 at 336 px"""


@dataclass(frozen=True)
class LLaVAConfig:
    vision: VisionConfig = VIT_L_336
    timm_name: str = ""  # a timm transformer in the place of `vision`, whose image_size still holds
    states: Literal["penultimate", "last"] = "penultimate"  # of the tower's blocks, before its last norm
    bridge: int = 2  # layers of the MLP; version 1 has one
    language: LanguageConfig = field(default_factory=LanguageConfig)
    tune_language: bool = True  # in the second stage; if not, only the MLP is trained
    rank: int = 0  # of low-rank updates, which are trained instead of the language model; 0: none
    scale: float = 2.0  # of the updates: alpha / rank
    system: str = SYSTEM  # in front of every conversation
    format_prompt: bool = True  # 1.5: a request for one word says so
    conversations: int = 1  # about an image in a step
    requests: int = 8  # about an image in a step, dealt out to its conversations
    context: int = 256  # tokens of a request, and of a target
    vocab_size: int = 32_000
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        for name in ("bridge", "conversations", "requests"):
            require(getattr(self, name) >= 1, f"--model.{name}", getattr(self, name), "1 or more")

    @classmethod
    def tiny(cls) -> LLaVAConfig:
        return cls(vision=TINY_TOWER, system="", conversations=4, requests=5, context=48)

    @classmethod
    def small(cls) -> LLaVAConfig:
        """For one GPU: CLIP's ViT-B/16, and a chat model of 135 M parameters."""
        return cls(
            vision=VisionConfig(width=768, depth=12, heads=12, image_size=224, patch_size=16),
            timm_name="vit_base_patch16_clip_224.openai",
            language=LanguageConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"),
            context=64,
        )

    @classmethod
    def paper(cls) -> LLaVAConfig:
        """LLaVA-1.5 7B: CLIP's ViT-L/14 at 336 px, 576 states, Vicuna-7B. The MLP has 21.0 M parameters."""
        return cls(timm_name="vit_large_patch14_clip_336.openai", language=LanguageConfig(source="lmsys/vicuna-7b-v1.5"))


class LLaVA(LockedTowerModel, ChatModel):
    paradigm = "pretrained backbones"
    Config = LLaVAConfig
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}

    def __init__(self, config: LLaVAConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.visual: Any = freeze(_tower_of(config))
        self.add_language(config.language, config.vocab_size)
        self.to_language = mlp(self.visual.num_features, self.width, layers=config.bridge)
        if config.rank:
            self.lora = low_rank_updates(self.language, ADAPTED, rank=config.rank, scale=config.scale)
        self.transform = ImageTransform(config.vision.image_size)
        self.places = self.visual.patch_embed.num_patches
        self.template = Template(tokenizer, self.places, config.context, replace(VICUNA, system=config.system))
        self.captions = CaptionCollate(self.transform, self.template, config.conversations)
        self.dialogues = DialogueCollate(self.transform, self.template, config.conversations, config.requests, config.format_prompt)
        self.collate: RequestsCollate = self.captions

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained model with an image tower `visual` of this shape; "language_model": a trained `LM`, unless one is named."""
        theirs = modules["vision"].visual.state_dict()
        self.visual.load_state_dict({name: theirs[name] for name in self.visual.state_dict()})
        super().adopt(modules)

    def fetch(self) -> dict[str, str]:
        """Load the weights of the backbones that the configuration names. Returns module -> source."""
        tower = self.config.timm_name
        if tower:
            self.visual.load_state_dict(_tower_of(self.config, weights=True).state_dict())
        return super().fetch() | ({"visual": tower} if tower else {})

    def enter_stage(self, name: str) -> None:
        """Train the MLP in "align"; in "tune" also the language model, or its updates if there are any."""
        if name not in ("align", "tune"):
            raise ValueError(f"stage {name!r}: expected align or tune")
        tuning = name == "tune"
        self.collate = self.dialogues if tuning else self.captions
        if self.config.rank:
            self.lora.requires_grad_(tuning)
        else:
            self.language.requires_grad_(tuning and self.config.tune_language)

    def encode(self, batch: Batch) -> Batch:
        """Negative log-likelihood "nll" in nats of the targets of each image, and their number of "tokens", `[B]`."""
        return self.packed_nll(batch["ids"], batch["labels"], self._soft(batch))

    def _tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, S, S]` -> the patches' states `[B, places, num_features]`, without the class token's."""
        return self.visual.forward_features(pixels)[:, self.visual.num_prefix_tokens :]

    def _prefix(self, states: Tensor) -> Tensor:
        """`[B, places, num_features]` -> the vectors of each image `[B, places, width]`, one for each patch."""
        return self.to_language(states)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """Its replies to the questions, asked for in one word (1.5, section 3.2)."""
        return super().answer(images, [self._in_one_word(question) for question in questions])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included; asked for in one word."""
        return super().answer_likelihood(images, [self._in_one_word(question) for question in questions], answers)

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, its end included: as the reply to a request for a caption."""
        rows = [self.template.conversation([Turn(BRIEFLY, text)]) for text in texts]
        return self.likelihoods(images, **laid_out(rows))

    def _in_one_word(self, question: str) -> str:
        return question + IN_ONE_WORD if self.config.format_prompt else question


def mlp(seen: int, language: int, *, layers: int) -> nn.Sequential:
    """Linear, GELU, linear, ... (1.5, section 3.3)."""
    rest = [layer for _ in range(layers - 1) for layer in (nn.GELU(), nn.Linear(language, language))]
    return nn.Sequential(nn.Linear(seen, language), *rest)


def _tower_of(config: LLaVAConfig, *, weights: bool = False) -> Any:
    """The image tower up to the block whose states are used."""
    dropped = 1 if config.states == "penultimate" else 0
    if config.timm_name:
        return image_tower(config.timm_name, weights=weights, dropped=dropped)
    return without_last(vision_transformer(config.vision), dropped)
