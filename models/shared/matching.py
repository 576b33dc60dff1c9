"""Image-text matching with hard negatives (wrong pairs with high similarity: ALBEF, arXiv 2107.07651, section 3.2) and with foils.

BLIP-2 and MaskVLM use hard negatives, which are selected by the features of the current step; each computes the matching logits in its own
way. FLAVA's negatives are foils and captions of other samples, drawn by its `collate` before anything is encoded.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Foil, Sample
from models.shared import device

CHANCE = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3  # loss of predicting probability 1/3, the true share of matches


def matching_loss(logits: Tensor, positives: int) -> Tensor:
    """Mean cross-entropy of logits `[N, 2]`, where class 1 is "match" and only the first `positives` pairs match."""
    right = (torch.arange(len(logits), device=logits.device) < positives).long()
    return F.cross_entropy(logits.float(), right)


def hard_negatives(similarity: Tensor, captions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw a text of another pair for each image, and an image of another pair for each text: two index tensors `[B]`.

    similarity: scaled similarities `[image, text]` of this rank's pairs; draws are proportional to their softmax.
    captions: token ids `[B, T]`. An identical caption is not a negative, unless there is no other. Without a generator the draw depends on
    them, so that a resumed run draws the same negatives.
    """
    known = device.host_knows(captions)
    if known:
        generator = generator or torch.Generator().manual_seed(int(captions.sum()))
    with torch.no_grad():
        same = (captions[:, None] == captions[None]).all(dim=-1)
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        allowed = ~same | same.all(dim=1, keepdim=True) & ~itself
        if len(same) == 1:
            allowed = torch.ones_like(allowed)  # a single pair can only be its own negative
        draws = []
        for number, logits in enumerate((similarity, similarity.T)):
            weights = logits.float().masked_fill(~allowed, float("-inf")).softmax(dim=1)
            draws.append(torch.multinomial(weights, 1, generator=generator)[:, 0] if known else drawn(weights, luck(captions, number)))
    return draws[0], draws[1]


def drawn(weights: Tensor, luck: Tensor) -> Tensor:
    """An index for each row of weights `[B, N]`, where their cumulative sum passes luck `[B]` in [0, 1): as likely as its weight."""
    passed = weights.cumsum(dim=1)
    return (passed <= luck[:, None] * passed[:, -1:]).sum(dim=1).clamp(max=weights.shape[1] - 1)


def luck(captions: Tensor, number: int) -> Tensor:
    """For each row of token ids `[B, T]` a float32 in [0, 1), for each number another: a hash, made where the ids are. A generator would
    have to be seeded by the host, which would wait for them."""
    places = torch.arange(captions.shape[1], device=captions.device)
    mixed = ((captions + 1) * (2_654_435_761 * places + 40_503) + 97 * number).sum(dim=1)
    for shift, factor in ((15, 2_246_822_519), (13, 3_266_489_917)):
        mixed = (mixed ^ (mixed >> shift)) * factor  # wraps around
    return ((mixed >> 20) & 0xFFFFFF).float() / (1 << 24)


def draw_foil(sample: Sample, rng: np.random.Generator, *, swaps: float) -> Foil | None:
    """Draw one of the sample's foils, which comes with its original caption; None if the sample has no foils.

    Use the foil as the negative and its original caption as the positive: foils have a distinctive wording, and with any other
    positive a matching head could recognise them without looking at the image. `swaps` is the probability of a foil that swaps
    words of the caption (kinds such as "swap_attribute") rather than replacing one, if the sample has both kinds. Swaps matter
    because negatives from the batch hardly ever consist of the same words.
    """
    exchanged = [foil for foil in sample.foils if foil.kind.startswith("swap")]
    others = [foil for foil in sample.foils if not foil.kind.startswith("swap")]
    found = exchanged if not others or (exchanged and rng.random() < swaps) else others
    return found[int(rng.integers(len(found)))] if found else None
