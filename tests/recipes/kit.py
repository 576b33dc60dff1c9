"""What several tests of trainings share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def shortened(training: Any, **fields: Any) -> Any:
    """A recipe or a stage with other fields, such as a small budget, and without a warm-up, which would not fit into it."""
    return replace(training, optim=replace(training.optim, warmup=0), **fields)
