"""SigLIP's objective: a binary classification of every pair in the batch (equation 1 and algorithm 1 of the paper)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import Losses
from models.shared.distributed import pass_on, ranks

ROWS = 1024  # images whose logits with a chunk of texts exist at a time


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Losses:
    """-1/B sum_ij log sigmoid(z_ij (scale x_i . y_j + bias)), z = +1 for pairs and -1 for all others.

    image, text: L2-normalised features of this rank's pairs `[b, D]`. The bias enters with a plus sign: the displayed
    equation of the paper has the sign wrong, its algorithm 1 is right. The sum is divided by B, not B^2.
    The texts pass round all ranks in chunks of b (section 3.3), so that a rank never holds more than two chunks and `ROWS` x b logits.
    """
    if ranks() > 1 or len(image) > ROWS:
        total, positive, negative = _InPieces.apply(image, text, scale, bias)
    else:
        positive, negative = _of_piece(image, text, scale, bias, first=0)
        total = positive + negative
    return Losses(total, {"positive": positive, "negative": negative}, {"total": at_chance(ranks() * len(image))})


def _of_piece(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, first: int | None) -> tuple[Tensor, Tensor]:
    """The sums over positive and negative pairs of r images with a chunk of b texts, divided by b. The i-th image's own text is number
    `first` + i; None: all texts are another rank's."""
    r, b = len(image), len(text)
    logits = scale * image @ text.T + bias  # [r, b]
    if first is None:
        losses = -F.logsigmoid(-logits)
        return losses.new_zeros(()), losses.flatten().sum() / b
    own = torch.arange(first, first + r, device=image.device)[:, None] == torch.arange(b, device=image.device)
    losses = -F.logsigmoid((2 * own.to(logits.dtype) - 1) * logits)
    square = losses[:, first : first + r].contiguous()  # rows and columns by place: selecting by a mask would make a GPU's host wait
    others = square.flatten()[1:].view(r - 1, r + 1)[:, :-1].flatten().sum()
    beside = losses[:, :first].sum() + losses[:, first + r :].sum()
    return square.diagonal().contiguous().sum() / b, (others + beside) / b


class _InPieces(torch.autograd.Function):
    """The total and both terms of this rank's images with the texts of all ranks. Only the total has gradients.

    They are computed with each piece's loss: kept for later, the logits of all pieces would take memory in proportion to the square of the
    batch. A chunk's gradient travels with it, and comes home complete.
    """

    @staticmethod
    def forward(ctx, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        terms = [image.new_zeros(()), image.new_zeros(())]
        gradients = [torch.zeros_like(each) for each in (image, text, scale, bias)]
        for hop in range(ranks()):
            for first in range(0, len(image), ROWS):
                rows = slice(first, first + ROWS)
                with torch.enable_grad():
                    leaves = [each.detach().requires_grad_() for each in (image[rows], text, scale, bias)]
                    found = _of_piece(*leaves, first=None if hop else first)
                    further = torch.autograd.grad(found[0] + found[1], leaves)
                terms = [term + each.detach() for term, each in zip(terms, found, strict=True)]
                for gradient, each in zip((gradients[0][rows], *gradients[1:]), further, strict=True):
                    gradient += each
            if ranks() > 1:
                text, gradients[1] = pass_on(torch.stack([text, gradients[1]]))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*terms)
        return terms[0] + terms[1], terms[0], terms[1]

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        return tuple(grad * each for each in ctx.saved_tensors)


def at_chance(batch: int) -> float:
    """The loss of the best constant logit, given a share of 1 / B matching pairs. About ln B + 1."""
    others = batch - 1
    return math.log(batch) + (others * math.log(batch / others) if others else 0.0)
