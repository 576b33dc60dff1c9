"""FLOPs and memory of a training step, computed from shapes by running the loop's own step on fake tensors."""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

import models
from models.contract import Batch, Model
from models.shared import device, transformer
from recipes.train.loop import flop_counter
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim
from recipes.train.stages import set_training
from recipes.train.step import backward

MODELS = Path(models.__file__).parent
aten = torch.ops.aten


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(out, query, key, value)


# torch counts the FLOPs of a GPU's fused attention, but not of a CPU's.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class Step:
    """FLOPs of a step, and bytes on its device."""

    flops: float
    parameters: int
    """and buffers"""
    gradients: int
    optimiser: int
    peak: int

    @property
    def activations(self) -> int:
        """What the peak holds besides: what the backward pass needs, intermediate results, and the batch."""
        return max(0, self.peak - self.parameters - self.gradients - self.optimiser)

    def sharded(self, ranks: int) -> float:
        """Bytes on each of `ranks` devices that share parameters, gradients and optimiser state."""
        return (self.parameters + self.gradients + self.optimiser) / ranks + self.activations


def trace(model: Model, optim: Optim, batch: Batch, *, micro_batch: int | None, bf16: bool, on_gpu: bool) -> Step:
    """A step of a model with fake parameters (`stand_in`), which is of no other use afterwards. `on_gpu`: with a GPU's attention, optimiser
    and rules of autocast.

    Raises ValueError where a shape depends on the values of weights or pixels.
    """
    set_training(model)
    model.zero_grad()
    optimizer = optimiser(model, optim, fused=on_gpu)
    autocast: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    with _on_gpu(on_gpu), Memory() as memory, flop_counter(custom_mapping=ATTENTION) as flops:
        memory.hold([*model.parameters(), *model.buffers()])
        parameters = memory.live
        memory.hold(batch.values())
        try:
            backward(model, batch, micro_batch=micro_batch, autocast=autocast)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(f"{_line(error)}: a shape depends on values of weights or pixels, so the step cannot be planned") from error
        busiest = memory.peak
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
    moments = tree_leaves(optimizer.state_dict()["state"])
    state = sum(moment.nbytes for moment in moments if isinstance(moment, Tensor))
    return Step(flops.get_total_flops(), parameters, gradients, state, max(memory.peak, busiest + state))


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet freed, views once: `live`, and the most so far, `peak`. What a kernel
    allocates for itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.held = set[int]()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.held:
                self.held.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _free(self, storage: int, size: int) -> None:
        self.held.discard(storage)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor) and not _counts(args[0]):
            return True if args[0].dtype == torch.bool else 1.0  # for the log, or to see whether a value is finite
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index):
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        out = func(*args, **(kwargs or {}))
        self.hold(each for each in tree_leaves(out) if isinstance(each, Tensor))
        return out


def _counts(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, on which shapes may depend."""
    return tensor.dtype != torch.bool and not tensor.is_floating_point()


def _places(index: Tensor | None) -> Iterable[Tensor | None]:
    """A mask with known values, as indices: fake tensors can only be indexed by these."""
    known = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero(as_tuple=True) if known else (index,)  # type: ignore[union-attr]


def _line(error: Exception) -> str:
    """The model's line that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(MODELS)]
    return f"{Path(frames[-1].filename).relative_to(MODELS.parent)}:{frames[-1].lineno}" if frames else "?"


# ------------------------------------------------------------------------------------------------------------ a GPU


@contextlib.contextmanager
def _on_gpu(on_gpu: bool) -> Iterator[None]:
    """Fake tensors are on the CPU, where torch's backward pass does without a GPU; these are the differences that change memory."""
    if not on_gpu:
        yield
        return
    knows, by_hand = device.host_knows, transformer._by_hand
    device.host_knows = lambda x: False
    transformer._by_hand = lambda x: False  # fused attention in bf16, too
    try:
        with _GPUAutocast():
            yield
    finally:
        device.host_knows, transformer._by_hand = knows, by_hand


class _GPUAutocast(TorchFunctionMode):
    """Operations that autocast computes in float32 on a GPU and in bf16 on a CPU."""

    IN_FLOAT32 = (F.layer_norm, F.group_norm, F.softmax, Tensor.softmax, torch.softmax, F.log_softmax, F.cross_entropy, F.normalize)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = [each.float() if isinstance(each, Tensor) and each.dtype == torch.bfloat16 else each for each in args]
        return func(*args, **(kwargs or {}))
