"""What turns gradients into steps: AdamW, or Muon for the matrices of transformer blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from recipes.recipe import Optim


def optimiser(model: nn.Module, optim: Optim, *, fused: bool = True) -> torch.optim.Optimizer:
    """Matrices decay; gains, biases and scalars do not."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    inner = {name for name, parameter in trainable.items() if optim.muon and "blocks." in name and parameter.ndim == 2}
    groups = [
        {"params": [p for name, p in trainable.items() if p.ndim >= 2 and name not in inner], "weight_decay": optim.weight_decay},
        {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
    if not inner:
        return adamw
    return Both(adamw, muon([trainable[name] for name in trainable if name in inner], optim))


def muon(matrices: Sequence[nn.Parameter], optim: Optim) -> torch.optim.Muon:
    """Momentum whose singular values are all brought near one (https://kellerjordan.github.io/posts/muon), so that a step moves all
    directions alike; as large as AdamW's (arXiv 2502.16982, section 2.2), so that both share a learning rate. In our small
    transformers it needs about half of AdamW's samples to the same loss."""
    return torch.optim.Muon(matrices, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw")


class Both(torch.optim.Optimizer):
    """Several optimisers of different parameters as one: their groups and states one after another."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The groups are the parts' own: a rate that is set here is theirs."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
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
