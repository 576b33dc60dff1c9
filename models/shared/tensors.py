"""Named tensors on disk, as safetensors: nothing in such a file can execute."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import AGAIN, FileError, replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """The file appears whole or not at all. Raises FileError where it cannot be written."""
    # Copies, because tied weights (a language model's embedding is also its last layer) share memory, which the format refuses.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        try:
            save_file(copies, partial, about)
        except SafetensorError as error:  # it tells of a full disk in words
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise


def read_tensors(path: Path, cure: str = AGAIN) -> dict[str, Tensor]:
    """Raises FileError, which says `cure`, for a file that is cut short or no safetensors."""
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error, cure) from error


def read_about(path: Path, cure: str = AGAIN) -> dict[str, str]:
    """What was written beside the tensors. Raises FileError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error, cure) from error


def _unreadable(path: Path, error: Exception, cure: str) -> FileError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
    return FileError(f"{path} cannot be read as safetensors ({why}). {cure}")
