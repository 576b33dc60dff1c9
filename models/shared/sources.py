"""Sources of pretrained models: run folders of this suite, and the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


def run_folder(source: str) -> Path | None:
    """The run folder that a name stands for: `tiny:lm` is .runs/lm-tiny-s0, a folder with a model.json itself; None for other names.

    Raises FileNotFoundError where a run is named that does not exist.
    """
    preset, _, name = source.partition(":")
    folder = Path(".runs") / f"{name}-{preset}-s0" if name else Path(source)
    if (folder / "model.json").exists():
        return folder
    if name:
        raise FileNotFoundError(f"{source}: {folder} holds no model.json; `make train-{name} PRESET={preset}` trains one there")
    return None


def fetched(what: str, function: Callable[..., Found], *args: object, instead: str = "", **options: object) -> Found:
    """`function(...)`, which reads `what` from the hub or its cache.

    Raises ConnectionError, naming what can be done offline (`instead`: an alternative that needs no network), where neither has it.
    """
    try:
        return function(*args, **options)
    except OSError as error:
        raise ConnectionError(
            f"{what} cannot be had: not in the cache, and not within reach ({str(error).splitlines()[0]}). "
            f"Check the name and the network; on a machine without one, copy the folder here and name its path{instead}"
        ) from error
