"""Items for a schedule whose processes start anew: this file imports nothing that takes long."""

from __future__ import annotations

import os

from recipes.gpu.schedule import Json, Save

IMPORTED_BY = os.getpid()


def after_fork(save: Save) -> Json:
    """Like CUDA: not in a forked process."""
    if os.getpid() != IMPORTED_BY:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
    return {"value": 1}
