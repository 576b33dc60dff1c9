"""Qwen-VL: one cross-attention that knows places, between image tower and language model; three stages (Bai et al., 2023, 2308.12966).

Stage "captions" trains the image tower and the adapter, "tasks" everything, on several tasks with boxes as text, and "chat" the adapter and
the language model, on conversations.

Deviations: tasks and conversations come from templates over annotations, without text reading. All stages have one resolution (the paper's
first has half of it), and all of the tower one learning rate (the paper's decays from block to block). Only replies and their ends are
learned; the paper's first two stages learn all text behind an image, and the released code also learns the marks of the other turns. The
marks of images, boxes and turns are plain text, not tokens of their own, and a blank precedes each reply. Several texts about a sample are
learned in one step without seeing each other, where the paper packs samples to 2,048 tokens. Qwen-7B needs code of its own; `paper` names
the version of the same size that does not. The tower of `tiny` is CLIP's, with patches of half the size.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from data.fields import require
from data.objects import Box
from models.contract import Batch
from models.llava.qwenvl_tasks import ANSWER, CAPTION, REFER, CaptionCollate, ChatCollate, TasksCollate, TextsCollate
from models.shared import device
from models.shared.backbones import LanguageConfig, image_tower, known, without_last
from models.shared.boxes import THOUSANDTHS, boxes_in
from models.shared.chat import ChatModel, Signs, Template, Turn
from models.shared.generate import GREEDY, Decoding
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.prefix import SOFT, nll
from models.shared.ranges import check_heads
from models.shared.text import Tokenizer
from models.shared.transformer import attend
from models.shared.vision import TINY_TOWER, VisionConfig, image_states, vision_transformer

PLAIN = Signs(human="", assistant="", opening="<img>", closing="</img>")  # of the first two stages
CHAT = Signs(  # ChatML
    human="\n<|im_start|>user\n",
    assistant="<|im_end|>\n<|im_start|>assistant\n",
    opening="Picture {}: <img>",
    closing="</img>\n",
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
STAGES = {  # what is trained
    "captions": ("visual", "adapter"),
    "tasks": ("visual", "adapter", "language"),
    "chat": ("adapter", "language"),
}
EPS = 1e-6  # of the adapter's norms
BIG_G = VisionConfig(width=1664, depth=48, heads=16, mlp_ratio=8192 / 1664, image_size=448, patch_size=14, pool="avg", pre_norm=True)
"""open_clip's ViT-bigG/14 at 448 px, without a class token as in the released code"""


@dataclass(frozen=True)
class QwenVLConfig:
    vision: VisionConfig = BIG_G
    timm_name: str = ""  # a timm transformer in the place of `vision`, whose image_size still holds
    queries: int = 256  # vectors that an image becomes: a square number
    heads: int = 32  # of the adapter
    places: bool = True  # the adapter knows where queries and patches are
    language: LanguageConfig = field(default_factory=LanguageConfig)
    tune_language: bool = True  # in the second and third stage
    text_share: float = 0.1  # of the texts of the second stage that have no image; the paper's 7.8 M of 76.8 M
    system: str = SYSTEM  # in front of every conversation
    sequences: int = 1  # about a sample in a step
    requests: int = 8  # in the conversations about a sample in a step
    context: int = 256  # tokens of a request, and of a target
    vocab_size: int = 151_936
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        square = isinstance(self.queries, int) and self.queries >= 1 and math.isqrt(self.queries) ** 2 == self.queries
        require(square, "--model.queries", self.queries, "a square number: 1, 4, 9, 16, ...")
        require(0 <= self.text_share < 1, "--model.text-share", self.text_share, "a share from 0 to below 1")
        for name in ("heads", "sequences", "requests"):
            require(getattr(self, name) >= 1, f"--model.{name}", getattr(self, name), "1 or more")

    @classmethod
    def tiny(cls) -> QwenVLConfig:
        vision = replace(TINY_TOWER, patch_size=8)
        return cls(vision=vision, queries=16, heads=6, system="", sequences=4, requests=4, context=144)

    @classmethod
    def small(cls) -> QwenVLConfig:
        """For one GPU: CLIP's ViT-B/16, and a chat model of 135 M parameters."""
        return cls(
            vision=VisionConfig(width=768, depth=12, heads=12, image_size=224, patch_size=16),
            timm_name="vit_base_patch16_clip_224.openai",
            queries=64,
            heads=9,
            language=LanguageConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"),
            context=96,
        )

    @classmethod
    def paper(cls) -> QwenVLConfig:
        """9.6 G parameters: ViT-bigG/14 at 448 px, 256 queries, and a Qwen of 7.7 G."""
        return cls(timm_name="vit_gigantic_patch14_clip_224.laion2b", language=LanguageConfig(source="Qwen/Qwen1.5-7B"))


class Adapter(nn.Module):
    """Learned queries that attend once to the patches of an image (section 2.1; `Resampler` of the released code).

    Queries stand on a square grid over the image. 2D sines and cosines of the places are added to queries and keys, not to values; there is
    no residual connection and no MLP.
    """

    query_places: Tensor
    key_places: Tensor

    def __init__(self, features: int, width: int, *, queries: int, heads: int, patches: int, places: bool = True) -> None:
        super().__init__()
        side = math.isqrt(queries)
        check_heads(heads, width, "the language model's width")
        require(width % 4 == 0, "the language model's width", width, "a number that 4 divides")
        if math.isqrt(patches) ** 2 != patches:
            raise ValueError(f"the image tower has {patches} patches, expected a square number: name another --model.vision.tower")
        self.heads = heads
        self.enter: nn.Module = nn.Linear(features, width, bias=False) if features != width else nn.Identity()
        self.norm_patches, self.norm_queries = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        grid = grid_places(side, width) if places else torch.zeros(queries, width)
        self.register_buffer("query_places", grid, persistent=False)
        self.register_buffer("key_places", resized(grid, math.isqrt(patches)), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """As the released code: normal with deviation .02, and torch's Xavier for the attention's input layers taken together."""
        nn.init.trunc_normal_(self.queries, std=0.02)
        for layer in (self.enter, self.proj):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
        for layer in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
        for layer in (self.q, self.k, self.v, self.proj):
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """The patches' states `[B, S, features]` -> `[B, queries, width]`."""
        values = self.norm_patches(self.enter(patches))
        q = self.q(self.norm_queries(self.queries) + self.query_places)[None].expand(len(patches), -1, -1)
        k, v = self.k(values + self.key_places), self.v(values)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))  # [B, H, ., D/H]
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def grid_places(side: int, width: int) -> Tensor:
    """2D sines and cosines of the places of a grid, row by row, `[side^2, width]`: the first half of the width tells the column, the second
    the row."""
    bands = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * bands
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    return torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)], dim=1).float()


def resized(places: Tensor, side: int) -> Tensor:
    """The places of a square grid `[N, width]`, bicubically interpolated to a grid with so many cells a side."""
    own = math.isqrt(len(places))
    if own == side:
        return places
    grid = places.T.unflatten(1, (own, own))[None]  # [1, width, own, own]
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()


class QwenVL(ChatModel):
    paradigm = "pretrained backbones"
    Config = QwenVLConfig
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}

    def __init__(self, config: QwenVLConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.visual: Any = _tower_of(config)
        self.add_language(config.language, config.vocab_size)
        patches = self.visual.patch_embed.num_patches
        attention = Adapter(
            self.visual.num_features, self.width, queries=config.queries, heads=config.heads, patches=patches, places=config.places
        )
        proj = nn.Linear(self.width, self.width, bias=False)
        nn.init.normal_(proj.weight, std=self.width**-0.5)
        self.adapter = nn.Sequential(OrderedDict(attention=attention, norm=nn.LayerNorm(self.width, eps=EPS), proj=proj))
        self.transform = ImageTransform(config.vision.image_size, squeeze=True)  # boxes are shares of the whole image
        self.places = config.queries
        self.template = Template(tokenizer, self.places, config.context, replace(CHAT, system=config.system))
        self.plain = Template(tokenizer, self.places, config.context, PLAIN)
        self.collate: TextsCollate
        self.enter_stage("captions")

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained model with an image tower `visual` like this one, maybe with patches of another size; "language_model": a
        trained `LM`, unless one is named."""
        theirs, own = modules["vision"].visual, self.visual.state_dict()
        state = {name: value for name, value in theirs.state_dict().items() if name in own}
        side, first = math.isqrt(self.visual.patch_embed.num_patches), self.visual.num_prefix_tokens
        if state["pos_embed"].shape != own["pos_embed"].shape:
            state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], new_size=[side, side], num_prefix_tokens=first)
        for name, value in state.items():
            if value.ndim == 4 and value.shape != own[name].shape:  # the last convolution looks at one place instead of several
                state[name] = value.sum(dim=(2, 3), keepdim=True)
        self.visual.load_state_dict(state)
        super().adopt(modules)

    def fetch(self) -> dict[str, str]:
        """Load the weights of the backbones that the configuration names. Returns module -> source."""
        tower = self.config.timm_name
        if tower:
            self.visual.load_state_dict(_tower_of(self.config, weights=True).state_dict())
        return super().fetch() | ({"visual": tower} if tower else {})

    def enter_stage(self, name: str) -> None:
        """Train what belongs to the stage (`STAGES`), on its texts."""
        if name not in STAGES:
            raise ValueError(f"stage {name!r}: expected one of {', '.join(STAGES)}")
        for part in ("visual", "adapter", "language"):
            trained = part in STAGES[name] and (part != "language" or self.config.tune_language)
            getattr(self, part).requires_grad_(trained)
        texts = (self.transform, self.plain, self.template, self.config.sequences)
        if name == "captions":
            self.collate = CaptionCollate(*texts)
        elif name == "tasks":
            self.collate = TasksCollate(*texts, self.config.text_share)
        else:
            self.collate = ChatCollate(*texts, self.config.requests)

    def encode(self, batch: Batch) -> Batch:
        """Negative log-likelihood "nll" in nats of the targets of each sample, and their number of "tokens", `[B]`."""
        ids, labels, soft = batch["ids"], batch["labels"], self._soft(batch)
        images, texts, _ = ids.shape
        if texts > 1 and device.may_decide_passes(ids):
            return self.packed_nll(ids, labels, soft)
        rows, vectors = ids.flatten(0, 1), soft.repeat_interleave(texts, dim=0)
        if device.host_knows(ids):
            vectors = _with_places(rows, vectors)
        total, count = nll(self.language, rows, labels.flatten(0, 1), vectors)
        return {"nll": total.unflatten(0, (images, texts)).sum(dim=1), "tokens": count.unflatten(0, (images, texts)).sum(dim=1)}

    def _soft(self, batch: Batch) -> Tensor:
        """The vectors of each sample's images, one image after the other, `[B, P * places, width]`; zeros where it has fewer."""
        pixels = batch["pixels"]
        if pixels.shape[1] == 1:
            return self._see(pixels[:, 0])
        there = torch.arange(pixels.shape[1], device=pixels.device) < batch["pictures"][:, None]
        if not device.host_knows(pixels):  # which would have to wait for the number of images
            return (self._see(pixels.flatten(0, 1)).unflatten(0, there.shape) * there[..., None, None]).flatten(1, 2)
        seen = self._see(pixels[there])
        soft = seen.new_zeros(*there.shape, *seen.shape[1:])
        return soft.index_put(there.nonzero(as_tuple=True), seen).flatten(1, 2)

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[N, 3, S, S]` -> the vectors of each image `[N, places, width]`."""
        pixels = normalise(pixels, self.config.mean, self.config.std)
        states = self.visual.forward_features(pixels) if self.config.timm_name else image_states(self.visual, pixels)
        return self.adapter(states[:, self.visual.num_prefix_tokens :])

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        return self._write(images, [CAPTION] * len(images), how=how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return self._write(images, [ANSWER.format(question) for question in questions])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        pairs = zip(questions, answers, strict=True)
        return self._of_rows(images, [self.plain.conversation([Turn(ANSWER.format(question), answer)]) for question, answer in pairs])

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, its end included: as a caption that was asked for."""
        return self._of_rows(images, [self.plain.conversation([Turn(CAPTION, text)]) for text in texts])

    @torch.no_grad()
    def locate(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> list[Box | None]:
        """The box of what each phrase names in its image, in pixels; None if the reply has no box."""
        replies = self._write(images, [REFER.format(phrase) for phrase in phrases])
        found = [boxes_in(reply, image.shape[0], image.shape[1], THOUSANDTHS) for image, reply in zip(images, replies, strict=True)]
        return [boxes[0] if boxes else None for boxes in found]

    def _write(self, images: Sequence[np.ndarray], requests: Sequence[str], *, how: Decoding = GREEDY) -> list[str]:
        """What it writes after each request, in the form of the first two stages."""
        return [reply.text for reply in self.reply(images, requests, how=how, template=self.plain)]


def _with_places(ids: Tensor, soft: Tensor) -> Tensor:
    """Of each sequence's vectors `[N, V, D]` the first ones, as many as its ids `[N, T]` have places for, `[total, D]`."""
    counts = (ids == SOFT).sum(dim=1)
    return soft[torch.arange(soft.shape[1], device=soft.device) < counts[:, None]]


def _tower_of(config: QwenVLConfig, *, weights: bool = False) -> Any:
    """The image tower, all blocks without the last norm."""
    if config.timm_name:
        return image_tower(config.timm_name, weights=weights, dropped=0, image_size=config.vision.image_size)
    return without_last(vision_transformer(config.vision), 0)
