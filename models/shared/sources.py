"""Locate pretrained models in run folders of this suite, in wheels of the package index, or on the hub."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

WHEEL = "wheel:"  # names of models/shared/wheels.py begin with it
Found = TypeVar("Found")


def run_folder(source: str) -> Path | None:
    """The run folder of a name: .runs/lm-tiny-s0 for `tiny:lm`, or the path itself if it contains a model.json; None for other names.

    Raises FileNotFoundError if the name refers to a run that does not exist.
    """
    if source.startswith(WHEEL):
        return None
    preset, _, name = source.partition(":")
    folder = Path(".runs") / f"{name}-{preset}-s0" if name else Path(source)
    if (folder / "model.json").exists():
        return folder
    if name:
        raise FileNotFoundError(f"{source}: {folder} has no model.json; `make train-{name} PRESET={preset}` trains it")
    return None


def fetched(what: str, function: Callable[..., Found], *args: object, instead: str = "", **options: object) -> Found:
    """Call `function(...)`, which loads `what` from the hub or its cache. Pass `trust_remote_code=False` to functions of transformers.

    Raises ConnectionError if neither has it, with advice for offline use (`instead`: an alternative that needs no network), and
    ValueError if `what` needs code that comes with it, or its files cannot be used.
    """
    try:
        with _bars_on_terminals_only(), foreign(what):
            found = function(*args, **options)
        model = found[0] if isinstance(found, tuple) else found
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers loads adapters with peft, where that is installed
            raise ValueError(
                f"{what} comes with low-rank updates (adapter_config.json), which are not read here: add them to its weights with peft's "
                "merge_and_unload(), save the model, and name that folder"
            )
        return found
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise ValueError(
            f"{what} needs code of its own, which is never executed here: use an architecture that transformers provides{instead}"
        ) from None  # the original message advises to run the code
    except OSError as error:
        raise ConnectionError(
            f"{what} is not in the cache and cannot be downloaded ({str(error).splitlines()[0]}). "
            f"Check the name and the network; on a machine without one, copy the folder here and name its path{instead}"
        ) from error


@contextmanager
def without_panic() -> Iterator[None]:
    """A panic of a library written in Rust, such as tokenizers, is no Exception and would end the process: ValueError in its place."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(f"the library gave up on it: {error}") from error


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """What libraries raise about files that others wrote, anything at all, as a ValueError that names them: `what`, as "tower 'NAME'"."""
    try:
        with without_panic():
            yield
    except (OSError, MemoryError):
        raise
    except ValueError as error:
        if what.rpartition(" '")[2].rstrip("'") in str(error) or "custom code" in str(error):
            raise
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{what} cannot be used, its files are damaged or of something else ({why[:300]})") from error


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Without a terminal, each change of transformers' progress bar would be one more line of output."""
    from transformers.utils import logging

    hidden = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()
