"""A page's model as large as it will be, without memory, downloads and prerequisite runs: `stand_in`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import vgg16  # type: ignore[import-untyped]
from transformers import PreTrainedModel

import models
from data.loader import in_order
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS as SCENES
from data.shards import Split
from data.texts import texts
from models.contract import Batch, Model
from models.shared.recompute import recompute
from models.shared.text import BPETokenizer, OpenCLIPTokenizer, Tokenizer
from recipes.gpu.short import ARCHITECTURES, anonymous
from recipes.train.pages import page
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import adapt_stages, constructed

SOME = 128  # samples: enough for the longest text and the mixture of a batch
FEW = 20_000  # samples whose texts give the vocabulary
KEPT = 1 << 24  # elements of the largest tensor of a batch whose values are kept
BUSY = 1 << 40  # in place of a count of steps or samples: a training under way


@dataclass(frozen=True)
class StandIn:
    """`model` has fake parameters: shapes without memory. `samples` are real. `known`: the host knows texts' lengths, as on a CPU."""

    model: Any
    samples: Sequence[Sample]
    fakes: FakeTensorMode
    known: bool

    def batch(self, size: int) -> Batch:
        """A batch of `size` for the model's stage. Where the host knows texts' lengths, shapes depend on them, and whole numbers and masks
        have values; all else has none."""
        few = self.model.collate(self.samples[:size], np.random.default_rng(0))
        rows = torch.arange(size) % len(next(iter(few.values())))
        return {name: self._enlarged(value, rows) for name, value in few.items()}

    def _enlarged(self, value: Tensor, rows: Tensor) -> Tensor:
        shape = (len(rows), *value.shape[1:])
        if not self.known or value.is_floating_point() or value.dtype == torch.uint8 or len(rows) * value[:1].numel() > KEPT:
            with self.fakes:
                return torch.empty(shape, dtype=value.dtype)
        return value[rows]


def stand_in(recipe: AnyRecipe, preset: str, split: Split | None, *, cached: bool, full: bool, on_gpu: bool) -> StandIn:
    """The recipe's model before its first stage. `split` is its training data, if they are here; else it reads the embedded data's
    pictures and captions. `cached`: what is computed once for data in memory is not part of a step. `full`: without data the longest text
    fills the context, as in a large batch of web pages' texts. `on_gpu`: the host knows no values, and attention is fused."""
    kind = models.model_of(recipe.model)
    samples: Sequence[Sample] = some_samples(split, preset, kind.needs, full=full)
    tokenizer = _tokenizer(recipe, preset, split, samples) if kind.reads_text() else None
    config = kind.configured(anonymous(recipe.model), tokenizer=tokenizer, split=split or Split("scenes", "train", None, ()))
    real = cached and kind.precompute is not Model.precompute
    with torch.device("cpu" if real else "meta"):
        model = constructed(kind, config, tokenizer)
        if recipe.lora_rank:
            adapt_stages(model, recipe)
    if recipe.recompute:
        recompute(model)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    if real:
        model.remember([samples])
        samples = model.precompute(samples)
    to_fake(model, fakes)
    _without_weights(model, fakes)
    if not real:
        model.remember([samples])
    for counter in model.buffers():
        if not counter.ndim and not counter.is_floating_point():
            counter.fill_(BUSY)
    model.load_state_dict({}, strict=False)  # a model that keeps counts on the host, too, reads them when a state is loaded
    language = getattr(config, "language", None)
    if on_gpu and language is not None and language.architecture:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module._supports_sdpa:
                module.set_attn_implementation("sdpa")
    return StandIn(model, samples, fakes, known=not on_gpu)


def some_samples(split: Split | None, preset: str, needs: Sequence[str], *, full: bool) -> list[Sample]:
    """The first samples of the data, or of the embedded data set, drawn here."""
    if split is not None:
        return next(iter(in_order(split, batch_size=SOME, needs=needs)))
    drawn = _drawn("small" if "small" in preset else "tiny")
    return [replace(drawn[0], captions=(" ".join(drawn[0].captions * 10),)), *drawn[1:]] if full else drawn


@cache
def _drawn(size: str) -> list[Sample]:
    return [make_sample(SCENES[size], "train", index) for index in range(SOME)]


def _tokenizer(recipe: AnyRecipe, preset: str, split: Split | None, samples: Sequence[Sample]) -> Tokenizer:
    for needed in recipe.prerequisites:
        if needed.role == recipe.tokenizer:
            chosen = needed.preset or preset
            return _tokenizer(page(needed.recipe).PRESETS[chosen], chosen, split, samples)
    if recipe.tokenizer.startswith("train"):
        questions = recipe.tokenizer == "train+questions"
        said = texts(split, limit=FEW, questions=questions) if split else _said(samples, questions=questions)
        return BPETokenizer.train(said, recipe.vocab_size)
    if recipe.tokenizer == "open_clip":
        return OpenCLIPTokenizer()
    published = ARCHITECTURES.get(recipe.tokenizer)
    return _HubTokenizer(recipe.tokenizer, published.vocab_size if published else recipe.model.vocab_size)


def _said(samples: Sequence[Sample], *, questions: bool) -> list[str]:
    captions = [caption for sample in samples for caption in sample.captions]
    return captions + [f"{each.question} {each.answer}" for sample in samples for each in sample.questions if questions]


class _HubTokenizer(OpenCLIPTokenizer):
    """In place of a published tokenizer: as many tokens, texts about as long."""

    def __init__(self, name: str, vocab_size: int) -> None:
        super().__init__()
        self.name, self.vocab_size, self.mask = name, vocab_size, vocab_size - 1


# ----------------------------------------------------------------------------------------------------- fake tensors


def to_fake(model: nn.Module, fakes: FakeTensorMode, device: str = "cpu") -> None:
    """Replace parameters and buffers by fake ones, shared ones by shared ones. Small buffers of whole numbers keep their values, or are 0
    where they had none."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with fakes:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = fake(parameter)  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                small = device == "cpu" and not buffer.is_floating_point() and buffer.numel() <= KEPT
                real = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer
                module._buffers[name] = real if small else fake(buffer)


def _without_weights(model: Any, fakes: FakeTensorMode) -> None:
    """VGG-16's architecture for the perceptual loss of an image tokenizer, which reads the weights when they are first needed."""
    if getattr(model, "perceptual", None) is not None:
        with torch.device("meta"):
            features = vgg16().features.eval().requires_grad_(False)
        to_fake(features, fakes)
        vars(model.perceptual)["features"] = features
