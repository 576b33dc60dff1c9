"""A training, typed: every field is also a command-line option (`ARGS="--optim.lr 1e-3"`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class Optim:
    """AdamW, or Muon and AdamW; linear warm-up, cosine to zero. Weight decay for matrices only, not for gains, biases and scalars."""

    lr: float
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup: int = 0
    """samples"""
    clip_norm: float = 1.0
    muon: bool = False
    """Muon instead for the matrices of repeated blocks, at the same learning rate"""

    def lr_at(self, samples: int, budget: int) -> float:
        """Learning rate of the step that begins when `samples` of `budget` have been seen."""
        if samples < self.warmup:
            return self.lr * (samples + 1) / self.warmup
        progress = (samples - self.warmup) / max(1, budget - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Log:
    """The logs of a run. Everything goes to train.jsonl in the run folder; to wandb only on request."""

    every: int = 20
    """steps between two lines"""
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "paragone"
    validate: int = 512
    """validation samples (in whole batches, at least one) for a loss that a single process measures ten times a run; 0 for none"""


@dataclass(frozen=True)
class Prerequisite:
    """A model that this one builds on: the finished run of another page, with the same data and the same seed. Before its
    first step the model takes it over, `model.adopt({role: module})`, as part of its own configuration and weights: the trained run
    loads from its own folder alone."""

    role: str
    """its role in the model: image_tokenizer, language_model, ..."""
    recipe: str
    preset: str = ""
    """of that recipe; the same as this one's unless given"""


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own optimiser and schedule. When it begins, or is resumed, `model.enter_stage(name)` freezes
    modules and sets `model.collate`."""

    name: str
    optim: Optim
    budget: int
    """training samples to see in this stage, over all ranks"""
    batch: int
    """samples per step, over all ranks and micro-batches"""

    def __post_init__(self) -> None:
        for name in ("budget", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)} in stage {self.name!r}")


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """One training. `recipes/<page>.py` has one for each preset, next to the paper's setup."""

    model: Config
    optim: Optim = Optim(lr=0.0)
    budget: int = 0
    """training samples to see, over all ranks"""
    batch: int = 0
    """samples per step, over all ranks and micro-batches"""
    stages: tuple[Stage, ...] = ()
    """run in this order, each with its own optim, budget and batch instead of the three above"""
    prerequisites: tuple[Prerequisite, ...] = ()
    """trained first, unless they are trained already"""
    micro_batch: int | None = None
    """samples per forward pass on each rank; smaller needs less memory and changes nothing else"""
    data: str = ".data/scenes-tiny"
    """data set folder, folder of shards, or pattern of shards"""
    shards: int = 0
    """train on the first shards only (0: on all); prerequisites are trained on all"""
    weights: str = ""
    """published weights to start from, such as open_clip:ViT-B-32/laion2b_s34b_b79k or hf:google/siglip-base-patch16-224; they
    bring their own architecture and tokenizer"""
    tokenizer: str = "train"
    """"train" (a small BPE from the training captions), "train+questions" (from questions and answers, too), "open_clip", a hub
    id, or the role of a prerequisite to take it from"""
    vocab_size: int = 4096
    """most tokens that a trained BPE may have"""
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware multiplies it natively"""
    compile: bool = False
    workers: int = 0
    """loader processes"""
    memory_gb: float = 4.0
    """data sets that decode to less are held in memory (by every rank), larger ones are streamed"""
    save_minutes: float = 2.0
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        if self.stages and (self.budget or self.batch or self.optim.lr):
            names = ", ".join(stage.name for stage in self.stages)
            raise ValueError(f"optim, budget and batch belong to the stages here ({names}): set --stages.0.budget and so on")
        _ = self.schedule  # a stage refuses a budget or batch below 1
        if self.shards < 0:
            raise ValueError(f"shards must be 0 (all of them) or more, got {self.shards}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {self.micro_batch}")

    @property
    def schedule(self) -> tuple[Stage, ...]:
        """The stages; of a recipe without any, its own optim, budget and batch as the only one."""
        return self.stages or (Stage("train", self.optim, self.budget, self.batch),)

    @property
    def samples(self) -> int:
        """Training samples that all stages together see."""
        return sum(stage.budget for stage in self.schedule)


AnyRecipe = Recipe[Any]
