"""Where a step makes the host wait for the device."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
# Operations whose result the host needs before it can go on: a number, or the shape of a tensor that depends on values.
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
}


class Syncs:
    """`with Syncs(device) as syncs: ...`, then `syncs.places`: the lines of this project, "file:line operation". On CUDA, torch's own
    detector; elsewhere, the operations that would wait there, without copies between host and device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.places = device.type == "cuda", list[str]()

    def __enter__(self) -> Self:
        if self.cuda:
            self.caught = warnings.catch_warnings(record=True)
            self.said: Any = self.caught.__enter__()
            warnings.simplefilter("always")
            self.real, warnings.showwarning = warnings.showwarning, self._show
            torch.cuda.set_sync_debug_mode("warn")
        else:
            self.mode = _Waiting(self.places)
            self.mode.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = self.real
            self.caught.__exit__(kind, error, where)
        else:
            self.mode.__exit__(kind, error, where)

    def _show(self, message: Any, *_: Any, **__: Any) -> None:
        if "synchroni" in str(message):
            self.places.append(place())


class _Waiting(TorchDispatchMode):
    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(func, args):
            self.places.append(f"{place()} {func.overloadpacket.__name__}")
        return func(*args, **(kwargs or {}))


def waits(func: Any, args: Any) -> bool:
    """Whether the operation makes the host wait: those above, and indexing by booleans."""
    packet = func.overloadpacket
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index):
        return any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    return packet in WAITING or (packet is aten.repeat_interleave and "output_size" not in str(args))


def place() -> str:
    """The innermost line of this project on the stack, outside this folder and the environment's (`.venv` lies within)."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and not path.is_relative_to(Path(__file__).parent):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"
