"""The model contract: every hook that the training loop, the data loader and the evaluation harness call on a model.

A model subclasses `Model` in its own package. It sets `paradigm` and `Config`, is constructed with `(config, tokenizer)`, provides a
`collate`, and implements `encode` and `objective`. All other hooks default to doing nothing.

Capabilities (`encode_image`, `caption`, `answer`, ...) are plain methods; eval/base/capabilities.py lists them.
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

IGNORE_INDEX = -100  # label of tokens that do not count in the loss

Batch = dict[str, Tensor]


class Losses(NamedTuple):
    """Return value of `Model.objective`: the scalar to minimise, its named terms, and the value of each term (or "total") at chance.

    A chance value that depends on the batch stays a scalar tensor, so that it is read only when it is logged: reading it makes a GPU's host
    wait.
    """

    total: Tensor
    terms: dict[str, Tensor]
    chance: Mapping[str, float | Tensor]

    @classmethod
    def weighted(cls, terms: dict[str, Tensor], weights: Mapping[str, float], chance: Mapping[str, float | Tensor]) -> Self:
        """Weighted sum of the terms. `weights` and `chance` may contain names of terms that were not computed."""
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return cls(total, terms, {name: chance[name] for name in terms})

    @classmethod
    def none(cls, like: Tensor) -> Self:
        """A zero loss without terms, on the device of `like`, for models that are not trained by gradient."""
        return cls(torch.zeros((), device=like.device), {}, {})


@dataclass(frozen=True)
class Size:
    """A configuration whose parameters `make params` counts. Each package lists its sizes as `SIZES` in sizes.py."""

    name: str
    config: Any
    published: int | None = None
    """parameter count stated by the paper or measured on the released weights"""
    source: str = ""
    """source of the count; a size without one is counted with the vocabulary learned from the embedded data"""
    counted: tuple[str, ...] = ()
    """modules included in the count; () for all"""
    rounded: float = 0.0
    """relative tolerance, for papers that round their count"""
    derived: int | None = None
    """if nothing is published: the count of the paper's layers as another library builds them, or by arithmetic"""


class Model(nn.Module):
    """Base class of everything that `make train-<page>` trains and `make eval-<page>` evaluates.

    A run folder stores `config` (model.json), the tokenizer and the state dict. `type(self)(config, tokenizer)` followed by loading
    the state dict must restore the model.
    """

    # ------------------------------------------------------------------------------------------- class attributes

    name: ClassVar[str]
    """identifier in model.json and on the command line; defaults to the class name in lower case"""
    paradigm: ClassVar[str]
    """heading under which reports list the model; "prerequisite" for models that are trained only for others to build on"""
    Config: ClassVar[type[Any]]
    """a frozen dataclass with one class method per size: `tiny`, `small`, `paper`"""
    needs: ClassVar[tuple[str, ...]] = ("captions",)
    """fields of `data.sample.Sample` that must not be empty; the loader drops and counts samples that lack one. "texts" are captions or the
    texts of a page. A model that needs none of captions, questions and texts reads no text and gets no tokenizer"""
    builds_on: ClassVar[tuple[str, ...]] = ()
    """other packages of models/ that this one imports"""
    asked_after: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """stage -> tasks that the paper evaluates at the end of that stage instead of at the end of training. The loop saves the model at
    that point, and the harness evaluates both models"""
    notes: ClassVar[Mapping[str, str]] = {}
    """task -> explanation of a result that a reader might mistake for a bug"""

    without: ClassVar[tuple[str, ...]] = ()
    """capabilities left out because published weights lack parts that they need, see `leave_out`"""

    config: Any
    tokenizer: Any
    """a `models.shared.text.Tokenizer`; None for a model that reads no text"""
    collate: Any
    """`collate(samples, rng)` returns a dict of tensors with one row per sample. It runs in the loader's workers, so it must be
    picklable. `rng` draws crops, captions and masks; with None nothing is random: first caption, centre crop, no masks"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def leave_out(self, capabilities: Sequence[str]) -> None:
        """Be without exactly these capabilities, so that nothing random is measured; () brings all back. Saved in model.json."""
        whole = next(each for each in type(self).__mro__ if not vars(each).get("without"))
        missing = dict.fromkeys(capabilities)  # a protocol takes None for a method that is not there, of a class only
        about = {"name": self.name, "without": tuple(capabilities), "__module__": whole.__module__, "__doc__": whole.__doc__}
        self.__class__ = type(whole.__name__, (whole,), missing | about) if capabilities else whole

    @classmethod
    def reads_text(cls) -> bool:
        return bool({"captions", "questions", "texts"} & set(cls.needs))

    # ------------------------------------------------------------------------------------------------- every step

    def encode(self, batch: Batch) -> Batch:
        """The expensive half, run under autocast. Returns features with one row per sample, each independent of the other rows, so
        that micro-batches give exactly the gradients of the full batch."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def objective(self, features: Batch) -> Losses:
        """The half that couples the samples of a batch, run in float32. Under torchrun, losses and gradients averaged over ranks must
        equal those of the whole batch (models/shared/distributed.py). A training-free model collects the features here and returns
        `Losses.none`."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def forward(self, batch: Batch) -> Losses:
        return self.objective(self.encode(batch))

    def after_step(self) -> str | None:
        """Called after each optimiser step, for example to clamp a temperature. Returns a warning to log, or None."""
        return None

    # --------------------------------------------------------------------------------------- before the first step

    @classmethod
    def configured(cls, config: Any, *, tokenizer: Tokenizer | None, split: Split) -> Any:
        """The recipe's configuration, completed with values that depend on the tokenizer and the data, such as the vocabulary size, and
        with the architecture of an image tower that is named (models/shared/towers.py)."""
        if getattr(getattr(config, "vision", None), "tower", ""):
            from models.shared.towers import known_tower  # imports transformers, which most models do without

            config = known_tower(config)
        return replace(config, vocab_size=tokenizer.vocab_size) if tokenizer is not None and hasattr(config, "vocab_size") else config

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """Make trained prerequisites (role -> model) part of this model's configuration and weights."""

    def fetch(self) -> dict[str, str]:
        """Load the published backbones named in the configuration. Returns module -> source of its weights."""
        vision: Any = getattr(self.config, "vision", None)
        if not getattr(vision, "tower", ""):
            return {}
        from models.shared.towers import fetch_named_tower

        visual: Any = self.visual
        return fetch_named_tower(visual, vision)

    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Read the training split once, in order, before training, for example to collect documents to retrieve from or candidate
        answers. Whatever is kept must be part of the state dict or the configuration."""

    def enter_stage(self, name: str) -> None:
        """Set the trainable parameters and `collate` for a stage. Called when a stage starts and when it is resumed."""

    def precompute(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Return the samples that `collate` receives in this stage. Called once for each sample, a few hundred at a time, if the data are
        held in memory, for example to cache the features of a frozen tower when images are not augmented."""
        return samples
