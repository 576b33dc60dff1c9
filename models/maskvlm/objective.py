"""MaskVLM's losses (section 3.2 of the paper): contrast, matching with hard negatives, masked words, masked pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip.objective import clip_loss
from models.layers import Losses
from models.masking import UNSEEN, patches_to_pixels

MATCHING_CHANCE = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3)  # of saying "one in three matches"


def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of the unmasked encoders' features."""
    return clip_loss(image, text, scale).total


def hard_negatives(image: Tensor, text: Tensor, scale: Tensor, captions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each image another pair's text, and for each text another pair's image: indices `[B]` each.

    Drawn with the probabilities that the contrast gives them (ALBEF, arXiv 2107.07651, section 3.2), among this rank's pairs.
    `captions` `[B, T]` are the token ids: a text with the same words is no negative, unless there is no other.
    """
    with torch.no_grad():
        similarity = (scale * image @ text.T).float()  # [B, B]
        same = (captions[:, None] == captions[None]).all(dim=-1)
        allowed = ~same | same.all(dim=1, keepdim=True) & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        if len(similarity) == 1:
            allowed = torch.ones_like(allowed)  # a pair alone has no negative but itself
        texts = similarity.masked_fill(~allowed, float("-inf")).softmax(dim=1)
        images = similarity.T.masked_fill(~allowed, float("-inf")).softmax(dim=1)
        draw = [torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(image.device) for weights in (texts, images)]
    return draw[0], draw[1]


def masked_pixels(predicted: Tensor, pixels: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error of the hidden patches' normalised RGB (SimMIM); visible ones count nothing.

    predicted, pixels `[B, 3, S, S]`; hidden `[B, N]`.
    """
    squares = patches_to_pixels(hidden, pixels.shape[-1])
    return ((predicted.float() - pixels).abs() * squares).sum() / (3 * squares.sum()).clamp(min=1)


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the hidden tokens; logits `[B, T, V]`, labels `[B, T]`, `UNSEEN` where nothing is asked. 0 without any."""
    asked = labels != UNSEEN
    return F.cross_entropy(logits[asked].float(), labels[asked], reduction="sum") / asked.sum().clamp(min=1)


def combine(terms: dict[str, Tensor], weights: dict[str, float], chance: dict[str, float]) -> Losses:
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return Losses(total, terms, {name: value for name, value in chance.items() if name in terms})
