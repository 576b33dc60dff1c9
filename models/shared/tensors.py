"""Named tensors on disk, as safetensors: nothing in such a file can execute."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import AGAIN, FileError, replacing

TIED = "tied"  # key in a file's metadata: JSON, name of a tensor -> name under which it is stored


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """The file appears whole or not at all. Tied weights (a language model's embedding is also its last layer) are written once. Raises
    FileError where it cannot be written."""
    tied = _tied(tensors)
    if tied:
        about = (about or {}) | {TIED: json.dumps(tied)}
    # Copies, because the format refuses tensors that share memory, also parts of one.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items() if name not in tied}
    with replacing(path) as partial:
        try:
            save_file(copies, partial, about)
        except SafetensorError as error:  # its message is the only sign of a full disk
            if found := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
            raise


def read_tensors(path: Path, cure: str = AGAIN) -> dict[str, Tensor]:
    """Raises FileError, which says `cure`, for a file that is cut short or no safetensors."""
    try:
        tensors = load_file(path, device="cpu")
        tied = json.loads(read_about(path, cure).get(TIED, "{}"))
        return tensors | {name: tensors[own] for name, own in tied.items()}
    except FileError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error, cure) from error


def read_about(path: Path, cure: str = AGAIN) -> dict[str, str]:
    """The metadata stored with the tensors. Raises FileError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error, cure) from error


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> the first name of the same tensor, for the other names."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            found[name] = first[place]
    return found


def _unreadable(path: Path, error: Exception, cure: str) -> FileError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
    return FileError(f"{path} cannot be read as safetensors ({why}). {cure}")
