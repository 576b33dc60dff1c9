"""Chameleon: the successor of CM3leon whose weights are released (Chameleon Team, 2024, arXiv 2405.09818). A picture is 1,024 tokens among
those of a text, and one decoder reads both.

It is here for its published weights (`WEIGHTS=hf:facebook/chameleon-7b`), with CM3leon's decoder and VQ. A turn is `<s> <begin> picture
<finish> question <turn> answer </s>`. It does not draw: transformers' weights have no decoder of pictures, and the released model was kept
from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from models.cm3leon.decoder import DecoderConfig, TokenDecoder
from models.cm3leon.drawing import Reader, Writer
from models.contract import IGNORE_INDEX, Losses, Model
from models.shared.distributed import mean_of_all
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import ImageTransform, distinct
from models.shared.prefix import PADDING, SOFT, label_nll, left_padded, right_padded
from models.shared.text import LONGEST, Tokenizer
from models.shared.tree import forests
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig


def _tokenizer() -> VQConfig:
    return VQConfig(network=NetworkConfig(image_size=512, multiplier=(1, 1, 2, 2, 4)))


@dataclass(frozen=True)
class ChameleonConfig:
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(hidden=11_008, chameleon=True))
    image_tokenizer: VQConfig = field(default_factory=_tokenizer)
    vocab_size: int = 65_536
    images: tuple[int, ...] = ()  # the token of each code; () for those after the text's
    begin: int = 8197  # tokens before and after a picture's, and after a question; -1 for new ones
    finish: int = 8196
    turn: int = 8710
    text: int = 64  # longest text that is written or read, in tokens
    request: str = "Describe this image in one short sentence."  # the question whose answer is a caption

    @classmethod
    def tiny(cls) -> ChameleonConfig:
        """For tests: nobody would train it."""
        decoder = DecoderConfig(width=64, depth=2, heads=2, hidden=128, chameleon=True)
        return cls(decoder=decoder, image_tokenizer=VQConfig.tiny(), vocab_size=512, begin=-1, finish=-1, turn=-1, text=32)

    @classmethod
    def small(cls) -> ChameleonConfig:
        decoder = DecoderConfig(width=512, depth=12, heads=8, hidden=1376, chameleon=True)
        return cls(decoder=decoder, image_tokenizer=VQConfig.small(), begin=-1, finish=-1, turn=-1)

    @classmethod
    def paper(cls) -> ChameleonConfig:
        """7 B: table 1 of the paper."""
        return cls()


@dataclass(frozen=True)
class TurnCollate:
    """Pictures, and captions or answers after the request or a question."""

    transform: ImageTransform
    model: Any  # `Turns`

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`, "ids" `[B, T]` with `SOFT` for a picture's cells, "labels" `[B, T]`."""
        captions = [sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples]
        ids, labels = self.model.laid_out([None] * len(samples), captions)
        return {"pixels": self.transform([sample.image for sample in samples]), "ids": ids, "labels": labels}


@dataclass(frozen=True)
class Turns:
    """Questions about a picture and their answers as tokens."""

    config: ChameleonConfig
    tokenizer: Tokenizer
    cells: int

    def prompt(self, question: str | None) -> list[int]:
        """Up to where the answer begins; None asks for a caption."""
        start = [] if self.tokenizer.start is None else [self.tokenizer.start]
        asked = self.tokens(self.config.request if question is None else question)
        return [*start, self.config.begin, *[SOFT] * self.cells, self.config.finish, *asked, self.config.turn]

    def laid_out(self, questions: Sequence[str | None], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        prompts = [self.prompt(question) for question in questions]
        targets = [[*self.tokens(answer), self.tokenizer.end] for answer in answers]
        rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
        labels = [[*[IGNORE_INDEX] * len(prompt), *target] for prompt, target in zip(prompts, targets, strict=True)]
        return right_padded(rows), right_padded(labels, IGNORE_INDEX)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.config.text]


class Chameleon(Model):
    paradigm = "generative"
    Config = ChameleonConfig
    builds_on = ("vq",)
    score_kind = "likelihood"

    images: Tensor

    def __init__(self, config: ChameleonConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.image_tokenizer = VQ(config.image_tokenizer, tokenizer).requires_grad_(False)
        codes = self.image_tokenizer.size
        if config.images and len(config.images) != codes:
            raise ValueError(f"there are {len(config.images)} image tokens and {codes} codes: expected one for each")
        images = config.images or range(config.vocab_size, config.vocab_size + codes)
        self.register_buffer("images", torch.tensor(list(images)), persistent=False)
        self.rows = 1 + max(config.vocab_size - 1, *images, config.begin, config.finish, config.turn)
        for name in ("begin", "finish", "turn"):
            if getattr(config, name) < 0:
                new: dict[str, Any] = {name: self.rows}
                config, self.rows = replace(config, **new), self.rows + 1
        self.config = config
        self.decoder = TokenDecoder(config.decoder, self.rows)
        self.turns = Turns(config, tokenizer, self.image_tokenizer.side**2)
        self.transform = ImageTransform(config.image_tokenizer.network.image_size)
        self.collate = TurnCollate(self.transform, self.turns)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each text the negative log-likelihood "nll" in nats, and how many "tokens" that is, `[B]`."""
        codes = self.image_tokenizer.tokenise(batch["pixels"])
        ids = self._filled(batch["ids"], codes)
        states = self.decoder(ids[:, :-1], torch.arange(ids.shape[1] - 1, device=ids.device)[None])
        total, count = label_nll(self.decoder.logits(states), batch["labels"][:, 1:])
        return {"nll": total, "tokens": count}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        loss = mean_of_all(features["nll"], features["tokens"])
        return Losses(loss, {"text": loss}, {"text": math.log(self.rows)})

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        """Its answers to the request for a caption."""
        return self._write(images, [None] * len(images), how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return self._write(images, questions)

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, its end included, float32 `[N]`."""
        return self._log_likelihood(images, questions, answers)

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image, request for a caption) in nats, its end included, float32 `[N]`."""
        return self._log_likelihood(images, [None] * len(texts), texts)

    def _log_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str | None], answers: Sequence[str]) -> Tensor:
        """Picture and question are read once for all their answers."""
        pictures, places = distinct(images)
        codes = self.image_tokenizer.tokens(pictures)
        heads = {head: number for number, head in enumerate(dict.fromkeys(zip(places, questions, strict=True)))}
        asked, numbers = list(heads), [heads[head] for head in zip(places, questions, strict=True)]
        targets = [[*self.turns.tokens(answer), self.tokenizer.end] for answer in answers]
        found = torch.zeros(len(targets), device=codes.device)
        for forest in forests([[None, *target[:-1]] for target in targets], numbers):  # the root is all that was read before
            shown = [asked[number] for number in forest.groups]
            ids = left_padded([self.turns.prompt(question) for _, question in shown]).to(codes.device)
            reader = self._reader(ids, codes[[picture for picture, _ in shown]], room=forest.depths.shape[1] - 1)
            tree = right_padded([tokens[1:] for tokens in forest.tokens], self.tokenizer.pad).to(codes.device)
            depths, sees = forest.depths[:, 1:].to(codes.device), forest.sees[:, 1:, 1:].to(codes.device)
            states = torch.cat([reader.state[:, None], reader.read_tree(tree, reader.places[:, None] + depths, sees)], dim=1)
            following = right_padded([targets[number] for number in forest.sequences], IGNORE_INDEX).to(codes.device)
            found[forest.sequences] = forest.log_likelihoods(self.decoder.logits(states), following)
        return found

    def _write(self, images: Sequence[np.ndarray], questions: Sequence[str | None], how: Decoding = GREEDY) -> list[str]:
        if not len(images):
            return []
        pictures, places = distinct(images)
        codes = self.image_tokenizer.tokens(pictures)
        ids = left_padded([self.turns.prompt(question) for question in questions]).to(codes.device)
        reader = self._reader(ids, codes[places], room=self.config.text)
        writer = Writer(reader, self.decoder, self.rows, reader.places + 1)
        never = [*not_text(self.tokenizer), self.config.begin, self.config.finish, self.config.turn, *self.images.tolist()]
        written = generate(writer, writer.logits(), end=self.tokenizer.end, limit=self.config.text, never=never, how=how)
        return [self.tokenizer.decode(row) for row in written]

    def _reader(self, ids: Tensor, codes: Tensor, *, room: int) -> Reader:
        seen = ids != PADDING
        places = (seen.cumsum(dim=1) - 1).clamp(min=0)
        return Reader(self.decoder, self._filled(ids, codes), places, seen, room=room)

    def _filled(self, ids: Tensor, codes: Tensor) -> Tensor:
        """The tokens of the codes `[B, cells]` in the places of the pictures of ids `[B, T]`."""
        tokens = ids.masked_fill(ids == PADDING, self.tokenizer.pad)
        return tokens.masked_scatter(ids == SOFT, self.images[codes])
