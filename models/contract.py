"""What the training loop, the loader and the harness may ask of a model: every hook in one place.

A model is a subclass of `Model` in a package of its own. It sets `paradigm` and `Config`, takes `(config, tokenizer)`, has a `collate`,
and writes `encode` and `objective`. Everything else has a default that does nothing.

What a model can do (`encode_image`, `caption`, `answer`, ...) is said by plain methods; eval/base/capabilities.py lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from data.sample import Sample
from data.shards import Split

if TYPE_CHECKING:
    from models.shared.text import Tokenizer

IGNORE_INDEX = -100  # label of a token that is not to be predicted

Batch = dict[str, Tensor]


class Losses(NamedTuple):
    """What an objective returns: the scalar to minimise, its named terms, and what a term (or "total") is at chance."""

    total: Tensor
    terms: dict[str, Tensor]
    chance: dict[str, float]

    @classmethod
    def weighted(cls, terms: dict[str, Tensor], weights: Mapping[str, float], chance: Mapping[str, float]) -> Self:
        """The sum of the terms by their weights. `weights` and `chance` may name terms that were not computed."""
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return cls(total, terms, {name: chance[name] for name in terms})

    @classmethod
    def none(cls, like: Tensor) -> Self:
        """The losses of a model that learns nothing from a batch, on the device of `like`."""
        return cls(torch.zeros((), device=like.device), {}, {})


@dataclass(frozen=True)
class Size:
    """A configuration whose parameters `make params` counts. A package lists its own as `SIZES` in its sizes.py."""

    name: str
    config: Any
    published: int | None = None
    """parameters by the paper or the released weights"""
    source: str = ""
    """of the published figure; without one the size is counted with the vocabulary that is learned from the embedded data"""
    counted: tuple[str, ...] = ()
    """the modules that the published figure counts; () for all"""
    rounded: float = 0.0
    """share by which the figure may differ, where a paper rounds it"""


class Model(nn.Module):
    """A model that `make train-<page>` trains and `make eval-<page>` evaluates.

    A run folder keeps `config` (model.json), the tokenizer and the state dict; `type(self)(config, tokenizer)` and the state dict
    must give the model back.
    """

    # ------------------------------------------------------------------------------------------ what a class says

    name: ClassVar[str]
    """in model.json and on the command line; the class's name in lower case unless given"""
    paradigm: ClassVar[str]
    """the heading under which reports show it; "prerequisite" for what is trained only for others to build on"""
    Config: ClassVar[type[Any]]
    """a frozen dataclass, with a class method for each size: `tiny`, `small`, `paper`"""
    needs: ClassVar[tuple[str, ...]] = ("captions",)
    """fields of `data.sample.Sample` that must not be empty: the loader drops samples without them, and counts them. A model that
    needs neither captions nor questions reads no text and gets no tokenizer"""
    builds_on: ClassVar[tuple[str, ...]] = ()
    """other packages of models/ whose code it imports"""
    asked_after: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """stage -> tasks that the paper asks at the end of that stage, not at the end of the training; the loop keeps the model as it is
    then, and the harness evaluates both"""
    notes: ClassVar[Mapping[str, str]] = {}
    """task -> why the model's number there is what it is, where a reader would take it for a bug"""

    config: Any
    tokenizer: Any
    """a `models.shared.text.Tokenizer`; None for a model that reads no text"""
    collate: Any
    """`collate(samples, rng)`, run in the loader's workers, hence picklable: a dict of tensors with one row for each sample. The
    generator draws crops, captions and masks; None means none of that: the first caption, the centre"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @classmethod
    def reads_text(cls) -> bool:
        return bool({"captions", "questions"} & set(cls.needs))

    # ------------------------------------------------------------------------------------------------- every step

    def encode(self, batch: Batch) -> Batch:
        """The costly half, in autocast: features with one row for each sample, which must not depend on the other rows. That makes
        micro-batches exact."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def objective(self, features: Batch) -> Losses:
        """The half that couples the batch, in float32. Under torchrun the mean over ranks of losses and gradients must be those of
        the whole batch (models/shared/distributed.py). A training-free model takes the features in here, and returns `Losses.none`."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def forward(self, batch: Batch) -> Losses:
        return self.objective(self.encode(batch))

    def after_step(self) -> str | None:
        """After the optimiser's step, to clamp a temperature, say. Returns a warning, or None."""
        return None

    # --------------------------------------------------------------------------------------- before the first step

    @classmethod
    def configured(cls, config: Any, *, tokenizer: Tokenizer | None, split: Split) -> Any:
        """The recipe's configuration with what tokenizer and data decide: the size of the vocabulary, if it has one."""
        return replace(config, vocab_size=tokenizer.vocab_size) if tokenizer is not None and hasattr(config, "vocab_size") else config

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """Take over trained prerequisites, role -> model, as part of its own configuration and weights."""

    def fetch(self) -> dict[str, str]:
        """Load published backbones that the configuration names. Returns module -> where its weights come from."""
        return {}

    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Read the training split once, in order, before training: documents to retrieve from, answers to choose among. What is kept
        must be part of the state or the configuration."""

    def enter_stage(self, name: str) -> None:
        """Set what is trained and what `collate` is, at the beginning of a stage and when it is resumed."""

    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples as `collate` will get them in this stage, computed once where the data are held in memory: with the features of
        a frozen tower, say, where nothing random touches the pictures."""
        return samples
