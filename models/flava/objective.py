"""FLAVA's losses (section 3.2 of the paper): contrastive, matching and masked prediction losses, all with weight 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contract import IGNORE_INDEX, Losses
from models.flava.collate import PAIR
from models.shared import device
from models.shared.distributed import gather, mean_of_all, rank

PREDICTIONS = ("mim", "mlm", "mmm_image", "mmm_text", "vqa")


def flava_loss(
    features: dict[str, Tensor], scale: Tensor, weights: dict[str, float], *, codes: int, words: int, answers: int = 0
) -> Losses:
    """features: "image", "text" L2-normalised `[b, D]`; "match_logits" `[b, 2]`; "kind", "match" `[b]`; for each prediction its
    "<term>_nll" and "<term>_n" `[b]`, summed log-likelihoods (negative) and their number or weight. scale: exp of the logit
    scale. Terms of weight 0 are omitted, and so are answers without questions.

    Mismatched pairs only count in the matching loss, and as columns of the contrastive loss. A batch without matching pairs has
    no other pair losses.
    """
    pair = features["kind"] == PAIR
    positive = pair & features["match"]
    terms: dict[str, Tensor] = {}
    if weights["contrastive"]:
        terms["contrastive"] = contrastive(features["image"], features["text"], scale, pair, positive)
    if weights["itm"]:
        wrong = F.cross_entropy(features["match_logits"].float(), features["match"].long(), reduction="none")
        terms["itm"] = mean_of_all(wrong * pair, pair.long())
    for term in PREDICTIONS:
        if weights[term] and f"{term}_nll" in features:
            terms[term] = mean_of_all(features[f"{term}_nll"], features[f"{term}_n"])
    chance: dict[str, float | Tensor] = {
        "contrastive": gather(pair.long()).sum().clamp(min=2).log(),
        "itm": _entropy(gather((pair & features["match"]).long()).sum(), gather(pair.long()).sum()),
        "mim": math.log(codes),
        "mmm_image": math.log(codes),
        "mlm": math.log(words),
        "mmm_text": math.log(words),
        "vqa": math.log(max(1, answers)),
    }
    return Losses.weighted(terms, weights, chance)


def contrastive(image: Tensor, text: Tensor, scale: Tensor, pair: Tensor, positive: Tensor) -> Tensor:
    """Global contrastive loss: rows are this rank's matching pairs, columns all ranks' pairs, gradients reach them all."""
    columns = gather(pair.long()).bool()
    right = rank() * len(image) + torch.arange(len(image), device=image.device)
    losses = []
    for mine, others in ((image, text), (text, image)):
        logits = (scale * mine @ gather(others).T).masked_fill(~columns, torch.finfo(torch.float32).min)  # [b, B]
        if not device.host_knows(positive):
            each = F.cross_entropy(logits, right.masked_fill(~positive, IGNORE_INDEX), reduction="none")
            losses.append(mean_of_all(each, positive.long()))
            continue
        each = F.cross_entropy(logits[positive], right[positive], reduction="none")
        losses.append(mean_of_all(torch.zeros_like(right, dtype=each.dtype).masked_scatter(positive, each), positive.long()))
    return (losses[0] + losses[1]) / 2


def _entropy(positives: Tensor, total: Tensor) -> Tensor:
    """The matching loss of predicting the share of matching pairs; ln 2 where all pairs match or none."""
    share = positives / total.clamp(min=1)
    entropy = -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))
    return torch.where(entropy > 0, entropy, math.log(2))
