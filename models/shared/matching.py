"""Image-text matching with hard negatives: wrong pairs with high similarity (ALBEF, arXiv 2107.07651, section 3.2), and foils.

BLIP-2 and MaskVLM match this way, each with its own logit of a pair. FLAVA matches, too, but against foils and captions of other samples
that its `collate` draws before anything is encoded: a hard negative is chosen by the features of the step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Foil, Sample

CHANCE = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3  # loss of saying "one in three matches", which is true


def matching_loss(logits: Tensor, positives: int) -> Tensor:
    """Mean cross-entropy of logits `[N, 2]`; class 1 is "match", which holds for the first `positives` pairs only."""
    right = (torch.arange(len(logits), device=logits.device) < positives).long()
    return F.cross_entropy(logits.float(), right)


def hard_negatives(similarity: Tensor, captions: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """For each image another pair's text, and for each text another pair's image: indices `[B]` each.

    similarity: scaled, `[image, text]`, among this rank's pairs; the draw is proportional to its softmax.
    captions: token ids `[B, T]`; a text with the same words is no negative, unless there is no other. They also seed the draw unless
    a generator is given: a resumed run draws the same.
    """
    generator = generator or torch.Generator().manual_seed(int(captions.sum()))
    with torch.no_grad():
        same = (captions[:, None] == captions[None]).all(dim=-1)
        itself = torch.eye(len(same), dtype=torch.bool, device=same.device)
        allowed = ~same | same.all(dim=1, keepdim=True) & ~itself
        if len(same) == 1:
            allowed = torch.ones_like(allowed)  # a pair alone has no negative but itself
        draws = []
        for logits in (similarity, similarity.T):
            weights = logits.float().masked_fill(~allowed, float("-inf")).softmax(dim=1)
            draws.append(torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(captions.device))
    return draws[0], draws[1]


def draw_foil(sample: Sample, rng: np.random.Generator, *, swaps: float) -> Foil | None:
    """One of the sample's foils, with the true caption that it was made from; None where it has none.

    Use the foil as the negative and its caption as the positive: foils have a wording of their own, and a matching head that
    recognises it need not look at the picture. `swaps` is the share, where a sample has both, of foils that exchange words of the
    caption (kinds such as "swap_attribute"), because negatives from the batch hardly ever have the same words. The others replace
    one.
    """
    exchanged = [foil for foil in sample.foils if foil.kind.startswith("swap")]
    others = [foil for foil in sample.foils if not foil.kind.startswith("swap")]
    found = exchanged if not others or (exchanged and rng.random() < swaps) else others
    return found[int(rng.integers(len(found)))] if found else None
