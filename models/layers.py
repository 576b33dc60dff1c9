"""Blocks shared by the models: a pre-norm transformer for text, timm's vision transformer for images, and what losses need.

The image tower is timm's `VisionTransformer`. Small presets put a convolutional stem in front of its blocks: within a CPU
budget a plain patch embedding learns colour but not shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu"]


class Losses(NamedTuple):
    """What a model's forward returns: the scalar to minimise, its named terms, and what a term (or "total") is at chance."""

    total: Tensor
    terms: dict[str, Tensor]
    chance: dict[str, float]


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TanhGELU(nn.GELU):
    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": TanhGELU, "quick_gelu": QuickGELU}


# -------------------------------------------------------------------------------------------------- transformer


@dataclass(frozen=True)
class TransformerConfig:
    width: int
    depth: int
    heads: int
    activation: Activation = "gelu"
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`. With a cache, x continues what the cache has read and attends to that, too."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D/H]
        q, k, v = qkv if cache is None else (qkv[0], *cache.append(qkv[1:]))
        return self.proj(attend(q, k, v, causal=causal, mask=mask).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of a sequence to a memory, whose keys and values can be computed once for many steps."""

    def __init__(self, width: int, heads: int, *, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], *, mask: Tensor | None = None) -> Tensor:
        """`[B, T, D]` -> `[B, T, D]`; or `[1, T, D]`, one sequence (learned queries) for every row of the memory. `mask` as `attend`'s."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(attend(q.expand(len(memory[0]), -1, -1, -1), *memory, mask=mask).transpose(1, 2).flatten(2))

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, S, D/H]` of a memory `[B, S, M]`."""
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v


class KeyValueCache:
    """Keys and values of what a self-attention layer has read so far, of at most `length` positions.

    On a CPU, products in bf16 first copy what is not in one piece, in float32 they do not. So in bf16 room is taken little by little,
    and `attend` goes through all of it, whether it is filled yet or not.
    """

    STEP = 32  # positions that room is taken for at once, in bf16 on a CPU

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0
        self._held: Tensor | None = None  # [2, B, H, room, D/H]

    def append(self, kv: Tensor) -> Tensor:
        """Keys and values `[2, B, H, T, D/H]` of T more positions -> those of all positions. Raises ValueError when there is no room."""
        end = self.filled + kv.shape[3]
        if end > self.length:
            raise ValueError(f"{end} positions do not fit into a cache that was made for {self.length}")
        if self._held is None or end > self._held.shape[3]:
            room = min(self.length, math.ceil(end / self.STEP) * self.STEP) if _by_hand(kv) else self.length
            held = _room(kv, kv.shape[1], room)
            if self._held is not None:
                held[:, :, :, : self.filled] = self._held[:, :, :, : self.filled]
            self._held = held
        self._held[:, :, :, self.filled : end] = kv
        self.filled = end
        return self._held[:, :, :, :end]

    def attend(self, q: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """Attention of one query a row, `[B, H, 1, D/H]`, to all that is held; `bias` `[B, 1, 1, S]` is added to its logits."""
        assert self._held is not None
        if not _by_hand(q):
            k, v = self._held[:, :, :, : self.filled]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        k, v = self._held
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # [B, H, 1, room]
        logits[..., self.filled :] = float("-inf")
        if bias is not None:
            logits[..., : self.filled] += bias
        return logits.softmax(dim=-1) @ v

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may occur several times."""
        if self._held is not None:
            held = _room(self._held, len(rows), self._held.shape[3])
            held[:, :, :, : self.filled] = self._held[:, rows, :, : self.filled]
            self._held = held


def _by_hand(x: Tensor) -> bool:
    """Whether attention in the type of x is written out: torch's fused kernel for bf16 on a CPU is 6-10 times slower."""
    return x.device.type == "cpu" and x.dtype != torch.float32


def _room(like: Tensor, rows: int, positions: int) -> Tensor:
    """`[2, rows, H, positions, D/H]`: zeros where attention goes through all of it."""
    shape = (2, rows, like.shape[2], positions, like.shape[4])
    return like.new_zeros(shape) if _by_hand(like) else like.new_empty(shape)


def as_autocast(x: Tensor) -> Tensor:
    """x in the type that autocast multiplies in; unchanged without autocast. What norms leave is float32: cast before it is kept for an
    `objective`, which works in the type it finds, or on a CPU before a residual stream, which then costs half."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q `[B, H, T, D]` to k and v `[B, H, S, D]`.

    Causal: the queries are the last T of the S positions, and see none that follow. `mask` (instead) `[B or 1, 1, T, S]` is true where a
    query may look, or, if it is not bool, added to the logits.
    """
    if causal and q.shape[2] == 1:
        causal = False  # the newest position sees everything
    elif causal and q.shape[2] != k.shape[2]:  # the fused kernel would align the first positions
        causal, mask = False, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    if not _by_hand(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, T, S]
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ v


class Block(nn.Module):
    """Pre-norm residual block: attention, then a two-layer MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), causal=causal, mask=mask, cache=cache)
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


# -------------------------------------------------------------------------------------------------- image tower


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """timm's vision transformer. `stem` "patch" is the paper's; "conv" is the small presets' stack of convolutions."""

    image_size: int = 224
    patch_size: int = 16
    stem: Literal["patch", "conv"] = "patch"
    pool: Literal["token", "avg", "map", "none"] = "token"  # class token, mean, SigLIP's attention pooling head, or all tokens
    pre_norm: bool = False  # CLIP normalises before the first block, and its patch convolution then has no bias
    patch_dropout: float = 0.0


def vision_transformer(config: VisionConfig) -> VisionTransformer:
    """Tower from normalised pixels `[B, 3, image_size, image_size]` to a pooled feature `[B, width]`.

    Its `forward_features` gives the tokens before pooling `[B, N, width]`; with pool "none" so does the tower itself.
    """

    def norm(width: int, **_: object) -> nn.LayerNorm:
        return nn.LayerNorm(width, eps=config.norm_eps)

    tower = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        class_token=config.pool == "token",
        global_pool="" if config.pool == "none" else config.pool,
        pre_norm=config.pre_norm,
        patch_drop_rate=config.patch_dropout,
        act_layer=ACTIVATIONS[config.activation],
        norm_layer=norm,
        attn_layer=_VisionAttention,
        embed_layer=ConvStem if config.stem == "conv" else PatchEmbed,
    )
    if config.pool == "map":
        tower.attn_pool.fused_attn = False  # one query: nothing to fuse, and see `attend`
    if config.stem == "conv":  # blocks that start as the identity: the stem learns first, and everything learns faster
        for block in tower.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
    return tower


class _VisionAttention(TimmAttention):
    """timm's attention, parameters and all, computed by `attend`."""

    def forward(self, x: Tensor, **_: object) -> Tensor:  # [B, T, D] -> [B, T, D]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class ConvStem(nn.Module):
    """A small stack of convolutions in the place of the patch embedding, `[B, 3, S, S]` -> `[B, (S / patch_size)^2, D]`.

    It has no BatchNorm, whose batch statistics would make micro-batches and ranks differ from the full batch: residual
    branches that start at zero and one LayerNorm at the end train as well (and faster, on a CPU).
    """

    def __init__(self, *, img_size: int, patch_size: int, embed_dim: int, **_: object) -> None:
        super().__init__()
        if patch_size not in (8, 16) or img_size % patch_size:
            raise ValueError(f"a convolutional stem has patch_size 8 or 16 dividing image_size; got {patch_size} and {img_size}")
        self.num_patches = (img_size // patch_size) ** 2
        merge = patch_size // 8
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            _ConvBlock(64),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            _ConvBlock(128),
            nn.Conv2d(128, embed_dim, merge, stride=merge),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(embed_dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x.contiguous(memory_format=torch.channels_last))  # [B, D, S/p, S/p]
        return self.norm(x.flatten(2).transpose(1, 2))


class _ConvBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


# ------------------------------------------------------------------------------------------------ across ranks


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, own rows differentiable from every rank's loss. `[b, ...]` -> `[world * b, ...]`; x itself when alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


def mean_of_all(totals: Tensor, counts: Tensor) -> Tensor:
    """sum(totals) / sum(counts) over the samples of all ranks, `[b]` each; 0 when nothing was counted.

    A rank's own value is its share times the number of ranks, so that the mean over ranks, and of their gradients, is exact
    whatever the counts of each.
    """
    everywhere = gather(counts)
    return totals.sum() * (len(everywhere) / len(counts)) / everywhere.sum().clamp(min=1)


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        grad = grad.contiguous()
        dist.all_reduce(grad)  # every rank's loss has a share in these rows
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
