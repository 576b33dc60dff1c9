"""SimVLM: one encoder-decoder, one prefix language modelling loss, from scratch (Wang et al., 2021, arXiv 2108.10904).

Deviations: norms of the convolution stage are group norms. Positions of images start as sines and cosines. `tiny` has a small
convolutional stem and a width of 160. Half of its captions have no words in the prefix, since that is how captions are written
later, and its pictures come with a question as another prefix and an answer to predict, whose tokens weigh more: the paper
fine-tunes for questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import IGNORE_INDEX, Batch, Losses, Model
from models.shared import device
from models.shared.distributed import mean_of_all
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.prefix import PADDING, label_nll, right_padded
from models.shared.text import Tokenizer
from models.shared.tree import forests
from models.simvlm.collate import Mix, PrefixLMCollate
from models.simvlm.stage import StageConfig, image_stage
from models.simvlm.transformer import EncoderDecoder, EncoderDecoderConfig, Prefix, Writer

PASSES = 3  # on a CPU texts of like length are read together: less padding


@dataclass(frozen=True)
class SimVLMConfig:
    stage: StageConfig = field(default_factory=StageConfig)
    transformer: EncoderDecoderConfig = field(default_factory=EncoderDecoderConfig)
    context: int = 256  # not stated in the paper
    vocab_size: int = 32_000
    mix: Mix = field(default_factory=Mix)
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> SimVLMConfig:
        """2.8 M parameters; minutes on two CPU cores."""
        return cls(
            stage=StageConfig(kind="conv", image_size=64),
            transformer=EncoderDecoderConfig(width=160, depth=3, decoder_depth=3, heads=5),
            context=48,
            mix=Mix(questions=1.0, whole=0.5, answer_weight=4.0),
        )

    @classmethod
    def small(cls) -> SimVLMConfig:
        """Base at a fifth of its size, for 128 px pictures and one GPU."""
        return cls(
            stage=StageConfig(layers=(3, 4, 6), image_size=128),
            transformer=EncoderDecoderConfig(width=384, depth=8, decoder_depth=8, heads=6),
            context=96,
            mix=Mix(questions=1.0, whole=0.5),
            random_crop=0.9,
        )

    @classmethod
    def base(cls) -> SimVLMConfig:
        """ViT-B's sizes after ResNet-101."""
        return cls()

    @classmethod
    def large(cls) -> SimVLMConfig:
        """ViT-L's sizes after ResNet-152."""
        return cls(
            stage=StageConfig(layers=(3, 8, 36)),
            transformer=EncoderDecoderConfig(width=1024, depth=24, decoder_depth=24, heads=16),
        )

    @classmethod
    def huge(cls) -> SimVLMConfig:
        """ViT-H's sizes. The paper widens ResNet-152 for it and does not say how much; here it is as wide as for `large`."""
        return cls(
            stage=StageConfig(layers=(3, 8, 36)),
            transformer=EncoderDecoderConfig(width=1280, depth=32, decoder_depth=32, heads=16),
        )

    @classmethod
    def paper(cls) -> SimVLMConfig:
        """The model of the paper's headline results."""
        return cls.huge()


class SimVLM(Model):
    paradigm = "generative"
    Config = SimVLMConfig
    builds_on = ("lm",)
    score_kind = "likelihood"

    def __init__(self, config: SimVLMConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.start = tokenizer.end if tokenizer.start is None else tokenizer.start
        self.collate = PrefixLMCollate(ImageTransform(config.stage.image_size, config.random_crop), tokenizer, config.context, config.mix)
        self.stage = image_stage(config.stage, config.transformer.width)
        self.transformer = EncoderDecoder(config.transformer, side=config.stage.side, vocab_size=config.vocab_size, context=config.context)

    def encode(self, batch: Batch) -> Batch:
        """Of each sample the negative log-likelihood "nll" in nats of what follows its prefixes and the number of "tokens" that is, both
        `[B]` and times the texts' weights. A picture is looked at once for all of its texts."""
        image, texts = self._look(batch["pixels"]), batch["prefix"].shape[1]
        flat = {name: batch[name].flatten(0, 1) for name in ("prefix", "labels", "shown", "weight")}
        pictures = torch.arange(len(image), device=image.device).repeat_interleave(texts)
        lengths = (flat["labels"] != IGNORE_INDEX).sum(dim=1)
        shown, alone = ((flat["shown"] == value) & (lengths > 0) for value in (True, False))
        if device.may_decide_passes(shown) and bool(shown.any()):
            by_length = shown.nonzero()[:, 0][lengths[shown].argsort()]
            groups = [(rows, True) for rows in by_length.chunk(PASSES)] + [(alone.nonzero()[:, 0], False)]
        else:  # without any picture the stage still gets a gradient, of 0
            groups = [(torch.arange(len(pictures), device=image.device), True)]
        found = torch.zeros(2, len(pictures), device=image.device)
        for rows, look in groups:
            if len(rows):
                part = {name: values[rows] for name, values in flat.items()}
                found = found.index_copy(1, rows, self._read(image[pictures[rows]] if look else None, part))
        nll, tokens = found.unflatten(1, (len(image), texts)).sum(dim=2)
        return {"nll": nll, "tokens": tokens.detach()}

    def objective(self, features: Batch) -> Losses:
        """Equation 3: the mean over all tokens after the prefixes."""
        loss = mean_of_all(features["nll"], features["tokens"])
        return Losses(loss, {"suffix": loss}, {"suffix": math.log(self.config.vocab_size)})

    def _read(self, image: Tensor | None, texts: Batch) -> Tensor:
        """Patch tokens `[N, P, D]`, if any of the texts has a picture, and N texts -> negative log-likelihoods and numbers of tokens, both
        times the weights, `[2, N]`."""
        prefix, labels = _cut(texts["prefix"], PADDING), _cut(texts["labels"], IGNORE_INDEX)
        read = self.transformer.read(image, prefix, texts["shown"])
        ids = torch.cat([labels.new_full((len(labels), 1), self.start), labels[:, :-1].clamp(min=0)], dim=1)
        places = read.length[:, None] + torch.arange(ids.shape[1], device=ids.device)
        found = label_nll(self.transformer.predict(ids, places, self.transformer.remember(read), read.seen), labels)
        return torch.stack([each * texts["weight"] for each in found])

    def _look(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> patch tokens `[B, N, D]`."""
        return self.stage(normalise(pixels, self.config.mean, self.config.std))

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> the mean of the encoder's states, L2-normalised float32 `[N, width]`."""
        tokens = self._look(self._pixels(images))
        nothing = torch.empty(len(tokens), 0, dtype=torch.long, device=tokens.device)
        return F.normalize(self.transformer.read(tokens, nothing).states.float().mean(dim=1), dim=-1)

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, prompt: str = "", how: Decoding = GREEDY) -> list[str]:
        """Generate one caption per image, which begins with `prompt` (the paper: "a picture of"). Greedy by default."""
        begin = self.collate.tokens(prompt)
        return [self.tokenizer.decode([*begin, *rest]) for rest in self._write(images, [begin] * len(images), how)]

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str], *, how: Decoding = GREEDY) -> list[str]:
        """Open-ended answers: what follows the question."""
        written = self._write(images, [self.collate.question(question) for question in questions], how)
        return [self.tokenizer.decode(tokens) for tokens in written]

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, summed over the text's tokens and its end. Longer texts score lower. Texts are
        truncated to the context."""
        return self._likelihood(images, [[]] * len(texts), texts)

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        return self._likelihood(images, [self.collate.question(question) for question in questions], answers)

    def _write(self, images: Sequence[np.ndarray], prefixes: Sequence[list[int]], how: Decoding) -> list[list[int]]:
        """What follows each image and prefix, in tokens."""
        if not images:
            return []
        pictures, places = distinct(images)
        read = self._prefix(self._look(self._pixels(pictures))[places], prefixes)
        writer = Writer(self.transformer, read, self.config.context)
        logits = writer.step(read.length.new_full((len(images),), self.start))
        return generate(writer, logits, end=self.tokenizer.end, limit=self.config.context, never=not_text(self.tokenizer), how=how)

    def _likelihood(self, images: Sequence[np.ndarray], prefixes: Sequence[list[int]], targets: Sequence[str]) -> Tensor:
        """log p of each target after its image and prefix, `[N]`. Equal images and prefixes are read once, and so are the targets' common
        beginnings."""
        if not targets:
            return torch.zeros(0)
        pictures, places = distinct(images)
        tokens = self._look(self._pixels(pictures))
        asked: dict[tuple[int, tuple[int, ...]], int] = {}  # image and prefix -> their number
        numbers = [asked.setdefault((place, tuple(prefix)), len(asked)) for place, prefix in zip(places, prefixes, strict=True)]
        known = list(asked)
        texts = [self.collate.rest(target) for target in targets]
        following = right_padded([[*text, self.tokenizer.end] for text in texts], IGNORE_INDEX).to(tokens.device)
        found = torch.zeros(len(texts), device=tokens.device)
        for forest in forests([[self.start, *text] for text in texts], numbers):
            shown, begun = zip(*(known[group] for group in forest.groups), strict=True)
            read = self._prefix(tokens[list(shown)], begun)
            size = forest.depths.shape[1]
            ids = right_padded([[*nodes, *[self.start] * (size - len(nodes))] for nodes in forest.tokens]).to(tokens.device)
            ids_at = read.length[:, None] + forest.depths.to(tokens.device)
            memories = self.transformer.remember(read)
            logits = self.transformer.predict(ids, ids_at, memories, read.seen, sees=forest.sees.to(tokens.device))
            found[forest.sequences] = forest.log_likelihoods(logits, following[forest.sequences])
        return found

    def _prefix(self, image: Tensor, prefixes: Sequence[Sequence[int]]) -> Prefix:
        return self.transformer.read(image, right_padded(prefixes).to(image.device))

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        return self.collate.transform(images).to(self.transformer.positions.device)


def _cut(rows: Tensor, padding: int) -> Tensor:
    """Without columns that are nothing but padding, where the host knows them."""
    return rows[:, : int((rows != padding).sum(dim=1).max())] if device.host_knows(rows) else rows
