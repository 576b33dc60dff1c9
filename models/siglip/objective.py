"""SigLIP's objective: a binary classification of every pair in the batch (equation 1 and algorithm 1 of the paper)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import Losses
from models.shared.distributed import gather, rank


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Losses:
    """-1/B sum_ij log sigmoid(z_ij (scale x_i . y_j + bias)), z = +1 for pairs and -1 for all others.

    image, text: L2-normalised features of this rank's pairs `[b, D]`. The bias enters with a plus sign: the displayed
    equation of the paper has the sign wrong, its algorithm 1 is right. The sum is divided by B, not B^2.
    The texts of the other ranks come in chunks of b, so that no more than b x b logits exist at once (section 3.3).
    """
    b = len(image)
    own = 2 * torch.eye(b, device=image.device) - 1
    chunks = gather(text).split(b)
    positive, negative = image.new_zeros(()), image.new_zeros(())
    for index, chunk in enumerate(chunks):
        z = own if index == rank() else -torch.ones_like(own)
        losses = -F.logsigmoid(z * (scale * image @ chunk.T + bias))  # [b, b]
        if index == rank():  # rows and columns by place: selecting by a mask would make a GPU's host wait
            positive = positive + losses.diagonal().contiguous().sum() / b
            losses = losses.flatten()[1:].view(b - 1, b + 1)[:, :-1]  # all but the diagonal
        negative = negative + losses.flatten().sum() / b
    return Losses(positive + negative, {"positive": positive, "negative": negative}, {"total": at_chance(len(chunks) * b)})


def at_chance(batch: int) -> float:
    """The loss of the best constant logit, given a share of 1 / B matching pairs. About ln B + 1."""
    others = batch - 1
    return math.log(batch) + (others * math.log(batch / others) if others else 0.0)
