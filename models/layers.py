"""Blocks shared by the models: a pre-norm transformer for text, timm's vision transformer for images, and what losses need.

The image tower is timm's `VisionTransformer`. Small presets put a convolutional stem in front of its blocks: within a CPU
budget a plain patch embedding learns colour but not shape.
"""

from __future__ import annotations

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
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:  # [B, T, D] -> [B, T, D]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D/H]
        return self.proj(attend(q, k, v, causal=causal).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention, `[B, H, T, D]`. On a CPU the fused kernel is 6-10 times slower in bf16 than these three lines."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B, H, T, S]
    if causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
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

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        x = x + self.attn(self.norm1(x), causal=causal)
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


# -------------------------------------------------------------------------------------------------- image tower


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """timm's vision transformer. `stem` "patch" is the paper's; "conv" is the small presets' stack of convolutions."""

    image_size: int = 224
    patch_size: int = 16
    stem: Literal["patch", "conv"] = "patch"
    pool: Literal["token", "avg", "map"] = "token"  # class token, mean, or SigLIP's attention pooling head
    pre_norm: bool = False  # CLIP normalises before the first block, and its patch convolution then has no bias
    patch_dropout: float = 0.0


def vision_transformer(config: VisionConfig) -> VisionTransformer:
    """Tower from normalised pixels `[B, 3, image_size, image_size]` to a pooled feature `[B, width]`."""

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
        global_pool=config.pool,
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
