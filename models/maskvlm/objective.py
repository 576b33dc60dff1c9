"""MaskVLM's losses for contrast, masked words and masked pixels (section 3.2 of the paper); matching is in models/shared/matching.py."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.clip.objective import clip_loss
from models.contract import IGNORE_INDEX
from models.shared import device
from models.shared.distributed import mean_of_all
from models.shared.vision import patches_to_pixels


def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of the unmasked encoders' features."""
    return clip_loss(image, text, scale).total


def masked_pixels(predicted: Tensor, pixels: Tensor, hidden: Tensor, weights: Tensor | None = None, *, rounded: float = 0.0) -> Tensor:
    """Mean absolute error of the hidden patches' normalised RGB (SimMIM); visible ones count nothing.

    predicted, pixels `[B, 3, S, S]`; hidden `[B, N]`; weights of pixels `[B, 1, S, S]`, all 1 unless given. Errors below `rounded` count
    by their square (smooth L1). The absolute error's slope does not depend on how wrong a pixel is: around the median colour, where
    as many pixels are too bright as too dark, the slopes cancel, and a short training may not leave it. The mean is over all ranks.
    """
    squares = patches_to_pixels(hidden, pixels.shape[-1]).float()
    squares = squares if weights is None else squares * weights
    errors = F.smooth_l1_loss(predicted.float().expand_as(pixels), pixels.float(), beta=rounded, reduction="none")
    return mean_of_all((errors * squares).sum()[None], (3 * squares.sum())[None])


def visible_median(pixels: Tensor, hidden: Tensor) -> Tensor:
    """A trivial baseline for reconstruction: the median colour `[B, 3, 1, 1]` of each image's visible pixels, or 0."""
    visible = pixels.masked_fill(patches_to_pixels(hidden, pixels.shape[-1]), float("nan"))
    return visible.flatten(2).nanmedian(dim=-1).values.nan_to_num()[..., None, None]


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the masked tokens of all ranks, 0 without any; logits `[B, T, V]`, labels `[B, T]` (`IGNORE_INDEX`: not
    masked)."""
    asked = labels != IGNORE_INDEX
    count = asked.sum()[None]
    if device.host_knows(labels):
        logits, labels = logits[asked], labels[asked]
    return mean_of_all(F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")[None], count)
