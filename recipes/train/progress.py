"""How far a training is, over all its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recipes.train.recipe import AnyRecipe


@dataclass
class Progress:
    """Ready for json: kept in the checkpoint."""

    stage: int = 0
    """number of the stage under way, from 0"""
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    began: int = 0
    """samples seen before this stage"""
    spent: float = 0.0
    """FLOPs of the stages before"""
    flops: float = 0.0
    """per sample of this stage; 0 until they are counted"""
    loader: list[dict[str, Any]] | None = None
    """its position, one for every rank"""
    frozen: list[str] = field(default_factory=list)
    """parameters that this stage does not train"""
    trained: list[str] = field(default_factory=list)
    """parameters that any stage so far trained"""
    sources: dict[str, str] = field(default_factory=dict)
    """module -> where its weights came from; from scratch unless named"""
    prerequisites: dict[str, dict[str, Any]] = field(default_factory=dict)
    """role -> the run that filled it, and what that cost"""

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
