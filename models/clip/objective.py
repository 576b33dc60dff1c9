"""CLIP's objective: symmetric cross-entropy over the similarities of all pairs in the batch (figure 3 of the paper)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import Losses
from models.shared.distributed import gather, rank


def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> Losses:
    """InfoNCE in both directions.

    image, text: L2-normalised features of this rank's pairs `[b, D]`; scale: exp of the learned log temperature's inverse.
    Each rank classifies its own b rows against all B = world * b columns; the mean over ranks is the full-batch loss, and
    so is the mean of their gradients.
    """
    image_logits = scale * image @ gather(text).T  # [b, B]
    text_logits = scale * text @ gather(image).T  # [b, B]
    right = rank() * len(image) + torch.arange(len(image), device=image.device)
    terms = {
        "image_to_text": F.cross_entropy(image_logits, right),
        "text_to_image": F.cross_entropy(text_logits, right),
    }
    chance = math.log(image_logits.shape[1])
    return Losses((terms["image_to_text"] + terms["text_to_image"]) / 2, terms, dict.fromkeys(terms, chance))


def info_nce(rows: Tensor, columns: Tensor, scale: Tensor, *, smoothing: float = 0.0, alike: Tensor | None = None) -> Tensor:
    """InfoNCE in one direction: the mean cross-entropy of finding the column of each of this rank's rows among those of all ranks.

    rows `[b, D]`, columns `[B, D]`: L2-normalised; smoothing: share of the label that all columns get alike; alike: bool `[b, B]`, columns
    that are no negatives of a row.
    """
    logits = scale * rows @ columns.T  # [b, B]
    right = rank() * len(rows) + torch.arange(len(rows), device=rows.device)
    if alike is not None:
        own = torch.arange(len(columns), device=rows.device) == right[:, None]
        logits = logits.masked_fill(alike & ~own, float("-inf"))
    return F.cross_entropy(logits, right, label_smoothing=smoothing)
