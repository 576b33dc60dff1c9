"""MiniGPT-4: one linear layer connects a frozen BLIP-2 to a frozen chat model (Zhu et al., 2023, arXiv 2304.10592).

Stage "captions" trains the layer on captions without any request, stage "instructions" on a small set of conversations.
Deviations: the words between two images or replies are tokenised together (`Template`), only the first turn has a start token,
a request is drawn for each picture rather than for each batch, and conversations have up to two turns. `tiny` sees with the suite's
own BLIP-2 and speaks with its own language model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.blip2 import BLIP2Config
from models.blip2.qformer import QFormer
from models.contract import Losses, Model
from models.lm.corpus import DESCRIBE
from models.minigpt4.instructions import CaptionCollate, InstructionCollate
from models.minigpt4.template import END_OF_CAPTION, END_OF_TURN, Row, Template, Turn, laid_out
from models.shared.backbones import LanguageConfig, fetch_language, freeze, image_tower, known, language_model
from models.shared.distributed import mean_of_all
from models.shared.generate import GREEDY, Decoding
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.prefix import continued, log_likelihood, nll
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


class Reply(NamedTuple):
    text: str
    ended: bool  # by itself; otherwise it was cut at the limit


class MiniGPT4(Model):
    paradigm = "pretrained backbones"
    Config = MiniGPT4Config
    builds_on = ("blip2", "lm")
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}
    score_kind = "likelihood"

    def __init__(self, config: MiniGPT4Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.visual: Any = freeze(image_tower(config.timm_name) if config.timm_name else vision_transformer(config.vision))
        width, patches = self.visual.num_features, self.visual.patch_embed.num_patches
        self.norm_image = freeze(nn.LayerNorm(width, eps=config.vision.norm_eps))
        self.qformer = _queries(config, width).requires_grad_(config.tune_qformer) if config.queries else None
        language: Any = language_model(replace(config.language, vocab_size=config.vocab_size))
        if language.config.is_encoder_decoder:
            raise ValueError(f"{config.language.source} is an encoder-decoder; MiniGPT-4 requires a decoder-only language model")
        self.language = freeze(language)
        self.language_width: int = language.get_input_embeddings().embedding_dim
        self.to_language = _bridge(config.qformer.width if config.queries else NEIGHBOURS * width, self.language_width, config.bridge)
        self.transform = ImageTransform(config.vision.image_size)
        self.template = Template(tokenizer, config.queries or patches // NEIGHBOURS, config.context)
        self.collate: CaptionCollate | InstructionCollate = CaptionCollate(self.transform, self.template)

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained `BLIP2`, whose image side is used; "language_model": a trained `LM`, unless one is named."""
        blip2 = modules["vision"]
        self.visual.load_state_dict(blip2.visual.state_dict())
        self.norm_image.load_state_dict(blip2.norm_image.state_dict())
        if self.qformer is not None:
            theirs = blip2.qformer.state_dict()
            self.qformer.load_state_dict({name: theirs[name] for name in self.qformer.state_dict()})
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the weights of the language model that the configuration names. Returns module -> where they came from."""
        return fetch_language(self.language, self.config.language.source, self.tokenizer)

    def enter_stage(self, name: str) -> None:
        """Both stages train the same parameters; "captions" and "instructions" differ in their texts."""
        if name not in ("captions", "instructions"):
            raise ValueError(f"stage {name!r}: expected captions or instructions")
        kind = CaptionCollate if name == "captions" else InstructionCollate
        self.collate = kind(self.transform, self.template)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each sequence the negative log-likelihood "nll" in nats of its target, and how many "tokens" that is, `[B]`."""
        total, count = nll(self.language, batch["ids"], batch["labels"], self._see(batch["pixels"]))
        return {"nll": total, "tokens": count}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        loss = mean_of_all(features["nll"], features["tokens"])
        return Losses(loss, {"text": loss}, {"text": math.log(self.config.vocab_size)})

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

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        """Its replies to a request for a description."""
        return [reply.text for reply in self.reply(images, [DESCRIBE[0]] * len(images), how=how)]

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return [reply.text for reply in self.reply(images, questions)]

    @torch.no_grad()
    def reply(
        self,
        images: Sequence[np.ndarray],
        requests: Sequence[str],
        *,
        before: Sequence[Sequence[Turn]] | None = None,
        how: Decoding = GREEDY,
    ) -> list[Reply]:
        """Its reply to each request about each picture, after the turns `before` it."""
        earlier = before or [()] * len(requests)
        rows = [self.template.before_reply(turns, request) for turns, request in zip(earlier, requests, strict=True)]
        distinct_images, pictures = distinct(images)
        return self.go_on(rows, self.look(distinct_images), how=how, pictures=pictures)

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[str | np.ndarray]]) -> list[str]:
        """What follows each prompt of images and texts in any order, up to the end of the line; not a conversation."""
        soft = self.look([part for prompt in prompts for part in prompt if not isinstance(part, str)])
        rows = [self.template.interleaved(prompt) or [self.tokenizer.end] for prompt in prompts]
        return [reply.text for reply in self.go_on(rows, soft, sign=END_OF_CAPTION)]

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, its end included; without a request, as in the first stage."""
        return self._likelihood(images, [self.template.caption(text) for text in texts])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        pairs = zip(questions, answers, strict=True)
        return self._likelihood(images, [self.template.conversation([Turn(*pair)]) for pair in pairs])

    @torch.no_grad()
    def look(self, images: Sequence[np.ndarray]) -> Tensor:
        """`[N, places, D]`; the same picture is looked at once."""
        device = self.norm_image.weight.device
        if not len(images):
            return torch.zeros(0, self.template.places, self.language_width, device=device)
        pictures, rows = distinct(images)
        return self._see(self.transform(pictures).to(device))[rows]

    def _likelihood(self, images: Sequence[np.ndarray], rows: Sequence[Row]) -> Tensor:
        pictures, places = distinct(images)
        soft = self.look(pictures)
        batch = {name: values.to(soft.device) for name, values in laid_out(rows).items()}
        return log_likelihood(self.language, batch["ids"], batch["labels"], soft, places)

    @torch.no_grad()
    def go_on(
        self,
        rows: Sequence[Sequence[int]],
        soft: Tensor,
        *,
        sign: str = END_OF_TURN,
        how: Decoding = GREEDY,
        pictures: Sequence[int] | None = None,
    ) -> list[Reply]:
        """What follows each of the template's sequences, whose images became `soft` (with `pictures`: of which the i-th sequence shows
        `pictures[i]`), up to the sign that ends it, or the language model's own end."""
        if not rows:
            return []
        end, limit = self.template.end_of(sign)[0], self.config.context
        found = []
        for tokens in continued(self.language, self.tokenizer, rows, soft, limit=limit, end=end, how=how, pictures=pictures):
            reply = tokens[: tokens.index(self.tokenizer.end)] if self.tokenizer.end in tokens else tokens
            found.append(Reply(self.tokenizer.decode(reply), ended=len(reply) < limit))
        return found


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
