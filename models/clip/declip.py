"""DeCLIP: CLIP with self-supervision in each modality, two views of both, and nearest-neighbour texts (Li et al., 2021, arXiv 2110.05208).

Deviations: the second text is another caption of the picture, or for want of one the caption without its stop words (the paper swaps and
deletes words, or exchanges them by synonyms, which makes captions false), and views keep captions true (views.py). At `tiny` and `small`
the first view is CLIP's, and only the second one is augmented, with larger crops; at `tiny` the latter has a quarter of its size. A caption
that comes twice in a batch is no negative of itself among the neighbours. The text tower reads masked words from left to right, as in the
authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require
from data.sample import Sample
from models.clip.model import CLIP
from models.clip.objective import info_nce
from models.clip.projector import projector
from models.clip.slip import ViewsConfig, accept_any_size, see
from models.clip.views import MOST, View, draw_captions, other_captions, without_stop_words
from models.contract import IGNORE_INDEX, Losses
from models.shared import device
from models.shared.collate import PairCollate
from models.shared.distributed import gather, mean_of_all
from models.shared.images import ImageTransform
from models.shared.masking import TokenMasking
from models.shared.text import Tokenizer, until_end

LEAST_SCALE = math.exp(3.0)  # the paper's code clamps the scale's logarithm to 3 to 6, and the scale itself to 100
MOCO = (0.2, 1.0)  # share of a picture that MoCo v2's crops keep at least


@dataclass(frozen=True)
class Weights:
    """Of the losses. A term of weight 0 is not computed."""

    clip: float = 0.4
    nn: float = 0.2
    simsiam: float = 0.2
    mlm: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"weights.{name}", value, "0 or more")
        require(self.clip > 0, "weights.clip", self.clip, "a number above 0: without it no picture meets a text")


@dataclass(frozen=True)
class DeCLIPConfig(ViewsConfig):
    view: View = field(default_factory=lambda: View(area=MOCO))
    first_view: bool = True  # augmented like the second one; else CLIP's
    hidden: int = 1024  # of SimSiam's projector, and its output
    narrow: int = 512  # of SimSiam's predictor
    masking: TokenMasking = field(default_factory=TokenMasking)
    bank: int = 1 << 16  # texts that are kept as neighbours
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bank >= 1, "bank", self.bank, "1 text or more")
        require(
            self.max_scale >= LEAST_SCALE, "max_scale", self.max_scale, f"at least {LEAST_SCALE:.1f}, which the scale never falls below"
        )

    @classmethod
    def tiny(cls) -> DeCLIPConfig:
        return replace(super().tiny(), view=View(size=32, area=MOST), first_view=False, hidden=256, narrow=64, bank=4096)

    @classmethod
    def small(cls) -> DeCLIPConfig:
        return replace(super().small(), view=View(size=128, area=MOST), first_view=False, hidden=512, narrow=256, bank=1 << 14)

    @classmethod
    def paper(cls) -> DeCLIPConfig:
        """CLIP's ViT-B/32: 180.3 M parameters in training, CLIP's afterwards."""
        return cls()


@dataclass(frozen=True)
class MultiView(PairCollate):
    """Two views of a picture, uint8 "pixels" and "view2"; two texts, "ids" and "ids2" `[B, T]`; the first one with words masked,
    "masked_ids" and "labels" `[B, T]`. Without a generator the first view and text are CLIP's, and all else is drawn with seed 0."""

    view: View = field(default_factory=View)
    first_view: bool = True
    masking: TokenMasking = field(default_factory=TokenMasking)
    mask: int = 0

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        which = draw_captions(samples, rng)  # drawn first, and then the crops: the same pairs as CLIP's
        draw = rng or np.random.default_rng(0)
        if self.first_view and rng is not None:
            pixels = replace(self.view, size=self.transform.size).batch(samples, rng)
        else:
            pixels = self.images([sample.image for sample in samples], rng)
        texts = [sample.captions[used] for sample, used in zip(samples, which, strict=True)]
        second = [self._second(sample, used, draw) for sample, used in zip(samples, which, strict=True)]
        ids, masked, labels = self.masking(self.tokenizer, texts, self.context, mask=self.mask, rng=draw)
        ids2 = self.texts(second)
        longest = max(ids.shape[1], ids2.shape[1])
        return {
            "pixels": pixels,
            "view2": self.view.batch(samples, draw),
            "ids": _wider(ids, longest, self.tokenizer.pad),
            "ids2": _wider(ids2, longest, self.tokenizer.pad),
            "masked_ids": _wider(masked, longest, self.tokenizer.pad),
            "labels": _wider(labels, longest, IGNORE_INDEX),
        }

    @staticmethod
    def _second(sample: Sample, used: int, rng: np.random.Generator) -> str:
        (other,) = other_captions(sample, used, 1, rng)
        return other if other != sample.captions[used] else without_stop_words(other)


def _wider(rows: Tensor, width: int, value: int) -> Tensor:
    return F.pad(rows, (0, width - rows.shape[1]), value=value)


class DeCLIP(CLIP):
    Config = DeCLIPConfig
    config: DeCLIPConfig
    bank: Tensor
    bank_captions: Tensor
    bank_seen: Tensor

    def __init__(self, config: DeCLIPConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        weights, mask = config.weights, tokenizer.mask
        self.collate = MultiView(
            ImageTransform(config.vision.image_size, config.random_crop),
            tokenizer,
            config.context,
            view=config.view,
            first_view=config.first_view,
            masking=config.masking,
            mask=config.vocab_size if mask is None else mask,
        )
        if weights.simsiam:
            self.simsiam_projector = projector(config.embed_dim, config.hidden, config.hidden, config.hidden, normed=True)
            self.simsiam_predictor = projector(config.hidden, config.narrow, config.hidden)
        if weights.mlm:
            self.word_head = nn.Linear(config.text.width, config.vocab_size)
            if mask is None:  # a tokenizer without one gets one more row
                known = self.text.tokens.weight.data
                more = torch.cat([known, nn.init.normal_(torch.empty_like(known[:1]), std=0.02)])
                self.text.tokens = nn.Embedding(len(more), more.shape[1], _weight=more)
        if weights.nn:
            self.register_buffer("bank", F.normalize(torch.randn(config.bank, config.embed_dim), dim=-1))
            self.register_buffer("bank_captions", torch.zeros(config.bank, dtype=torch.int64))
            self.register_buffer("bank_seen", torch.tensor(0))  # texts that have entered so far
        self.entering: tuple[Tensor, Tensor] | None = None
        accept_any_size(self)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both views' embeddings, not normalised, and both texts', normalised, float32 `[B, embed_dim]`; a number for each caption `[B]`;
        and for masked words the sum of their losses and how many they are, `[B]` each."""
        views = (batch["pixels"], batch["view2"])
        together = views[0].shape == views[1].shape
        one, other = see(self, *views) if together else (see(self, view)[0] for view in views)
        first, second = self.text(torch.cat([batch["ids"], batch["ids2"]])).chunk(2)
        features = {"image1": self.visual_projection(one).float(), "image2": self.visual_projection(other).float()}
        features |= {
            f"text{place}": F.normalize(self.text_projection(text).float(), dim=-1) for place, text in enumerate((first, second), 1)
        }
        features |= {f"caption{place}": self._numbers(batch[ids]) for place, ids in enumerate(("ids", "ids2"), 1)}
        if self.config.weights.mlm:
            states = self.text.norm(self.text.states(batch["masked_ids"]))
            features["mlm"], features["masked"] = masked_words(self.word_head, states, batch["labels"])
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """L = .4 L_CLIP + .2 L_NN + .2 L_SimSiam + .2 L_MLM; L_CLIP and L_NN are means over two views and two texts."""
        weights, scale = self.config.weights, self.logit_scale.exp()
        images = [F.normalize(features[name], dim=-1) for name in ("image1", "image2")]
        texts = [features["text1"], features["text2"]]
        all_images, all_texts = [gather(each) for each in images], [gather(each) for each in texts]
        terms = {
            "image_to_text": torch.stack([info_nce(image, text, scale) for image in images for text in all_texts]).mean(),
            "text_to_image": torch.stack([info_nce(text, image, scale) for text in texts for image in all_images]).mean(),
        }
        at_chance = math.log(len(all_texts[0]))
        chance: dict[str, float] = dict.fromkeys((*terms, "nn"), at_chance) | {"simsiam": 0.0, "mlm": math.log(self.config.vocab_size)}
        if weights.nn:
            found = torch.stack([self._by_neighbours(images, text, scale) for text in texts]).mean()
            # Until the bank has turned over once its entries are random: the term stays at chance, without a gradient.
            terms["nn"] = torch.where(self.bank_seen >= len(self.bank), found, torch.full_like(found, at_chance))
            if self.training:
                captions = [gather(features[name]) for name in ("caption1", "caption2")]
                self.entering = torch.cat(all_texts).detach(), torch.cat(captions)
        if weights.simsiam:
            terms["simsiam"] = self._simsiam(features["image1"], features["image2"])
        if weights.mlm:
            terms["mlm"] = mean_of_all(features["mlm"], features["masked"])
        factors = {"image_to_text": weights.clip / 2, "text_to_image": weights.clip / 2, **vars(weights)}
        return Losses.weighted(terms, factors, chance)

    def _by_neighbours(self, images: list[Tensor], text: Tensor, scale: Tensor) -> Tensor:
        """InfoNCE from each view to the most similar text of the bank that each text of the batch has: a mean over views."""
        nearest = (text.detach() @ self.bank.T).argmax(dim=1)
        neighbours, captions = gather(self.bank[nearest]), gather(self.bank_captions[nearest])
        alike = self.bank_captions[nearest][:, None] == captions  # texts that have the same neighbour, or the same caption as one
        return torch.stack([info_nce(image, neighbours, scale, alike=alike) for image in images]).mean()

    def _simsiam(self, one: Tensor, other: Tensor) -> Tensor:
        """SimSiam (arXiv 2011.10566): the negative cosine of one view's prediction and the other's projection, which has no gradient."""
        projections = [self.simsiam_projector(view) for view in (one, other)]
        predictions = [self.simsiam_predictor(each) for each in projections]
        pairs = zip(predictions, reversed(projections), strict=True)
        return -torch.stack([F.cosine_similarity(guess, target.detach(), dim=-1).mean() for guess, target in pairs]).mean()

    def _numbers(self, ids: Tensor) -> Tensor:
        """A number for each text `[B, T]`, by which equal texts are known, whatever their padding; never 0, that of an empty place."""
        places = torch.arange(ids.shape[1], device=ids.device)
        mixed = (ids + 1) * (2_654_435_761 * (places + 1) + 40_503)  # wraps around
        mixed = (mixed ^ (mixed >> 29)) * 3_266_489_917
        return (mixed * until_end(ids, self.tokenizer)).sum(dim=1) | 1

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the scale, and let the step's texts into the bank, the oldest out. Not in `objective`: the neighbours of a step are texts
        of steps before, and validation leaves the bank as it is."""
        self.logit_scale.clamp_(math.log(LEAST_SCALE), math.log(self.config.max_scale))
        if self.entering is None:
            return
        texts, captions = (each[-self.config.bank :] for each in self.entering)
        places = (self.bank_seen + torch.arange(len(texts), device=texts.device)) % len(self.bank)
        self.bank[places] = texts.nan_to_num(0.0)  # on a GPU a step that is not finite comes here, too
        self.bank_captions[places] = captions
        self.bank_seen += len(texts)
        self.entering = None


def masked_words(head: nn.Module, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row's masked words, summed, and how many they are, `[B]` each. states `[B, T, D]`, labels `[B, T]`."""
    asked = labels != IGNORE_INDEX
    if not device.host_knows(labels):
        logits = head(states).float()
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return each.view_as(labels).sum(dim=1), asked.sum(dim=1)
    each = F.cross_entropy(head(states[asked]).float(), labels[asked], reduction="none")
    return each.new_zeros(len(labels)).index_add(0, asked.nonzero()[:, 0], each), asked.sum(dim=1)
