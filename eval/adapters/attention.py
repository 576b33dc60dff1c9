"""Where a model looks in a picture: attention weights over its patches, of any model and without changing it.

torch computes attention without returning its weights, so each attention of a forward pass is intercepted and its weights are computed
again. Tensors that come from the picture are followed through the model. This finds the attention by which a model reads the picture: its
keys come from the picture and its queries do not, as in an attention pooler, learned queries, or a text decoder. A model without one is
shown by the last layer of its image tower: the class token's weights or, where patches are averaged, their mean.

One layer's attention is not an explanation of an output (Jain and Wallace, 2019, arXiv 1902.10186).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NOWHERE = "no attention over the patches of a picture: convolutions, or picture tokens within a text"
SIGHTLESS = "sees no pictures"
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class Look(NamedTuple):
    """Which attention it is, and the share of each patch, float32 `[side, side]` with sum 1; or None, and `kind` says why.

    The patches cover `area` of the picture: left, top, right, bottom, as shares of its width and height.
    """

    kind: str
    shares: np.ndarray | None = None
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@torch.no_grad()
def look(model: Any, image: np.ndarray) -> Look:
    """Where the model looks in a picture, uint8 `[height, width, 3]` of any size."""
    found = None
    able = [name for name in ("encode_image", "caption") if callable(getattr(model, name, None))]
    if not able or not isinstance(model, nn.Module):
        return Look(SIGHTLESS)
    for name in able:  # captions are written if the image encoder alone does not show how the model reads a picture
        watch = Watch(model)
        with watch:
            getattr(model, name)([image])
        found = watch.found() or found
        if watch.reads:
            break
    if found is None:
        return Look(NOWHERE)
    kind, shares = found
    return Look(kind, shares, _area(model, *image.shape[:2])) if np.isfinite(shares).all() else Look("attention that is not a number")


class Watch(TorchFunctionMode):
    """Sees every function of torch that a model calls while it looks at one picture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        towers = [module for module in model.modules() if hasattr(module, "num_prefix_tokens") and hasattr(module, "patch_embed")]
        self.tower_of = {part: tower for tower in reversed(towers) for part in tower.modules()}  # of nested ones the outermost
        self.tower: Any = None  # the one that ran last
        self.inside: Tensor | None = None  # weights `[S, S]` of its last layer
        self.reads: dict[nn.Module, list[Tensor]] = {}  # attention to the picture from elsewhere: weights `[T, S]` of each call
        self._path: list[nn.Module] = []  # the modules that are running, the innermost last
        self._fused = [module for module in model.modules() if getattr(module, "fused_attn", None) is False]

    def __enter__(self) -> Self:
        hooks = nn.modules.module
        self._hooks = [hooks.register_module_forward_pre_hook(self._begin), hooks.register_module_forward_hook(self._end)]
        for module in self._fused:  # timm's own way to have all attention computed by torch's function
            module.fused_attn = True  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for module in self._fused:
            module.fused_attn = False  # type: ignore[assignment]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            shown = self._shown(args[0])  # what attends stays what it is
            if self._shown(args[1]):
                self._note(attention_weights(*args, **kwargs), shown)
        else:
            shown = any(map(self._shown, _tensors((args, kwargs))))
            if shown and func in SOFTMAX and self._within in self.tower_of and result.ndim == 4:  # attention that is written out
                self._note(result, True)
        if shown:
            for tensor in _tensors(result):
                tensor._watched_by = self  # type: ignore[attr-defined]
        return result

    def found(self) -> tuple[str, np.ndarray] | None:
        """Which attention it is, and the shares of the patches `[side, side]`; None if there is none."""
        if self.reads:
            calls = list(self.reads.values())[-1]  # of the last layer
            queries = len(calls[0])
            if len(calls) > 1:  # a call for each word, whose query is the last one
                kind, row = "cross-attention of the words of its caption, mean", torch.stack([call[-1] for call in calls]).mean(dim=0)
            else:
                kind = f"cross-attention of {queries} queries, mean" if queries > 1 else "attention pooler"
                row = calls[0].mean(dim=0)
            return _on_grid(kind, row, self.tower, queries)
        if self.inside is None:
            return None
        summaries = self.tower.num_prefix_tokens - getattr(self.tower, "num_reg_tokens", 0)
        if summaries and getattr(self.tower, "global_pool", "token") != "avg":
            kind = "class token in the image tower" if summaries == 1 else f"{summaries} class tokens in the image tower, mean"
            return _on_grid(kind, self.inside[:summaries].mean(dim=0), self.tower)
        return _on_grid("patches in the image tower, mean", self.inside[self.tower.num_prefix_tokens :].mean(dim=0), self.tower)

    @property
    def _within(self) -> nn.Module | None:
        return self._path[-1] if self._path else None

    def _note(self, weights: Tensor, by_itself: bool) -> None:
        """weights `[B, H, T, S]` of the picture's tokens; `by_itself` if the queries are of the picture, too."""
        mean = weights.float().mean(dim=(0, 1)).cpu()
        module = self._within
        if not by_itself and module is not None:
            self.reads.setdefault(module, []).append(mean)
        elif module in self.tower_of and len(mean) == mean.shape[1] == _tokens(self.tower_of[module]):
            self.inside = mean

    def _shown(self, x: Any) -> bool:
        """Whether a tensor is of the picture: uint8 pixels `[B, 3, S, S]`, or computed from them."""
        return isinstance(x, Tensor) and (getattr(x, "_watched_by", None) is self or (x.dtype == torch.uint8 and x.ndim == 4))

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._path.append(module)
        self.tower = self.tower_of.get(module, self.tower)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()


def attention_weights(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **options: Any
) -> Tensor:
    """What `scaled_dot_product_attention` with these arguments weighs v by, `[..., T, S]`."""
    if options.get("enable_gqa"):
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    logits = q.float() @ k.float().mT * (options.get("scale") or q.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits.softmax(dim=-1)


def _on_grid(kind: str, row: Tensor, tower: Any, queries: int = 0) -> tuple[str, np.ndarray] | None:
    """Weights of S tokens as shares of the patches. Class tokens come before the patches; queries that also attend to themselves, as a
    Perceiver's do, come after them."""
    if tower is not None and len(row) >= _tokens(tower):
        first, patches = tower.num_prefix_tokens, tower.patch_embed.num_patches
    else:
        first, patches = 0, next((n for n in (len(row), len(row) - queries) if math.isqrt(max(n, 0)) ** 2 == n), 0)
    side, shares = math.isqrt(patches), row[first : first + patches]
    return (kind, (shares / shares.sum()).view(side, side).numpy()) if side and side**2 == patches else None


def _tokens(tower: Any) -> int:
    return int(tower.num_prefix_tokens + tower.patch_embed.num_patches)


def _area(model: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """The part that models see: the central square, or all of it where both sides are resized."""
    if getattr(getattr(model, "transform", None), "squeeze", False):
        return 0.0, 0.0, 1.0, 1.0
    x, y = (1 - min(height, width) / width) / 2, (1 - min(height, width) / height) / 2
    return x, y, 1 - x, 1 - y


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)
