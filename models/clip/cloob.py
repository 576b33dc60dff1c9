"""CLOOB: CLIP whose embeddings are replaced by what a Hopfield memory retrieves for them, and contrasted by InfoLOOB (Fürst et al.,
2021, arXiv 2110.11316).

Only the objective differs from CLIP's, and it has no parameters. Deviations: repeated captions of a batch are not each other's negatives
(the paper's data have few, small vocabularies many); the two losses exchange the retrieved rows of all ranks with exact gradients, where
the authors' code gathers without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip.model import CLIP, CLIPConfig
from models.contract import Losses
from models.shared.distributed import gather, mean_of_all, rank
from models.shared.text import Tokenizer


@dataclass(frozen=True)
class CLOOBConfig(CLIPConfig):
    temperature: float = 1 / 30  # tau, fixed
    beta: float = 8.0  # inverse temperature of the retrieval
    retrieval: bool = True  # False: contrast the embeddings themselves
    leave_one_out: bool = True  # InfoLOOB; False: InfoNCE, whose denominator has the positive, too
    repeats_are_negatives: bool = False  # also pairs with the same caption, as in the authors' code


class CLOOB(CLIP):
    Config = CLOOBConfig
    config: CLOOBConfig

    def __init__(self, config: CLOOBConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.logit_scale.requires_grad_(False)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's features, and the captions' token ids `[B, context]`, by which the objective recognises repeated ones."""
        missing = self.config.context - batch["ids"].shape[1]
        return super().encode(batch) | {"ids": F.pad(batch["ids"], (0, missing), value=self.tokenizer.pad)}

    def objective(self, features: dict[str, Tensor]) -> Losses:
        image, text, config = features["image"], features["text"], self.config
        images, texts = gather(image), gather(text)  # the memories
        if config.retrieval:
            of_images = retrieve(images, image, config.beta), gather(retrieve(images, text, config.beta))  # U_x, U_y
            of_texts = retrieve(texts, text, config.beta), gather(retrieve(texts, image, config.beta))  # V_y, V_x
        else:
            of_images, of_texts = (image, texts), (text, images)
        negatives = others(features["ids"], same=config.repeats_are_negatives)
        found = {
            name: contrast(anchors, candidates, negatives, tau=config.temperature, leave_one_out=config.leave_one_out)
            for name, (anchors, candidates) in {"image_to_text": of_images, "text_to_image": of_texts}.items()
        }
        terms = {name: loss for name, (loss, _) in found.items()}
        chance = {name: at_chance for name, (_, at_chance) in found.items()}
        total = terms["image_to_text"] + terms["text_to_image"]  # the sum of both, not their mean
        return Losses(total, terms, chance | {"total": chance["image_to_text"] + chance["text_to_image"]})


def retrieve(memory: Tensor, queries: Tensor, beta: float) -> Tensor:
    """What a modern Hopfield network with the patterns `[N, D]` retrieves for queries `[b, D]`, L2-normalised (equations 1 and 2)."""
    return F.normalize((beta * queries @ memory.T).softmax(dim=1) @ memory, dim=1)


def contrast(anchors: Tensor, candidates: Tensor, negatives: Tensor, *, tau: float, leave_one_out: bool) -> tuple[Tensor, Tensor]:
    """InfoLOOB (equation 3) times tau, and its value at chance: tau times the mean of -a_i . b_i / tau + ln sum_j exp(a_i . b_j / tau),
    where j runs over the negatives and, without `leave_one_out`, over the pair itself (InfoNCE).

    anchors: rows of this rank `[b, D]`; candidates: rows of all ranks `[N, D]`; negatives: bool `[b, N]`. At chance, with all logits
    equal, an anchor with n terms in its sum has ln n. The loss has no lower bound at 0. An anchor without negatives does not count.
    """
    logits = anchors @ candidates.T / tau  # [b, N]
    own = _own(logits)
    counted = negatives.any(dim=1)
    summed = negatives if leave_one_out else negatives | own
    summed = summed | ~counted[:, None]  # a row without any would be infinite, and its gradient NaN
    losses = logits.masked_fill(~summed, float("-inf")).logsumexp(dim=1) - (logits * own).sum(dim=1)
    weights = counted.to(losses.dtype)
    return tau * mean_of_all(losses * weights, weights), tau * mean_of_all(summed.sum(dim=1).to(losses.dtype).log() * weights, weights)


def others(ids: Tensor, *, same: bool) -> Tensor:
    """bool `[b, N]`: whether a pair of any rank is a negative for this rank's pairs with captions `ids` `[b, T]`; those with the `same`
    caption are if asked for. Raises ValueError for a batch of a single pair, which has no negatives."""
    everywhere = gather(ids)
    if len(everywhere) == 1:
        raise ValueError("CLOOB contrasts a pair with the others of its batch, but this batch has 1 pair: set --batch to 2 or more")
    if same:
        return ~_own(ids[:, :1].expand(-1, len(everywhere)))
    return (ids[:, None] != everywhere[None]).any(dim=-1)


def _own(rows: Tensor) -> Tensor:
    """bool `[b, N]`: the place of each row of this rank among the rows of all ranks."""
    places = rank() * len(rows) + torch.arange(len(rows), device=rows.device)
    return places[:, None] == torch.arange(rows.shape[1], device=rows.device)
