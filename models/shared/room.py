"""Parameters are counted while a model is built, so that one that cannot fit is refused before its memory is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

AVAILABLE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup/memory.max")


@contextmanager
def room_for_parameters(most: float) -> Iterator[None]:
    """Raises MemoryError once the modules built in this block have more than `most` bytes of parameters."""
    seen: dict[int, torch.Tensor] = {}  # kept, so that no other parameter gets the same id
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or id(parameter) in seen or parameter.is_meta or isinstance(parameter.data, FakeTensor):
            return
        seen[id(parameter)] = parameter.data
        total += parameter.numel() * parameter.element_size()
        if total > most:
            raise MemoryError(f"its parameters take more than {most / 1e9:.1f} GB, and there is not more room for them")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def free_memory() -> float:
    """Bytes of memory that can still be had on this machine, and in this container; infinity where the system does not say."""
    found = float("inf")
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines = dict(line.split(":", 1) for line in AVAILABLE.read_text().splitlines())
        found = min(found, 1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return min(found, int(CONTAINER.read_text()))
    except (OSError, ValueError):  # "max": no limit
        return found
