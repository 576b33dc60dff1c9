"""The image tower: timm's vision transformer.

Small presets use a convolutional stem instead of the patch embedding, with which a model learns colour but not shape in a CPU budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import PatchEmbed
from timm.layers import build_sincos2d_pos_embed as sincos_positions
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.fields import require
from models.shared.transformer import ACTIVATIONS, TransformerConfig, apart, attend


@dataclass(frozen=True)
class VisionConfig(TransformerConfig):
    """timm's vision transformer. `stem` "patch" is the paper's patch embedding, "conv" the convolutional stem of small presets."""

    image_size: int = 224
    patch_size: int = 16
    stem: Literal["patch", "conv"] = "patch"
    pool: Literal["token", "avg", "map", "none"] = "token"  # class token, mean, SigLIP's attention pooling head, or all tokens
    pre_norm: bool = False  # CLIP normalises before the first block, and its patch convolution then has no bias
    patch_dropout: float = 0.0
    positions: Literal["random", "sincos"] = "random"
    """how the position embeddings start (they are trained either way): normal with deviation .02, or 2D sines and cosines of size one"""
    tower: str = ""
    """a tower of timm or transformers instead of this one, by name, folder or file (models/shared/towers.py), which sets width and size"""


# The tower of every `tiny` preset. It is a shared constant because models reuse each other's towers (LiT, FLAVA and ASIF that of the
# classifier, MaskVLM and BLIP-2 that of CLIP), and a state dict only loads into a tower of the same shape. `pool` may differ in models
# that do not reuse a tower (CoCa has its own pooling).
TINY_TOWER = VisionConfig(
    width=160, depth=3, heads=5, activation="relu", image_size=64, patch_size=16, stem="conv", pool="avg", positions="sincos"
)


def vision_transformer(config: VisionConfig, *, pooled: bool | None = None) -> Any:
    """Build a tower that maps normalised pixels `[B, 3, image_size, image_size]` to a pooled feature `[B, width]`.

    `forward_features` returns the tokens before pooling `[B, N, width]`, as does the tower itself with pool "none". `pooled` is what the
    model needs of the tower itself, if it calls it: a pooled feature, or (False) all tokens. Raises FieldError if the two do not agree.
    """
    if config.tower:
        from models.shared.towers import build_tower  # builds on this file

        return build_tower(config.tower)
    if pooled is not None:
        expected = "token, avg or map: this model reads one feature of an image" if pooled else "none: this model reads all tokens"
        require(pooled == (config.pool != "none"), "--model.vision.pool", config.pool, expected)
    if config.positions == "sincos":
        require(config.width % 4 == 0, "--model.vision.width", config.width, "a multiple of 4, for positions of sines and cosines")
    require(
        config.image_size >= config.patch_size, "--model.vision.image-size", config.image_size, f"a patch of {config.patch_size} or more"
    )

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
    if config.stem == "conv":  # blocks start as the identity: the stem learns first, which speeds up training
        for block in tower.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
    if config.positions == "sincos":
        side = config.image_size // config.patch_size
        with torch.no_grad():
            tower.pos_embed[:, tower.num_prefix_tokens :] = sincos_positions([side, side], config.width)
    return tower


def plain(tower: Any, what: str) -> VisionTransformer:
    """The tower, if it is timm's plain vision transformer. Raises ValueError for others that are named."""
    if not isinstance(tower, VisionTransformer):
        raise ValueError(f"{what}, so its image tower must be one of timm's plain vision transformers: name another --model.vision.tower")
    return tower


class _VisionAttention(TimmAttention):
    """timm's attention with the same parameters, computed by `attend`."""

    def forward(self, x: Tensor, **_: object) -> Tensor:  # [B, T, D] -> [B, T, D]
        q, k, v = apart(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class ConvStem(nn.Module):
    """A small stack of convolutions instead of the patch embedding, `[B, 3, S, S]` -> `[B, (S / patch_size)^2, D]`.

    It has no BatchNorm, because batch statistics would differ between micro-batches, ranks and the full batch. Residual branches that
    start at zero and one final LayerNorm train equally well (and faster on a CPU).
    """

    def __init__(self, *, img_size: int, patch_size: int, embed_dim: int, **_: object) -> None:
        super().__init__()
        require(patch_size in (8, 16), "patch-size", patch_size, "8 or 16, for a convolutional stem")
        require(img_size % patch_size == 0, "image-size", img_size, f"a multiple of the patch size, {patch_size}")
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


def image_states(tower: Any, pixels: Tensor, hidden: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """A tower's states for images whose `hidden` patches are replaced by the mask token.

    pixels: normalised `[B, 3, S, S]`; hidden: bool `[B, N]`, None for no masking; mask_token: `[D]`. Returns the states before the final
    norm, `[B, 1 + N, D]` with a class token. Hidden patches are also blanked in the pixels, because convolutions extend beyond a patch.
    """
    if not isinstance(tower, VisionTransformer):
        return tower.forward_features(pixels)
    side = math.isqrt(tower.patch_embed.num_patches)
    if not len(pixels):  # not every layer accepts an empty batch
        return pixels.new_zeros(0, tower.num_prefix_tokens + side**2, tower.embed_dim)
    if hidden is not None:
        pixels = pixels.masked_fill(patches_to_pixels(hidden, pixels.shape[-1]), 0.0)
    x = tower.patch_embed(pixels)
    if hidden is not None and mask_token is not None:
        x = torch.where(hidden[:, :, None], mask_token.to(x.dtype), x)
    x = tower.norm_pre(tower._pos_embed(x))
    for block in tower.blocks:
        x = block(x)
    return x


def patches_to_pixels(hidden: Tensor, size: int) -> Tensor:
    """Expand a patch mask `[B, N]` to pixels `[B, 1, size, size]`."""
    side = math.isqrt(hidden.shape[1])
    return hidden.view(-1, 1, side, side).repeat_interleave(size // side, 2).repeat_interleave(size // side, 3)
