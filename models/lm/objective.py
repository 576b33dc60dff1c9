"""SimCTG's contrastive term (Su et al., 2022, arXiv 2202.06417), for MAGIC's language model (2205.02655, section 3.1).

Without it the states of a language model's tokens all point in similar directions, and a degeneration penalty cannot distinguish
them. The term pushes the states of different tokens apart.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def contrast(states: Tensor, real: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Over all ordered pairs of different places of a document, the sum of max(0, margin - cos(h_i, h_i) + cos(h_i, h_j)) `[B]`, and
    how many pairs that is `[B]`: the mean is over all of them, not over those that are too close.

    states: `[B, T, D]` of the last layer; real: `[B, T]`, False for padding.
    """
    states = F.normalize(states.float(), dim=-1)
    similarity = states @ states.transpose(1, 2)  # [B, T, T]
    pairs = real[:, :, None] & real[:, None, :]
    pairs.diagonal(dim1=1, dim2=2).fill_(False)
    too_close = (margin - 1 + similarity).clamp(min=0)  # a state's similarity with itself is 1
    return (too_close * pairs).sum(dim=(1, 2)), pairs.sum(dim=(1, 2))
