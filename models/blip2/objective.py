"""The contrastive and generation losses of BLIP-2's first stage (section 3.2); matching is in models/shared/matching.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.shared.distributed import gather, mean_of_all, rank

SMOOTHING = 0.1  # of labels in the contrast and in generation; the released code


def similarities(queries: Tensor, text: Tensor) -> Tensor:
    """Similarity of the best-matching query: L2-normalised queries `[B, Q, D]` and texts `[C, D]` -> `[B, C]`."""
    return (queries.flatten(0, 1) @ text.T).view(*queries.shape[:2], -1).amax(dim=1)


def contrastive(queries: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions between this rank's rows and all ranks' columns, with smoothed labels."""
    right = rank() * len(text) + torch.arange(len(text), device=text.device)
    image_logits = scale * similarities(queries, gather(text))  # [b, B]
    text_logits = scale * similarities(gather(queries), text).T  # [b, B]
    return (
        F.cross_entropy(image_logits, right, label_smoothing=SMOOTHING) + F.cross_entropy(text_logits, right, label_smoothing=SMOOTHING)
    ) / 2


def generation_nll(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed cross-entropy of each text's tokens after the first, summed `[B]`, and their number `[B]`; logits `[B, T, V]`."""
    asked = real[:, 1:]
    each = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none", label_smoothing=SMOOTHING)
    return (each * asked).sum(dim=1), asked.sum(dim=1)


def generation(nll: Tensor, tokens: Tensor) -> Tensor:
    return mean_of_all(nll, tokens)
