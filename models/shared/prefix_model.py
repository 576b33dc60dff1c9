"""Base class of models whose images become vectors in the input of a decoder-only language model: Frozen, ClipCap, MAPL, MiniGPT-4, LLaVA.

A subclass says how pixels become vectors (`_see`) and how texts are laid out around them; layout, likelihood and generation with
placeholders for the vectors are in models/shared/prefix.py. A subclass may train the language model or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.sample import Sample
from models.contract import IGNORE_INDEX, Batch, Losses, Model
from models.shared import device
from models.shared.backbones import LanguageConfig, fetch_language, freeze, language_model, looked_at
from models.shared.distributed import mean_of_all
from models.shared.images import ImageTransform, distinct, normalise
from models.shared.prefix import log_likelihood, nll


class PrefixModel(Model):
    language: Any
    width: int
    """of the language model's embeddings"""
    places: int
    """vectors that an image becomes"""
    transform: ImageTransform

    def add_language(self, config: LanguageConfig, vocab_size: int) -> None:
        """Add the language model, frozen. Raises ValueError for an encoder-decoder."""
        language: Any = language_model(replace(config, vocab_size=vocab_size))
        if language.config.is_encoder_decoder:
            raise ValueError(f"{config.source} is an encoder-decoder; {type(self).__name__} requires a decoder-only language model")
        self.language = freeze(language)  # gradients flow through it, to the image
        self.width = language.get_input_embeddings().embedding_dim

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "language_model": a trained `LM`, unless the configuration names one."""
        if "language_model" in modules:
            self.language.load_state_dict(modules["language_model"].language.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the weights of the language model that the configuration names. Returns module -> source."""
        return super().fetch() | fetch_language(self.language, self.config.language.source, self.tokenizer)

    def encode(self, batch: Batch) -> Batch:
        """Negative log-likelihood "nll" in nats of each sequence's target, and its number of "tokens", `[B]`."""
        total, count = nll(self.language, batch["ids"], batch["labels"], self._soft(batch))
        return {"nll": total, "tokens": count}

    def packed_nll(self, ids: Tensor, labels: Tensor, soft: Tensor) -> Batch:
        """As `encode`, summed over K sequences for each image: ids and labels `[B, K, T]`, soft `[B, places, width]`. What the sequences of
        an image have in common at their beginning is computed once on a CPU, in a single process."""
        count = (labels != IGNORE_INDEX).sum(dim=(1, 2))
        images, texts, _ = ids.shape
        if texts == 1:
            return {"nll": nll(self.language, ids[:, 0], labels[:, 0], soft)[0], "tokens": count}
        if not device.may_decide_passes(ids):  # of the sequences that begin alike
            each = nll(self.language, ids.flatten(0, 1), labels.flatten(0, 1), soft.repeat_interleave(texts, dim=0))[0]
            return {"nll": each.unflatten(0, (images, texts)).sum(dim=1), "tokens": count}
        pictures = [image for image in range(images) for _ in range(texts)]
        log_p = log_likelihood(self.language, ids.flatten(0, 1), labels.flatten(0, 1), soft, pictures)
        return {"nll": -log_p.unflatten(0, (images, texts)).sum(dim=1), "tokens": count}

    def objective(self, features: Batch) -> Losses:
        """Mean negative log-likelihood of a target's token, over all tokens of the batch."""
        loss = mean_of_all(features["nll"], features["tokens"])
        return Losses(loss, {"text": loss}, {"text": math.log(self.config.vocab_size)})

    def _soft(self, batch: Batch) -> Tensor:
        """The vectors of a batch's images `[B, places, width]`."""
        return self._see(batch["pixels"])

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels `[B, 3, S, S]` -> the vectors of each image `[B, places, width]`."""
        raise NotImplementedError(f"{type(self).__name__} has no _see")

    @torch.no_grad()
    def look(self, images: Sequence[np.ndarray]) -> Tensor:
        """The vectors of each image of any size `[N, places, width]`. The same image is encoded once."""
        device = self.language.device
        if not len(images):
            return torch.zeros(0, self.places, self.width, device=device)
        pictures, rows = distinct(images)
        return self._see(self.transform(pictures).to(device))[rows]

    @torch.no_grad()
    def likelihoods(self, images: Sequence[np.ndarray], ids: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood in nats of the labels `[N, T]` of each sequence, which contains one image, float32 `[N]`."""
        pictures, rows = distinct(images)
        soft = self.look(pictures)
        return log_likelihood(self.language, ids.to(soft.device), labels.to(soft.device), soft, rows)


STATES = "frozen tower's states"  # key in Sample.extra of what the tower says of the picture
ROWS = 64  # pictures encoded at a time


class LockedTowerModel(PrefixModel):
    """With a frozen image tower and no augmentation: each image is encoded only once in a stage. A subclass says what the tower returns
    (`_tower`) and how that becomes vectors (`_prefix`); its `collate` uses `images_or_states`."""

    def _tower(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, S, S]` -> what the frozen tower says of each image `[B, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} has no _tower")

    def _prefix(self, states: Tensor) -> Tensor:
        """What the tower says `[B, ...]`, in float32 -> the vectors of each image `[B, places, width]`."""
        raise NotImplementedError(f"{type(self).__name__} has no _prefix")

    @torch.no_grad()
    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Encode each picture only once, in whatever stage."""
        digests = [digest(sample.image) for sample in samples]
        new = {key: sample.image for key, sample in zip(digests, samples, strict=True) if key not in self.encoded}
        keys, images = list(new), list(new.values())
        for start in range(0, len(new), ROWS):
            pixels = self.transform(images[start : start + ROWS]).to(self.language.device)
            self.encoded.update(zip(keys[start : start + ROWS], self._states(pixels).half().cpu().numpy(), strict=True))
        return [replace(sample, extra=sample.extra | {STATES: self.encoded[key]}) for sample, key in zip(samples, digests, strict=True)]

    @cached_property
    def encoded(self) -> dict[bytes, np.ndarray]:
        """Digest of a picture -> what the tower says of it."""
        return {}

    def _soft(self, batch: Batch) -> Tensor:
        return self._prefix(batch["states"].float()) if "states" in batch else self._see(batch["pixels"])

    def _see(self, pixels: Tensor) -> Tensor:
        return self._prefix(self._states(pixels))

    def _states(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> what the tower says, float32."""
        return looked_at(self._tower, normalise(pixels, self.config.mean, self.config.std))


def digest(image: np.ndarray) -> bytes:
    """Of the pixels and the shape."""
    return blake2b(image.tobytes()).digest() + repr(image.shape).encode()


def images_or_states(samples: Sequence[Sample], transform: ImageTransform, rng: np.random.Generator | None) -> Batch:
    """ "states" float16 `[B, ...]` as cached by `LockedTowerModel.precompute`, if the samples have them; otherwise "pixels" uint8
    `[B, 3, S, S]`."""
    if STATES in samples[0].extra:
        return {"states": torch.from_numpy(np.stack([sample.extra[STATES] for sample in samples]))}
    return {"pixels": transform([sample.image for sample in samples], rng)}
