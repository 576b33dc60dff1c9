"""Frozen on a published image encoder that stays locked: one linear layer is trained, and low-rank updates of the language model.

Deviations: the paper trains the image encoder on millions of pairs and leaves the language model as it is; here, for a few thousand photos,
the encoder is locked and the language model has low-rank updates, unless `rank` is 0. An image becomes a grid of vectors, and captions of
the same image are learned together.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.contract import IGNORE_INDEX
from models.frozen.closed_form import mean_embeddings, ridge
from models.frozen.model import Frozen, FrozenConfig
from models.shared.backbones import LanguageConfig, fetch_tower, freeze, looked_at
from models.shared.generate import Decoding
from models.shared.images import HALF, normalise
from models.shared.lora import low_rank_updates
from models.shared.prefix import PADDING, PrefixCollate
from models.shared.prefix_model import digest
from models.shared.standardise import Standardise
from models.shared.text import Tokenizer
from models.shared.vision import TINY_TOWER

GRID = "locked grid"  # key in Sample.extra of the states of a picture
ROWS = 64  # pictures encoded at a time
PICTURES = 8192  # of the training split that `remember` encodes, at most
SLOW = 0.1  # factor of the learning rate of `to_prefix`: its weights are small, and Adam's steps would otherwise soon undo the start
ADAPTED = ("q_proj", "v_proj")  # of Llama; LoRA, section 4.2 and table 5: queries and values
LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class LockedFrozenConfig(FrozenConfig):
    prefix: int = 10  # the embedding of the start token, and a square grid of vectors
    rank: int = 8  # of the language model's updates; 0 leaves it frozen, as in the paper
    scale: float = 2.0  # of the updates: alpha / rank
    captions: int = 5  # of an image that are learned in one step, at most
    beams: int = 3  # of the search for captions; 1: greedy, as answers are
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    @classmethod
    def real(cls) -> LockedFrozenConfig:
        """EfficientNet-Lite0 and SmolLM2-135M-Instruct, which come in wheels: 139 M parameters, of which 1.2 M are trained."""
        return cls(
            timm_name="wheel:tf_efficientnet_lite0",
            language=LanguageConfig(source="wheel:SmolLM2-135M-Instruct"),
            vocab_size=49_152,
        )

    @classmethod
    def tiny(cls) -> LockedFrozenConfig:
        """Random backbones, for tests."""
        language = LanguageConfig(architecture=json.dumps(LLAMA))
        return cls(
            vision=TINY_TOWER,  # its 64 px
            timm_name="test_efficientnet",
            language=language,
            prefix=5,
            rank=2,
            context=32,
            vocab_size=512,
        )


@dataclass(frozen=True)
class PackedCollate(PrefixCollate):
    """Collates images with several texts each. Images are the states cached by `LockedFrozen.precompute` if the samples have them."""

    captions: int = 5

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "ids" and "labels" `[B, K, T]`: up to K texts for each image, `PADDING` and `IGNORE_INDEX` in the place of others; "pixels"
        uint8 `[B, 3, S, S]` or "states" float16 `[B, N, D]`. Without a generator: the first captions."""
        texts = [self._texts(sample, rng) for sample in samples]
        there = torch.arange(max(map(len, texts))) < torch.tensor([[len(each)] for each in texts])  # [B, K]
        prompts, targets = zip(*(text for each in texts for text in each), strict=True)
        batch = {}
        for name, rows, nothing in zip(("ids", "labels"), self.laid_out(prompts, targets), (PADDING, IGNORE_INDEX), strict=True):
            batch[name] = torch.full((*there.shape, rows.shape[1]), nothing)
            batch[name][there] = rows
        if GRID in samples[0].extra:
            return batch | {"states": torch.from_numpy(np.stack([sample.extra[GRID] for sample in samples]))}
        return batch | {"pixels": self.transform([sample.image for sample in samples], rng)}

    def _texts(self, sample: Sample, rng: np.random.Generator | None) -> list[tuple[list[int], str]]:
        """Prompts and targets: questions with their answers, or captions."""
        if rng is not None and sample.questions and rng.random() < self.questions:
            found = [(self.question(each.question), each.answer) for each in sample.questions]
        else:
            found = [([], caption) for caption in sample.captions or ("",)]
        order = range(len(found)) if rng is None else rng.permutation(len(found))
        return [found[place] for place in order[: self.captions]]

    def laid_out(self, prompts: Sequence[list[int]], targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As its parent's. What continues a prompt begins with a blank, as in the texts that a published language model has read."""
        return super().laid_out(prompts, [f" {target}" if prompt else target for prompt, target in zip(prompts, targets, strict=True)])

    def tokens(self, text: str) -> list[int]:
        """As its parent's, without the blanks before punctuation marks that Flickr's captions have."""
        return super().tokens(re.sub(r" +([.,;:!?])", r"\1", text))


class LockedFrozen(Frozen):
    Config = LockedFrozenConfig
    config: LockedFrozenConfig
    to_prefix: nn.Linear

    def __init__(self, config: LockedFrozenConfig, tokenizer: Tokenizer) -> None:
        side = math.isqrt(max(config.prefix - 1, 0))
        if side < 1 or side**2 != config.prefix - 1:
            raise ValueError(f"prefix {config.prefix}: expected 2, 5, 10, 17, ..., a start token and a square grid of vectors")
        if config.captions < 1:
            raise ValueError(f"captions {config.captions}: expected 1 or more of each image in a step")
        if config.beams < 1:
            raise ValueError(f"beams {config.beams}: expected 1, a greedy search, or more")
        super().__init__(config, tokenizer)
        self.side = side
        freeze(self.visual)
        collate = self.collate
        self.collate = PackedCollate(
            collate.transform, tokenizer, config.prefix, config.context, config.questions, captions=config.captions
        )
        self.standard = Standardise(self.visual.num_features)
        self.encoded: dict[bytes, np.ndarray] = {}  # digest of a picture -> its states, kept by `remember` for `precompute`
        if config.rank:
            self.lora = low_rank_updates(self.language, ADAPTED, rank=config.rank, scale=config.scale)

    def _bridge(self, features: int) -> nn.Linear:
        return nn.Linear(features, self.width)

    def fetch(self) -> dict[str, str]:
        return super().fetch() | fetch_tower(self.visual, self.config.timm_name)

    @torch.no_grad()
    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Standardise the states by those of training pictures. Then let `to_prefix` begin with a ridge regression: from a picture's states
        to the mean embedding of its captions' words, scaled to the embeddings' size. So the language model reads something like words from
        the first step on. It does not learn with much larger vectors."""
        grids: list[Tensor] = []
        texts: list[list[list[int]]] = []
        for batch in batches:
            grids.append(self._grids([sample.image for sample in batch]))
            texts += [[self.collate.tokens(caption) for caption in sample.captions] for sample in batch]
            self.encoded |= {digest(sample.image): grid for sample, grid in zip(batch, grids[-1].cpu().numpy(), strict=True)}
            if len(texts) >= PICTURES:
                break
        states = torch.cat(grids).float()  # [N, places, features]
        self.standard.standardise(states.flatten(0, 1))
        embeddings = self.language.get_input_embeddings().weight
        weight = ridge(self.standard(states.mean(dim=1)), mean_embeddings(texts, embeddings))
        if not weight.any():  # no captions, or all alike
            weight = self.to_prefix.weight
        self.to_prefix.weight.copy_(weight * _size(embeddings) / _size(self.standard(states[:1024]) @ weight.T) / SLOW)
        self.to_prefix.bias.zero_()

    @torch.no_grad()
    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Encode each picture only once."""
        digests = [digest(sample.image) for sample in samples]
        new = {key: sample.image for key, sample in zip(digests, samples, strict=True) if key not in self.encoded}
        known = self.encoded | dict(zip(new, self._grids(list(new.values())).cpu().numpy(), strict=True))
        return [replace(sample, extra=sample.extra | {GRID: known[key]}) for sample, key in zip(samples, digests, strict=True)]

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding | None = None) -> list[str]:
        """By beam search, as published captioners, unless `how` says otherwise."""
        # The likeliest text: divided by its length, log-probability prefers texts that never end, one in six of them on photos.
        return super().caption(images, how=how or Decoding(beams=self.config.beams, length_penalty=0.0))

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Negative log-likelihood "nll" in nats of the texts of each image, and their number of "tokens", `[B]`."""
        return self.packed_nll(batch["ids"], batch["labels"], self._soft(batch))

    def _soft(self, batch: dict[str, Tensor]) -> Tensor:
        return self._prefix(batch["states"]) if "states" in batch else self._see(batch["pixels"])

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the visual prefix of each image `[B, prefix, D]`."""
        return self._prefix(self._states(pixels))

    def _prefix(self, states: Tensor) -> Tensor:
        """`[B, N, features]` -> `[B, 1 + N, D]`. A language model attends to its first token whatever that is: without a start token, the
        first vector of the image would be lost."""
        vectors = SLOW * self.to_prefix(self.standard(states.float()))
        token = self.tokenizer.end if self.tokenizer.start is None else self.tokenizer.start
        start = self.language.get_input_embeddings().weight[token].to(vectors.dtype)
        return torch.cat([start.expand(len(vectors), 1, -1), vectors], dim=1)

    def _states(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the image encoder's states, averaged on the grid, float16 `[B, N, features]`."""
        if self.config.blind:
            pixels = torch.zeros_like(pixels)

        def grid(part: Tensor) -> Tensor:
            states = self.visual.forward_features(part)
            if states.ndim == 3:  # of a named tower, [B, prefix tokens + N, D]
                patches = states[:, self.visual.num_prefix_tokens :].mT
                states = patches.unflatten(2, (math.isqrt(patches.shape[2]), -1))
            return F.adaptive_avg_pool2d(states, self.side).flatten(2).mT

        return looked_at(grid, normalise(pixels, self.config.mean, self.config.std)).half()

    def _grids(self, images: Sequence[np.ndarray]) -> Tensor:
        """The states of pictures of any size."""
        device = self.to_prefix.weight.device
        parts = [images[start : start + ROWS] for start in range(0, len(images), ROWS)]
        found = [self._states(self.collate.transform(part).to(device)) for part in parts]
        return torch.cat(found) if found else torch.zeros(0, self.side**2, self.visual.num_features, dtype=torch.half, device=device)


def _size(vectors: Tensor) -> Tensor:
    """Root mean square of all components."""
    return vectors.float().square().mean().sqrt()
