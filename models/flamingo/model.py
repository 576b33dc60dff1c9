"""Flamingo: a frozen language model that reads pages of pictures and texts through gated cross-attention (Alayrac et al., 2022,
arXiv 2204.14198).

Deviations: pictures only, so the resampler has no time embedding. Attention and MLPs have no biases, as in the reproductions (lucidrains',
OpenFlamingo's, Idefics). The end token of the language model is the paper's <EOC>; in the place of a picture stands one learned vector.
The language model is not DeepMind's Chinchilla, which was not published. `tiny` also learns from questions, and its gates are
tanh(rate * a): in a few thousand steps of Adam tanh(a) would hardly open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.fields import require
from data.sample import Sample
from models.contract import IGNORE_INDEX, Losses, Model
from models.flamingo.collate import NOTHING, STATES, PageCollate, Row
from models.flamingo.gated import GatedCrossAttention, PictureAttention
from models.flamingo.resampler import PatchMLP, PerceiverResampler
from models.shared import device
from models.shared.backbones import (
    Continuation,
    LanguageConfig,
    decoder_layers,
    fetch_language,
    fetch_tower,
    freeze,
    known,
    language_model,
    looked_at,
    named_tower,
)
from models.shared.distributed import mean_of_all
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.prefix import PADDING, SOFT, label_nll, left_padded, log_likelihood, right_padded
from models.shared.text import Tokenizer
from models.shared.transformer import TransformerConfig, as_autocast
from models.shared.tree import Forest
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer

PYTHIA_1_4B = json.dumps(
    {
        "model_type": "gpt_neox",
        "vocab_size": 50_304,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
    }
)


@dataclass(frozen=True)
class FlamingoConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, pool="avg"))
    timm_name: str = ""  # a timm model in the place of `vision`; the paper's is dm_nfnet_f6, trained by contrast
    resampler: TransformerConfig = field(default_factory=lambda: TransformerConfig(1536, 6, 16, activation="squared_relu"))
    bridge: Literal["perceiver", "mlp"] = "perceiver"  # the paper's comparison: an MLP in the resampler's place
    latents: int = 64  # vectors an image becomes
    language: LanguageConfig = field(default_factory=LanguageConfig)
    heads: int = 16  # of the cross-attention
    every: int = 1  # layers of the language model from one block to the next
    gated: bool = True  # False: the paper's comparison without gates
    gate_rate: float = 1.0  # gates are tanh(rate * a)
    all_pictures: bool = False  # the paper's comparison: a text sees all pictures up to its own
    tune_language: bool = False  # the paper's comparison: the language model learns, too
    context: int = 256  # tokens of a page
    pictures: int = 5  # of a page
    questions: float = 0.0  # share of the one-picture samples with a question to answer instead of a caption
    pages: float = 1.0  # share of the samples with a page that are read as pages
    pairs_weight: float = 0.2  # lambda of the loss on pairs; that of pages is 1
    vocab_size: int = 4096
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> FlamingoConfig:
        return cls(
            vision=TINY_TOWER,
            resampler=TransformerConfig(width=160, depth=2, heads=5, activation="squared_relu"),
            latents=8,
            heads=3,
            gate_rate=5.0,
            context=96,
            questions=0.5,
            pairs_weight=1.0,
        )

    @classmethod
    def small(cls) -> FlamingoConfig:
        """For 128 px pictures and one GPU: CLIP's `small` tower, and Pythia 410 M with a block in front of every fourth layer."""
        return cls(
            vision=VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=16, pre_norm=True),
            resampler=TransformerConfig(width=384, depth=4, heads=6, activation="squared_relu"),
            latents=32,
            language=LanguageConfig(source="EleutherAI/pythia-410m"),
            every=4,
            context=192,
            questions=0.5,
        )

    @classmethod
    def paper(cls) -> FlamingoConfig:
        """Flamingo-3B: NFNet-F6, and a language model of 1.4 G parameters with 24 layers of 2,048. The paper's own was never published;
        Pythia has its size and its shape."""
        language = LanguageConfig(source="EleutherAI/pythia-1.4b", architecture=PYTHIA_1_4B)
        vision = VisionConfig(width=768, depth=12, heads=12, image_size=320, pool="avg")  # of which only the size of pictures counts
        return cls(vision=vision, timm_name="dm_nfnet_f6", language=language, vocab_size=50_304)


class Flamingo(Model):
    paradigm = "cross-attention"
    Config = FlamingoConfig
    needs = ("texts",)
    notes: ClassVar = {"binding": "It must write one of the two new words, and often writes neither; chance names one of them."}
    score_kind = "likelihood"

    def __init__(self, config: FlamingoConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        require(config.every >= 1, "--model.every", config.every, "1, a block in front of each layer of the language model, or more")
        self.config, self.tokenizer = config, tokenizer
        transform = ImageTransform(config.vision.image_size)
        self.collate = PageCollate(transform, tokenizer, config.context, config.pictures, config.questions, config.pages)
        self.visual: Any = freeze(named_tower(config.timm_name) if config.timm_name else vision_transformer(config.vision))
        language: Any = language_model(replace(config.language, vocab_size=config.vocab_size))
        if language.config.is_encoder_decoder:
            raise ValueError(f"{config.language.source} is an encoder-decoder; Flamingo requires a decoder-only language model")
        self.language = language if config.tune_language else freeze(language)  # gradients flow through it, to the blocks
        self.width: int = language.get_input_embeddings().embedding_dim
        self.tag = nn.Parameter(0.02 * torch.randn(self.width))
        self.resampler, blocks = self._joined(config, language, self.visual.num_features)
        self.blocks = nn.ModuleList(blocks)

    def _joined(self, config: Any, language: Any, features: int) -> tuple[nn.Module, list[nn.Module]]:
        """What reads the image encoder's features, and the blocks that read its output, hooked to the language model's layers."""
        width, kind = config.resampler.width, {"perceiver": PerceiverResampler, "mlp": PatchMLP}[config.bridge]
        resampler = kind(config.resampler, config.latents, features)
        options: dict[str, Any] = {"rate": config.gate_rate, "gated": config.gated, "every": config.all_pictures}
        blocks: list[nn.Module] = []
        layers = decoder_layers(language)
        require(config.every <= len(layers), "--model.every", config.every, f"at most the language model's {len(layers)} layers")
        for layer in layers[config.every - 1 :: config.every]:  # of each group of layers, the last
            block = GatedCrossAttention(self.width, width, config.heads, activation=config.resampler.activation, **options)
            block.hook(layer)
            blocks.append(block)
        return resampler, blocks

    @property
    def readers(self) -> list[PictureAttention]:
        """The attention to pictures of each block."""
        return [block.attention for block in self.blocks]  # type: ignore[misc]

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained model with an image tower `visual` of this shape; "language_model": a trained `LM`, unless one is named."""
        self.visual.load_state_dict(modules["vision"].visual.state_dict())
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the weights of the backbones that the configuration names. Returns module -> where they came from."""
        tower = super().fetch() | fetch_tower(self.visual, self.config.timm_name)
        return tower | fetch_language(self.language, self.config.language.source, self.tokenizer)

    @torch.no_grad()
    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Look at each picture only once: the image encoder is frozen."""
        pictures = [image for sample in samples for image in sample.images]
        states = iter(self._states(self.collate.transform(pictures).to(self.tag.device)).half().cpu().numpy())
        return [replace(each, extra=each.extra | {STATES: np.stack([next(states) for _ in each.images])}) for each in samples]

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each sequence the negative log-likelihood "nll" in nats of its texts, how many "tokens" they are, and whether it is a page
        ("paged"), `[B]`."""
        seen = batch["states"] if "states" in batch else batch["pixels"]
        there = torch.arange(seen.shape[1], device=seen.device) < batch["pictures"][:, None]  # [B, P]
        if device.host_knows(seen):
            found = self._media(seen[there])
            media = found.new_zeros(*there.shape, *found.shape[1:])
            media[there] = found
        else:
            media = self._media(seen.flatten(0, 1)).unflatten(0, there.shape)
        logits = self._read(batch["ids"], batch["seen"], media)
        total, count = label_nll(logits[:, :-1], batch["labels"][:, 1:])
        return {"nll": total, "tokens": count, "paged": batch["paged"]}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """Equations 1 and 2: the likelihood of the texts given the pictures before them, weighted by kind of data. Each step is on the sum
        of both losses (section 3.3)."""
        paged = features["paged"]
        terms = {
            "pages": mean_of_all(features["nll"] * paged, features["tokens"] * paged),
            "pairs": mean_of_all(features["nll"] * ~paged, features["tokens"] * ~paged),
        }
        chance = float(np.log(self.config.vocab_size))
        return Losses.weighted(terms, {"pages": 1.0, "pairs": self.config.pairs_weight}, dict.fromkeys(terms, chance))

    def _read(self, ids: Tensor, seen: Tensor, media: Tensor) -> Tensor:
        """Logits `[B, T, V]` of sequences with their pictures `[B, P, latents, M]`."""
        self._look_at(media, seen)
        try:
            mask = (ids != PADDING).long()
            return self.language(inputs_embeds=self._embed(ids), attention_mask=mask, use_cache=False).logits
        finally:
            self._forget()

    def _look_at(self, media: Tensor, seen: Tensor) -> None:
        """Let all blocks read these pictures `[B, P, latents, M]`; `seen` `[B, T]` are those that the next tokens belong to."""
        for reader in self.readers:
            reader.look([media], seen)

    def _forget(self) -> None:
        for reader in self.readers:
            reader.forget()

    def _reader(self, seen: Tensor) -> PageReader:
        return PageReader(self.language, self.readers, seen)

    def _embed(self, ids: Tensor) -> Tensor:
        """Token ids `[B, T]` with `SOFT` in the place of pictures -> `[B, T, D]`."""
        embedded = as_autocast(self.language.get_input_embeddings()(ids.clamp(min=0)))  # also casts the residual stream
        return torch.where((ids == SOFT)[:, :, None], self.tag.to(embedded.dtype), embedded)

    def _media(self, seen: Tensor) -> Tensor:
        """uint8 pixels `[N, 3, S, S]` or the image encoder's states `[N, S, D]` -> `[N, latents, M]`."""
        states = self._states(seen) if seen.dtype == torch.uint8 else seen.float()
        return self.resampler(states)

    @torch.no_grad()
    def _states(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[N, 3, S, S]` -> the image encoder's states, float32 `[N, S, D]`."""

        def look(part: Tensor) -> Tensor:
            states = self.visual.forward_features(part)
            return states.flatten(2).mT if states.ndim == 4 else states  # of convolutions: a grid [N, D, h, w]

        pixels = normalise(pixels, self.config.mean, self.config.std)
        return looked_at(look, pixels) if len(pixels) else look(pixels).float()

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        return self._write([[image] for image in images], how=how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        rows = [self.collate.pair("", question) for question in questions]
        return self._continue([(_without_end(row), [image]) for row, image in zip(rows, images, strict=True)])

    @torch.no_grad()
    def complete(self, prompts: Sequence[Sequence[str | np.ndarray]]) -> list[str]:
        """What follows each prompt of pictures and texts in any order, up to the end of a text. A text before another picture is complete,
        the last one is to be continued; line breaks at the ends of texts are ignored."""
        return [text.split("\n")[0].strip() for text in self._write(prompts)]

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`: the sum over the text's tokens, its end included."""
        return self._likelihood(images, [self.collate.pair(text) for text in texts])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        pairs = zip(questions, answers, strict=True)
        return self._likelihood(images, [self.collate.pair(answer, question) for question, answer in pairs])

    def _likelihood(self, images: Sequence[np.ndarray], rows: Sequence[Row]) -> Tensor:
        """Many texts about few pictures; each sequence is a start token, if the tokenizer has one, its picture and its text."""
        pictures, places = distinct(images)
        media = self._look(pictures)[:, None]  # [P, 1, latents, M]
        tag = 0 if self.tokenizer.start is None else 1

        def announced(forest: Forest) -> None:
            seen = torch.where(forest.depths >= tag, 0, NOTHING).to(media.device)
            self._look_at(media[torch.tensor(forest.groups, device=media.device)], seen)

        ids, labels = right_padded([row.ids for row in rows]), right_padded([row.labels for row in rows], IGNORE_INDEX)
        tags = self.tag.expand(len(pictures), 1, -1)
        try:
            return log_likelihood(self.language, ids.to(media.device), labels.to(media.device), tags, places, announced)
        finally:
            self._forget()

    def _look(self, images: Sequence[np.ndarray]) -> Tensor:
        """`[N, latents, M]`; the same picture is looked at once."""
        pictures, places = distinct(images)
        if not pictures:
            return self._look([np.zeros((self.config.vision.image_size,) * 2 + (3,), np.uint8)])[:0]
        return self._media(self.collate.transform(pictures).to(self.tag.device))[places]

    def _write(self, prompts: Sequence[Sequence[str | np.ndarray]], how: Decoding = GREEDY) -> list[str]:
        return self._continue([self._row(prompt) for prompt in prompts], how)

    def _row(self, prompt: Sequence[str | np.ndarray]) -> tuple[Row, list[np.ndarray]]:
        row, pictures = self.collate.begun(), []
        last = max((place for place, part in enumerate(prompt) if not isinstance(part, str)), default=-1)
        for place, part in enumerate(prompt):
            if not isinstance(part, str):
                pictures.append(part)
                row.show(len(pictures) - 1)
            elif text := part.strip("\n"):
                row.read(self.collate.ended(text) if place < last else self.collate.tokens(text), len(pictures) - 1)
        if not row.ids:  # nothing at all: a new document
            row.read([self.tokenizer.end], NOTHING)
        return row, pictures

    def _continue(self, prompts: Sequence[tuple[Row, list[np.ndarray]]], how: Decoding = GREEDY) -> list[str]:
        """Generate the text that follows each sequence, until the end of a text or for `context` tokens."""
        if not prompts:
            return []
        rows, shown = zip(*prompts, strict=True)
        ids = left_padded([row.ids for row in rows]).to(self.tag.device)
        seen = left_padded([row.seen for row in rows], NOTHING).to(self.tag.device)
        found = self._look([picture for pictures in shown for picture in pictures])
        media = found.new_zeros(len(rows), max(1, *map(len, shown)), *found.shape[1:])
        there = torch.arange(media.shape[1]) < torch.tensor([[len(pictures)] for pictures in shown])
        media[there.to(media.device)] = found
        try:
            self._look_at(media, seen)
            reader = self._reader(seen)
            logits = reader.read(self._embed(ids), ids != PADDING)
            never = [token for token in not_text(self.tokenizer) if token != self.tokenizer.end]
            tokens = generate(reader, logits, end=self.tokenizer.end, limit=self.config.context, never=never, how=how)
        finally:
            self._forget()
        return [self.tokenizer.decode(each) for each in tokens]


class PageReader(Continuation):
    """Generation with blocks that look at pictures: a new token sees the picture that the token before it sees."""

    def __init__(self, model: Any, readers: Sequence[PictureAttention], seen: Tensor) -> None:
        super().__init__(model, torch.ones(len(seen), 0, dtype=torch.bool, device=seen.device))
        self.readers, self.last = readers, seen[:, -1:]

    def step(self, tokens: Tensor) -> Tensor:
        for reader in self.readers:
            reader.seen = self.last
        return super().step(tokens)

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.last = self.last[rows]
        for reader in self.readers:
            reader.select(rows)


def _without_end(row: Row) -> Row:
    """A question whose answer is to be generated."""
    row.cut(len(row.ids) - 1)
    return row
