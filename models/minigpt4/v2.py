"""MiniGPT-v2: one chat model for captions, questions, and boxes as text (Chen et al., 2023, arXiv 2310.09478).

Task identifiers tell them apart. There is no Q-Former: every four neighbouring patch states of a row become one vector. The language model
has low-rank updates.

Deviations: tasks come from templates over annotations, all of them about an image; low-rank updates have no dropout. `tiny` sees with the
suite's own BLIP-2 at its own resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from data.fields import require
from data.objects import Box
from models.blip2 import BLIP2Config
from models.minigpt4.model import MiniGPT4, MiniGPT4Config
from models.minigpt4.tasks import LOCATE, STAGES, TasksCollate, identified
from models.shared.backbones import LanguageConfig
from models.shared.boxes import boxes_in
from models.shared.chat import Signs, Template
from models.shared.generate import GREEDY, Decoding
from models.shared.images import ImageTransform
from models.shared.lora import low_rank_updates
from models.shared.prompts import DESCRIBE
from models.shared.text import Tokenizer

LLAMA_2 = Signs(human="[INST] ", assistant=" [/INST]", opening="<Img>", closing="</Img> ", restart=True)
ADAPTED = ("q_proj", "v_proj")  # of a Llama


@dataclass(frozen=True)
class MiniGPTv2Config(MiniGPT4Config):
    rank: int = 64  # of the language model's low-rank updates
    scale: float = 0.25  # alpha / rank
    identifiers: bool = True  # a task's name in front of its requests

    def __post_init__(self) -> None:
        require(self.queries == 0, "--model.queries", self.queries, "0: MiniGPT-v2 has no Q-Former")
        require(self.rank >= 1, "--model.rank", self.rank, "1 or more")

    @classmethod
    def tiny(cls) -> MiniGPTv2Config:
        return cls._of(BLIP2Config.tiny(), context=96, rank=8, scale=2.0)

    @classmethod
    def small(cls) -> MiniGPTv2Config:
        """For one GPU: BLIP-2's `small` image tower, and a chat model of 135 M parameters."""
        return cls._of(BLIP2Config.small(), context=128, language=LanguageConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"))

    @classmethod
    def paper(cls) -> MiniGPTv2Config:
        """EVA ViT-g/14 at 448 px, 256 vectors, and LLaMA-2-chat-7B: 56.6 M parameters are trained."""
        blip2 = BLIP2Config.paper()
        at_448 = replace(blip2, vision=replace(blip2.vision, image_size=448))
        return cls._of(at_448, context=256, language=LanguageConfig(source="meta-llama/Llama-2-7b-chat-hf"))

    @classmethod
    def _of(cls, blip2: BLIP2Config, **changes: Any) -> Any:
        """With the image tower of a BLIP-2."""
        return cls._seeing(blip2, queries=0, **changes)


class MiniGPTv2(MiniGPT4):
    Config = MiniGPTv2Config
    notes: ClassVar = MiniGPT4.notes
    config: MiniGPTv2Config

    def __init__(self, config: MiniGPTv2Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.lora = low_rank_updates(self.language, ADAPTED, rank=config.rank, scale=config.scale)
        self.transform = ImageTransform(config.vision.image_size, squeeze=True)  # boxes are shares of the whole image
        self.template = Template(tokenizer, self.places, config.context, LLAMA_2)
        self.enter_stage("pretraining")

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained `BLIP2`, whose image tower is used at this model's resolution; "language_model": a trained `LM`."""
        blip2 = modules["vision"]
        state = blip2.visual.state_dict()
        if state["pos_embed"].shape != self.visual.pos_embed.shape:
            side, first = math.isqrt(self.visual.patch_embed.num_patches), self.visual.num_prefix_tokens
            state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], new_size=[side, side], num_prefix_tokens=first)
        self.visual.load_state_dict(state)
        self.norm_image.load_state_dict(blip2.norm_image.state_dict())
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())

    def enter_stage(self, name: str) -> None:
        """All stages train the layer to the language model and its updates; they differ in their mixtures of tasks."""
        if name not in STAGES:
            raise ValueError(f"stage {name!r}: expected one of {', '.join(STAGES)}")
        self.collate = TasksCollate(self.transform, self.template, STAGES[name], self.config.identifiers)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        return [reply.text for reply in self.reply(images, [self._task("caption", DESCRIBE[0])] * len(images), how=how)]

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return super().answer(images, [self._task("vqa", question) for question in questions])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        return super().answer_likelihood(images, [self._task("vqa", question) for question in questions], answers)

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, its end included: as a caption that was asked for."""
        return super().answer_likelihood(images, [self._task("caption", DESCRIBE[0])] * len(texts), texts)

    @torch.no_grad()
    def locate(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[Box | None]:
        """The box of what each phrase names in its image, in pixels; None if the reply has no box."""
        replies = self.reply(images, [self._task("refer", LOCATE.format(phrase)) for phrase in phrases])
        found = [boxes_in(reply.text, *image.shape[:2]) for image, reply in zip(images, replies, strict=True)]
        return [boxes[0] if boxes else None for boxes in found]

    def _task(self, task: str, request: str) -> str:
        return identified(task, request, identifiers=self.config.identifiers)
