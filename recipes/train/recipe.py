"""Typed training recipes. Every field is also a command-line option (`ARGS="--optim.lr 1e-3"`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Generic, Literal, TypeVar

from data.fields import check_types, require
from models.shared.ranges import MOST, check_ranges

Config = TypeVar("Config")


RANGES = {"lora_rank": 4096, "shards": 1 << 30, "seed": (1 << 32) - 1, "workers": 1024, "memory_gb": 1 << 20, "save_minutes": 1 << 20}
VOCABULARY = 259, 1 << 20


@dataclass(frozen=True)
class Optim:
    """AdamW, or Muon with AdamW, with linear warm-up and cosine decay to zero. Weight decay applies only to matrices, not to gains, biases
    and scalars."""

    lr: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup: int = 0
    """samples"""
    clip_norm: float = 1.0
    muon: bool = False
    """use Muon for the matrices of repeated blocks, at the same learning rate"""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        for name in ("lr", "weight_decay", "warmup"):
            require(0 <= getattr(self, name) <= MOST, f"optim.{name}", getattr(self, name), f"0 or more, at most {MOST:g}")
        for name in ("eps", "clip_norm"):
            require(0 < getattr(self, name) <= MOST, f"optim.{name}", getattr(self, name), f"a number above 0, at most {MOST:g}")
        require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "numbers from 0 to below 1")

    def lr_at(self, samples: int, budget: int) -> float:
        """Learning rate of a step that starts after `samples` of `budget` samples."""
        if samples < self.warmup:
            return self.lr * (samples + 1) / self.warmup
        progress = (samples - self.warmup) / max(1, budget - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Log:
    """Logging options. train.jsonl in the run folder is always written, wandb only on request."""

    every: int = 20
    """steps between log lines"""
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "paragone"
    validate: int = 512
    """number of validation samples (rounded to whole batches, at least one), used ten times per stage in single-process runs; 0: none"""

    measure: int = 0
    """number of validation samples on which zero-shot shape, objects in captions and swapped attributes are measured, ten times per stage
    in single-process runs; the time it takes is not counted; 0: none"""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        require(self.measure >= 0, "log.measure", self.measure, "0 or more samples")
        require(self.every >= 1, "log.every", self.every, "1 or more steps")
        require(self.validate >= 0, "log.validate", self.validate, "0 or more samples")


@dataclass(frozen=True)
class Prerequisite:
    """A model to build on: the finished run of another page with the same seed and, unless `data` says otherwise, the same data. Before the
    first step, `model.adopt({role: module})` makes it part of the model's own configuration and weights, so the trained model loads from
    its own run folder."""

    role: str
    """its role in the model, such as image_tokenizer or language_model"""
    recipe: str
    """its page of recipes/"""
    preset: str = ""
    """its preset (default: the preset of this recipe)"""
    data: tuple[tuple[str, str], ...] = ()
    """(data set of this recipe, its data set) where they differ: what models share need not be trained again for data that extend it"""


@dataclass(frozen=True)
class Stage:
    """A training stage with its own optimiser and schedule. When it starts or is resumed, `model.enter_stage(name)` freezes modules and
    sets `model.collate`."""

    name: str
    optim: Optim
    budget: int
    """training samples in this stage, over all ranks"""
    batch: int
    """samples per step, over all ranks and micro-batches"""

    def __post_init__(self) -> None:
        check_types(type(self), vars(self), f"stage {self.name}: ")
        for name in ("budget", "batch"):
            require(getattr(self, name) >= 1, f"{name} of stage {self.name!r}", getattr(self, name), "1 or more samples")
        within = f"at most the stage's budget of {self.budget:,} samples; a smaller budget needs a shorter warm-up, too"
        require(self.optim.warmup <= self.budget, f"optim.warmup of stage {self.name!r}", self.optim.warmup, within)


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """Everything that defines a training run. `recipes/<page>.py` declares one recipe per preset, next to the paper's setup."""

    model: Config
    optim: Optim = Optim(lr=0.0)
    budget: int = 0
    """training samples, over all ranks"""
    batch: int = 0
    """samples per step, over all ranks and micro-batches"""
    stages: tuple[Stage, ...] = ()
    """stages in order, each with its own optim, budget and batch, which replace the three fields above"""
    prerequisites: tuple[Prerequisite, ...] = ()
    """trained first, unless they are already trained"""
    micro_batch: int | None = None
    """samples per forward pass on each rank; a smaller value saves memory and changes nothing else"""
    recompute: bool = False
    """compute the activations inside repeated blocks again in the backward pass: less memory, about a third more time"""
    sharded: bool = False
    """divide parameters, gradients and optimiser state among the GPUs, for a model that does not fit on each; the results are the same"""
    data: str = ".data/scenes-tiny"
    """data set folder, folder of shards, or shard pattern"""
    shards: int = 0
    """number of shards to train on, from the first (0: all); prerequisites always use all"""
    keep: str = ""
    """list of the samples to train on, as `make filter` writes it (default: all); prerequisites always use all"""
    weights: str = ""
    """published weights to start from, such as open_clip:ViT-B-32/laion2b_s34b_b79k or hf:google/siglip-base-patch16-224; they
    determine the architecture and the tokenizer"""
    freeze: str = ""
    """modules that are not trained, by name, separated by commas: visual,text.tokens"""
    lora_rank: int = 0
    """rank of low-rank updates beside the linear layers of repeated blocks, which are then frozen themselves (0: none)"""
    tokenizer: str = "train"
    """"train" (a small BPE trained on the training captions), "train+questions" (also on questions and answers), "open_clip", a hub
    id, or the role of a prerequisite whose tokenizer to use"""
    vocab_size: int = 4096
    """maximum vocabulary size of a trained BPE"""
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 if the hardware supports it natively"""
    compile: bool = False
    workers: int = 0
    """number of loader processes"""
    memory_gb: float = 4.0
    """data sets with a smaller decoded size are held in memory (by every rank), larger ones are streamed"""
    save_minutes: float = 2.0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        check_types(type(self), vars(self))
        if is_dataclass(self.model):
            check_ranges(self.model)
        if self.stages and (self.budget or self.batch or self.optim.lr):
            names = ", ".join(stage.name for stage in self.stages)
            raise ValueError(f"this recipe has stages ({names}), each with its own optim, budget and batch: set --stages.0.budget etc.")
        largest = max(stage.batch for stage in self.schedule)  # a stage holds its own fields against their ranges
        for name, most in RANGES.items():
            require(0 <= getattr(self, name) <= most, name, getattr(self, name), f"0 or more, at most {most:,}")
        few, many = VOCABULARY
        require(few <= self.vocab_size <= many, "vocab_size", self.vocab_size, f"{few} (the bytes and three more) to {many:,}")
        require(not (self.sharded and self.compile), "compile", self.compile, "false for a sharded model: set --sharded or --compile")
        if self.micro_batch is not None:
            require(1 <= self.micro_batch <= largest, "micro_batch", self.micro_batch, f"1 to the batch of {largest:,}")

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages; for a recipe without stages, a single one with its optim, budget and batch."""
        return self.stages or (Stage("train", self.optim, self.budget, self.batch),)

    @property
    def samples(self) -> int:
        """Training samples over all stages."""
        return sum(stage.budget for stage in self.schedule)


AnyRecipe = Recipe[Any]
