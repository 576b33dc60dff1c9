"""Many GPUs: a model whose gradients torch averages over ranks while the backward pass still runs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.shared.recompute import repeated_blocks
from recipes.train import distributed
from recipes.train.distributed import Process


class Passes(nn.Module):
    """Runs functions of a model, such as its `encode`: `passes(model.encode, batch)`.

    This is what torch wraps in place of the model, whose own class, names and methods stay as they are. Parameters are read only in there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


def parallel(model: nn.Module, process: Process, *, shard: bool) -> nn.Module:
    """The passes of a model on all ranks. Which parameters are trained may change afterwards only of a sharded one."""
    if process.world == 1:
        return Passes(model)
    return sharded(model, process.device) if shard else replicated(model)


def replicated(model: nn.Module) -> nn.Module:
    """The passes of a model that every rank holds whole, by DistributedDataParallel.

    It finds the parameters that the outputs of the last pass do not depend on, and averages the gradients that they have from earlier
    passes: those of the objective, and of what has no rows of its kind on this rank. Buckets get a group of processes of their own, so that
    they cannot be confused with what an objective gathers in the backward pass.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return Passes(model)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.14 has another name for what 2.11 calls so
        return DistributedDataParallel(
            Passes(model),
            process_group=dist.new_group(timeout=distributed.LIMIT),
            broadcast_buffers=False,  # the objective has given them the values of the whole batch
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


def no_reduction(passes: nn.Module, *, unless: bool = False) -> contextlib.AbstractContextManager[None]:
    """Gradients of passes in this context are averaged only with those of the next pass outside. Sharded ones are averaged in every pass,
    because a whole gradient is what does not fit."""
    return passes.no_sync() if isinstance(passes, DistributedDataParallel) and not unless else contextlib.nullcontext()


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """The passes of a model of which every rank holds a share, by FSDP2: the parameters of repeated blocks are gathered when they run, the
    others during a pass. Scalars, and modules that say so (`stays_whole`), stay whole on every rank: they change outside of passes.

    The model may be anywhere: shares are taken to the device block by block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    passes, mesh = Passes(model), init_device_mesh(device.type, (dist.get_world_size(),))
    modules = [module for module in model.modules() if getattr(module, "stays_whole", False)]
    kept = [*(p for p in model.parameters() if not p.ndim), *(p for module in modules for p in module.parameters() if p.ndim)]
    ignored = set(kept)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device) if parameter in ignored else parameter.data.contiguous()  # which FSDP2 wants
    for block in repeated_blocks(model).values():
        if any(getattr(each, "reads_beside", False) for each in block.modules()):
            continue  # its parameters are read outside of its forward pass, too
        for part in block if isinstance(block, nn.ModuleList) else [block]:  # a list has no forward pass, its parts have
            fully_shard(part, mesh=mesh, ignored_params=ignored)
            if hasattr(part, "remember"):
                register_fsdp_forward_method(part, "remember")
    fully_shard(passes, mesh=mesh, ignored_params=ignored, reshard_after_forward=True)
    passes.kept = kept  # type: ignore[assignment]
    return passes


def average_kept(passes: nn.Module) -> None:
    """Average the gradients of the few parameters that sharding leaves whole, in one message. One without rows of its kind on some rank
    counts as zero there, and on all ranks has a gradient then."""
    kept = [parameter for parameter in getattr(passes, "kept", ()) if parameter.requires_grad]
    if not kept:
        return
    flat = torch.cat([torch.zeros_like(each).flatten() if each.grad is None else each.grad.flatten() for each in kept])
    dist.all_reduce(flat)
    for parameter, mean in zip(kept, (flat / dist.get_world_size()).split([each.numel() for each in kept]), strict=True):
        parameter.grad = mean.view_as(parameter).clone()


# ------------------------------------------------------------------------------------------------ sharded tensors


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")  # DTensor's, which takes a second to import


def by_kind(tensors: Iterable[Tensor]) -> tuple[list[Any], list[Any]]:
    """Whole tensors, and sharded ones."""
    found: tuple[list[Any], list[Any]] = [], []
    for tensor in tensors:
        found[is_sharded(tensor)].append(tensor)
    return found


def whole(tensor: Tensor) -> Tensor:
    """The tensor, whole on every rank. All ranks must call it for a sharded one."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has whole, sharded like another; the tensor itself if that is whole."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state dict with whole tensors; {} on ranks that do not `keep` it. All ranks must call it."""
    found: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # of tied weights, the first one
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        full = whole(tensor.detach()) if first == name else None
        if keep:
            found[name] = found[first] if full is None else full.cpu() if is_sharded(tensor) else full
    return found
