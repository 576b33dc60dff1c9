"""CM3leon's objective: next-token cross-entropy over the whole rearranged sequence (section 2.2 of arXiv 2309.02591)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cm3leon.sequence import Kind
from models.contract import Losses
from models.shared import device
from models.shared.distributed import gather


@dataclass(frozen=True)
class Weights:
    """Weights of tokens in the loss, by `Kind`. The paper's are all 1: retrieved documents, prompts and pictures count as much as
    targets."""

    prompt: float = 1.0
    written: float = 1.0
    drawn: float = 1.0
    unconditional: float = 1.0
    objects: float = 0.0  # added to an image token's weight, times the share of its cell that objects' boxes cover

    def of(self, kinds: Tensor, covered: Tensor) -> Tensor:
        """Weights of tokens: kinds int64 `[B, T]`, covered `[B, T]` in [0, 1] (0 for text)."""
        table = {Kind.PROMPT: self.prompt, Kind.WRITTEN: self.written, Kind.DRAWN: self.drawn, Kind.UNCONDITIONAL: self.unconditional}
        weights = torch.tensor([table.get(kind, 0.0) for kind in Kind], device=kinds.device)[kinds]
        return weights * (1 + self.objects * covered)


PIECE = 16_384  # positions whose logits are computed at once
PIECE_ON_CPU = 512  # rows that fit into the CPU's cache, which makes log-softmax and its gradient faster


def token_losses(
    states: Tensor,
    targets: Tensor,
    kinds: Tensor,
    weights: Tensor,
    *,
    logits: Callable[[Tensor], Tensor],
    image_from: int,
    z_loss: float,
) -> dict[str, Tensor]:
    """What `cm3_loss` needs of each sequence, all `[B]`. `logits` turns the decoder's states `[B, T, D]` into scores of the next tokens,
    which are `targets` `[B, T]`; ids from `image_from` on are image tokens. Sums, not means: sequences differ in how many
    tokens they have."""
    found = []
    piece = PIECE_ON_CPU if device.host_knows(states) else PIECE
    if torch.compiler.is_compiling():
        piece = targets.numel()  # or it would compile anew for every number of pieces
    for some, wanted in zip(states.flatten(0, 1).split(piece), targets.flatten().split(piece), strict=True):
        scores = logits(some).float()
        log_z = scores.logsumexp(dim=-1) if z_loss else None
        found.append((F.cross_entropy(scores, wanted, reduction="none"), log_z))
    losses = torch.cat([loss for loss, _ in found]).view(targets.shape)
    known = kinds != Kind.NOTHING
    image = known & (targets >= image_from)
    sums = {
        "loss": (losses * weights).sum(dim=1),
        "weight": weights.sum(dim=1),
        "text_loss": (losses * (known & ~image)).sum(dim=1).detach(),
        "text_tokens": (known & ~image).sum(dim=1).float(),
        "image_loss": (losses * image).sum(dim=1).detach(),
        "image_tokens": image.sum(dim=1).float(),
    }
    written = known & ~image & (kinds == Kind.WRITTEN)
    drawn = image & (kinds == Kind.DRAWN)
    sums |= {"written_loss": (losses * written).sum(dim=1).detach(), "written_tokens": written.sum(dim=1).float()}
    sums |= {"drawn_loss": (losses * drawn).sum(dim=1).detach(), "drawn_tokens": drawn.sum(dim=1).float()}
    if z_loss:
        log_zs = torch.cat([log_z for _, log_z in found if log_z is not None]).view(targets.shape)
        sums["z"] = (z_loss * log_zs.square() * weights).sum(dim=1)
    return sums


def cm3_loss(sums: dict[str, Tensor], *, vocabulary: int) -> Losses:
    """Mean over all weighted tokens of all ranks, in nats per token.

    Terms: `text` and `image` are unweighted means over the batch's tokens, `written` and `drawn` those of text after a picture and
    of pictures after a text. z-loss (Chameleon, section 2.3) is 1e-5 log^2 Z, and keeps the logits' scale from drifting.
    """
    total = sums["loss"].sum() / _mean_over_ranks(sums["weight"])
    terms = {}
    for name in ("text", "image", "written", "drawn"):
        terms[name] = sums[f"{name}_loss"].sum() / _mean_over_ranks(sums[f"{name}_tokens"]).clamp(min=1)
    if "z" in sums:
        terms["z"] = sums["z"].sum() / _mean_over_ranks(sums["weight"])
        total = total + terms["z"]
    chance = {"text": math.log(vocabulary), "image": math.log(vocabulary)}
    return Losses(total, terms, chance)


def _mean_over_ranks(counts: Tensor) -> Tensor:
    """A rank's loss is divided by the ranks' mean count, so that the mean of their losses is the mean over all tokens."""
    everywhere = gather(counts)
    return everywhere.sum() * len(counts) / len(everywhere)
