"""Optimisers: AdamW, or Muon for the matrices of repeated blocks and AdamW for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.shared.device import multiplies_bf16
from recipes.train.parallel import by_kind, is_sharded, share_of, whole
from recipes.train.recipe import Optim


def optimiser(model: nn.Module, optim: Optim, *, fused: bool = True, precision: str = "auto") -> torch.optim.Optimizer:
    """AdamW with weight decay for matrices only, not for gains, biases and scalars; with `optim.muon`, combined with Muon,
    which multiplies in the recipe's `precision`.

    Raises ValueError if the model has no repeated blocks for Muon.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    repeated = repeated_matrices(model) if optim.muon else []
    if optim.muon and not repeated:
        raise ValueError("optim.muon: no module has repeated blocks of linear layers; do not set it")
    inner = [matrix for matrix in repeated if matrix.requires_grad]  # none if the blocks are frozen, as beside low-rank updates
    apart = {id(matrix) for matrix in inner}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2 and id(p) not in apart], "weight_decay": optim.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if any(map(is_sharded, trainable)):  # no group has tensors of both kinds: a fused kernel does not take them together
        groups = [dict(group, params=some) for group in groups for some in by_kind(group["params"]) if some]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
    return ChainedOptimizer(adamw, Muon(inner, lr=optim.lr, weight_decay=optim.weight_decay, precision=precision)) if inner else adamw


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """torch's `clip_grad_norm_`, also for parameters of which only some are sharded. Returns the norm of all gradients before."""
    kinds = by_kind(parameter for parameter in parameters if parameter.grad is not None)
    if not kinds[1]:
        return nn.utils.clip_grad_norm_(kinds[0], most)
    norm = nn.utils.get_total_norm([whole(nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])) for some in kinds if some])
    for some in kinds:
        nn.utils.clip_grads_with_norm_(some, most, norm)
    return norm


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Take an optimiser step unless the gradients' norm is infinite or NaN. On a GPU the device decides, so that the host need not wait for
    it; the optimiser must then be fused."""
    if norm.device.type == "cpu":
        if math.isfinite(norm):
            optimizer.step()
        return
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # read by torch's fused optimisers and by ours
    optimizer.step()


def repeated_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers inside numbered modules ("blocks.0.attn.proj"). This selects the blocks of transformers and excludes
    embeddings and heads, even heads with several layers ("head.2")."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return [module.weight for name, module in linear.items() if any(part.isdigit() for part in name.split(".")[:-1])]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised so that all singular values are close to one (https://kellerjordan.github.io/posts/muon). Updates
    are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), so that both use the same learning rate.

    torch's implementation is equivalent, but always multiplies in bf16, which CPUs without native support emulate slowly, and of a sharded
    matrix it takes each share for a matrix. Here every rank gathers the momentum of the matrices, a few at a time, and orthogonalises all.
    """

    MOMENTUM = 0.95

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float, precision: str = "auto") -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        skipped = getattr(self, "found_inf", None)  # 1 on the device: change nothing
        for group in self.param_groups:
            rate = group["lr"] if skipped is None else group["lr"] * (1 - skipped)
            alike: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            stacks = [(shape, found[first : first + 16]) for shape, found in alike.items() for first in range(0, len(found), 16)]
            for shape, matrices in stacks:
                momentum = torch.stack([whole(self._momentum(matrix, skipped)) for matrix in matrices])
                directions = orthogonal(momentum, self.precision)
                if skipped is not None:
                    directions = directions * (1 - skipped)
                for matrix, direction in zip(matrices, directions, strict=True):
                    matrix.mul_(1 - rate * group["weight_decay"])
                    matrix.add_(share_of(direction, matrix), alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _momentum(self, matrix: Tensor, skipped: Tensor | None) -> Tensor:
        assert matrix.grad is not None
        gradient: Tensor = matrix.grad
        weight: float | Tensor = 1 - self.MOMENTUM
        if skipped is not None:
            gradient, weight = gradient.nan_to_num(0.0, 0.0, 0.0), weight * (1 - skipped)
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"].lerp_(gradient, weight)
        return gradient.lerp(mean, self.MOMENTUM)


def orthogonal(matrices: Tensor, precision: str = "auto") -> Tensor:
    """Orthogonalise a stack of matrices `[N, A, B]`: keep the singular vectors and bring all singular values close to one (0.7 to 1.2), by
    five steps of a quintic Newton-Schulz iteration. Precision: "fp32", "bf16", or "auto", which is bf16 if the hardware supports it.
    Stacking is faster than one matrix at a time."""
    bf16 = multiplies_bf16(matrices.device) if precision == "auto" else precision == "bf16"
    x = matrices.to(torch.bfloat16 if bf16 else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).contiguous()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


class ChainedOptimizer(torch.optim.Optimizer):
    """Several optimisers for different parameters behind the interface of one, with concatenated groups and states."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Use the parts' own group objects, so that a learning rate set here applies to the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            if hasattr(self, "found_inf"):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        for part in self.parts:
            self.state.update(part.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        first = 0
        for part in self.parts:
            count = sum(len(group["params"]) for group in part.param_groups)
            own = {index - first: moments for index, moments in state_dict["state"].items() if first <= index < first + count}
            part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})
            first += count
        self._share()
