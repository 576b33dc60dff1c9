"""The progress of a training run over all its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recipes.train.recipe import AnyRecipe


@dataclass
class Progress:
    """Progress of a run, JSON-serialisable; part of the checkpoint."""

    stage: int = 0
    """index of the current stage, from 0"""
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    began: int = 0
    """samples seen before this stage"""
    spent: float = 0.0
    """FLOPs of earlier stages"""
    flops: float = 0.0
    """FLOPs per sample in this stage; 0 until they are counted"""
    saved: int = 0
    """checkpoints so far"""
    loader: list[dict[str, Any]] | None = None
    """loader position of each rank"""
    frozen: list[str] = field(default_factory=list)
    """parameters that are not trained in this stage"""
    trained: list[str] = field(default_factory=list)
    """parameters trained in this or an earlier stage"""
    sources: dict[str, str] = field(default_factory=dict)
    """module -> source of its weights; modules that are missing start from scratch"""
    prerequisites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """role -> prerequisite run and its costs"""

    @property
    def in_stage(self) -> int:
        """Samples seen in this stage."""
        return self.samples - self.began

    @property
    def total_flops(self) -> float:
        return self.spent + self.flops * self.in_stage

    def complete(self, recipe: AnyRecipe) -> bool:
        return self.stage == len(recipe.schedule) - 1 and self.in_stage >= recipe.schedule[-1].budget

    def next_stage(self) -> None:
        self.stage, self.began, self.spent, self.flops, self.loader = self.stage + 1, self.samples, self.total_flops, 0.0, None
