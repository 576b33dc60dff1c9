"""The device to compute on, and its name in results."""

from __future__ import annotations

import os
import platform

import torch


def resolve_device(name: str) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, mps); `auto` is CUDA where there is one, else the CPU.

    Raises ValueError for a CUDA device where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch {torch.__version__} sees no CUDA device here; use cpu or auto")
    return device


def hardware(device: torch.device) -> str:
    """As reports name it: the GPU's name, or the processor and how many of its threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = "CPU" if device.type == "cpu" else device.type
    return f"{platform.machine()} {kind}, {torch.get_num_threads()} of {os.cpu_count()} threads"
