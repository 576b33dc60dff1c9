"""CoCa's objective: CLIP's contrastive loss plus the captioning loss (equations 2 to 4 of the paper).

Two deviations, both as in open_clip. Equation 3, L_cap = -sum_t log P(y_t | y_<t, x), sums over the tokens of a caption; here it is the
mean over all tokens of the batch. Equation 2 sums both directions of contrast; here it is their mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip.objective import clip_loss
from models.contract import Losses
from models.shared.distributed import mean_of_all


def coca_loss(features: dict[str, Tensor], scale: Tensor, *, contrastive: float, captioning: float, vocab_size: int) -> Losses:
    """`contrastive` and `captioning` are the terms' weights; a term of weight 0 needs no features and is omitted.

    features: "image" and "text", L2-normalised `[b, D]`; "nll" and "tokens", `[b]`, as `caption_nll` gives them.
    scale: exp of the learned log temperature's inverse.
    """
    total = scale.new_zeros(())
    terms: dict[str, Tensor] = {}
    chance: dict[str, float | Tensor] = {}
    if contrastive:
        pairs = clip_loss(features["image"], features["text"], scale)
        total, terms, chance = total + contrastive * pairs.total, pairs.terms, dict(pairs.chance)
    if captioning:
        caption = mean_of_all(features["nll"], features["tokens"])
        total, terms, chance = total + captioning * caption, terms | {"caption": caption}, chance | {"caption": math.log(vocab_size)}
    return Losses(total, terms, chance)


def caption_nll(logits: Tensor, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each text in nats, summed over its tokens `[B]`, and the number of tokens `[B]`, end token included.

    logits `[B, T - 1, V]` predict `ids[:, 1:]`; `real` `[B, T]` is False for padding, which is ignored.
    """
    counted = real[:, 1:]
    each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(counted)
    return torch.where(counted, each, 0.0).sum(dim=1), counted.sum(dim=1)
