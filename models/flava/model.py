"""FLAVA: one model for images, texts and both, from masked prediction, contrast and matching (Singh et al., 2022, arXiv 2112.04482).

Deviations: batches mix pairs, pictures and texts instead of drawing one data set a step (`Mixture`). `tiny` puts convolutions
before the image blocks, so that masked patches are blanked in the pixels, too, and has no class token: the mean of an image's
states stands for it. Its image encoder starts from one that is supervised by labels where `paper`'s starts from DINO's; its
discrete targets are the suite's own image tokenizer's instead of DALL-E's, four for each of its larger patches, of which those
inside of objects' boxes weigh more; some mismatched captions are foils.
Answers to questions are learned among the other tasks, so that one model keeps all its capabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.sample import Sample
from models.contract import IGNORE_INDEX, Losses, Model
from models.flava.blocks import Fusion, MatchingHead, PredictionHead, TextEncoder
from models.flava.collate import IMAGE, PAIR, QUESTION, TEXT, MaskedCollate, Mixture
from models.flava.objective import flava_loss
from models.shared import device
from models.shared.backbones import fetch_tower, freeze
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.masking import TokenMasking, block_mask
from models.shared.text import Tokenizer, layout, until_end
from models.shared.transformer import TransformerConfig
from models.shared.vision import TINY_TOWER, VisionConfig, image_states, patches_to_pixels, plain, vision_transformer
from models.vq import VQ, VQConfig

BASE = TransformerConfig(width=768, depth=12, heads=12, norm_eps=1e-12)


@dataclass(frozen=True)
class Weights:
    """Of the losses; the paper's are all 1 (section 3.2). A term of weight 0 is not computed."""

    contrastive: float = 1.0
    itm: float = 1.0
    mim: float = 1.0
    mlm: float = 1.0
    mmm_image: float = 1.0
    mmm_text: float = 1.0
    vqa: float = 1.0


@dataclass(frozen=True)
class FLAVAConfig:
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(width=768, depth=12, heads=12, norm_eps=1e-12))
    text: TransformerConfig = BASE
    fusion: TransformerConfig = field(default_factory=lambda: replace(BASE, depth=6))
    codebook: VQConfig = field(default_factory=VQConfig.dalle)
    image_weights: str = ""  # timm's published weights that `vision` starts from; "" for random ones
    embed_dim: int = 768  # of the contrast; the paper says 512, the released weights have 768
    context: int = 77
    vocab_size: int = 30_522
    weights: Weights = field(default_factory=Weights)
    unimodal: Mixture = field(default_factory=lambda: Mixture(pictures=0.5, texts=0.5))  # in the stage of this name
    mixture: Mixture = field(default_factory=lambda: Mixture(mismatched=0.1))  # in the stage "joint"; the released code's share
    vqa: Mixture = field(default_factory=lambda: Mixture(pictures=0.0, texts=0.0, questions=1.0))  # in the stage of this name
    most_answers: int = 0  # how many of the training set's answers the model may give; 0: it is not asked
    answers: tuple[str, ...] = ()  # these, most frequent first; filled in by `remember`
    object_weight: float = 0.0  # added to the weight 1 of codes inside of objects' boxes, by the share that is inside
    masked_patches: int = 75  # of 196, as BEiT
    masking: TokenMasking = field(default_factory=TokenMasking)
    temperature: float = 0.07  # initial
    max_scale: float = 100.0
    random_crop: float = 1.0
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    @classmethod
    def tiny(cls) -> FLAVAConfig:
        text = TransformerConfig(width=128, depth=2, heads=4, activation="relu")
        return cls(
            vision=TINY_TOWER,
            text=text,
            fusion=TransformerConfig(width=160, depth=2, heads=5, activation="relu"),
            codebook=VQConfig.coarse(),
            embed_dim=128,
            context=32,
            unimodal=Mixture(pictures=0.0, texts=1.0),
            mixture=Mixture(pictures=0.1, texts=0.1, mismatched=0.5, hard=0.6),
            vqa=Mixture(pictures=0.05, texts=0.05, questions=0.4, mismatched=0.5, hard=0.6),
            most_answers=3129,
            object_weight=3.0,
            weights=Weights(itm=2.0),
            masked_patches=6,
            masking=TokenMasking(whole_words=True),
        )

    @classmethod
    def small(cls) -> FLAVAConfig:
        """For 128 px pictures and one GPU."""
        return cls(
            vision=VisionConfig(width=384, depth=12, heads=6, image_size=128, patch_size=8),
            text=TransformerConfig(width=256, depth=6, heads=4),
            fusion=TransformerConfig(width=384, depth=4, heads=6),
            codebook=VQConfig.small(),
            embed_dim=256,
            mixture=Mixture(pictures=0.1, texts=0.1, mismatched=0.5, hard=0.5),
            vqa=Mixture(pictures=0.05, texts=0.05, questions=0.4, mismatched=0.5, hard=0.5),
            most_answers=3129,
            masked_patches=98,
            masking=TokenMasking(whole_words=True),
            random_crop=0.9,
        )

    @classmethod
    def paper(cls) -> FLAVAConfig:
        """Section 4.1: 241 M parameters in the three encoders. The image encoder starts from DINO's, the text encoder from masked words
        alone (appendix)."""
        return cls(image_weights="vit_base_patch16_224.dino", unimodal=Mixture(pictures=0.0, texts=1.0))


class FLAVA(Model):
    paradigm = "masking"
    Config = FLAVAConfig
    builds_on = ("vq",)
    score_kind = "matching head"

    def __init__(self, config: FLAVAConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        mask = tokenizer.mask
        self.mask_id = config.vocab_size if mask is None else mask  # a tokenizer without one gets one more row
        self.side = config.vision.image_size // config.vision.patch_size
        self.codebook = freeze(VQ(config.codebook))
        if not self.side or self.codebook.side % self.side:
            raise ValueError(
                f"every patch needs a square of whole codes: there are {self.side} x {self.side} patches and {self.codebook.side} x "
                f"{self.codebook.side} codes; choose vision.patch_size and codebook.network so that they agree"
            )
        each = (self.codebook.side // self.side) ** 2  # codes of a patch, 1 in the paper
        self.visual = plain(vision_transformer(config.vision), "FLAVA hides patches")
        self.mask_token = nn.Parameter(torch.empty(config.vision.width))
        self.text = TextEncoder(config.text, rows=config.vocab_size + (mask is None), context=config.context)
        self.fusion = Fusion(config.fusion, image_width=config.vision.width, text_width=config.text.width)
        self.image_projection = nn.Linear(config.vision.width, config.embed_dim)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.mim_head = PredictionHead(config.vision, each * self.codebook.size)
        self.mlm_head = PredictionHead(config.text, config.vocab_size)
        self.mmm_image_head = PredictionHead(config.fusion, each * self.codebook.size)
        self.mmm_text_head = PredictionHead(config.fusion, config.vocab_size)
        self.match_head = MatchingHead(config.fusion.width)
        nn.init.normal_(self.mask_token, std=0.02)
        self.collate = MaskedCollate(
            ImageTransform(config.vision.image_size, config.random_crop),
            tokenizer,
            config.context,
            self.side,
            config.masked_patches,
            config.masking,
            self.mask_id,
            config.mixture,
            config.answers,
        )
        if config.answers:
            self._learn_to_answer()

    def adopt(self, modules: Mapping[str, nn.Module]) -> None:
        """ "image_tokenizer": a trained `VQ`, which gives the targets of masked patches; "image_encoder", if any: a model whose
        `visual` has the shape of this one's."""
        trained, own = modules["image_tokenizer"].state_dict(), self.codebook.state_dict()
        try:
            self.codebook.load_state_dict({name: value for name, value in trained.items() if name in own})  # not what only training needs
        except RuntimeError as error:
            raise ValueError(
                f"the image tokenizer has another shape than this model's codebook: train it with the same --model.codebook ({error})"
            ) from error
        if "image_encoder" in modules:
            encoder: Any = modules["image_encoder"]
            self.visual.load_state_dict(encoder.visual.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the image encoder's published weights, if any are named. Returns module -> where they came from."""
        return super().fetch() | fetch_tower(self.visual, self.config.image_weights)

    def remember(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Count the answers to the training set's questions: the model's answers are the `most_answers` most frequent ones."""
        if not self.config.most_answers:
            return
        counted = Counter(question.answer for samples in batches for sample in samples for question in sample.questions)
        answers = tuple(answer for answer, _ in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[: self.config.most_answers])
        self.config = replace(self.config, answers=answers)
        self.collate = replace(self.collate, answers=answers)
        if answers:
            self._learn_to_answer()

    def _learn_to_answer(self) -> None:
        """Add a head over the answers and the two capabilities that depend on it."""
        head = PredictionHead(self.config.fusion, len(self.config.answers))
        self.answer_head = head.to(self.logit_scale.device)
        self.answer, self.answer_likelihood = self._answer, self._answer_likelihood

    def enter_stage(self, name: str) -> None:
        """ "unimodal", as the paper initialises its encoders, "joint", or "vqa": the mixtures of these names. The image encoder is frozen
        where there are only texts: where all rows are computed, its gradients would be 0, and its weights would decay."""
        mixtures = {"unimodal": self.config.unimodal, "joint": self.config.mixture, "vqa": self.config.vqa}
        if name not in mixtures:
            raise ValueError(f"stage {name!r}: expected {', '.join(mixtures)}")
        if mixtures[name].questions and not self.config.answers:
            raise ValueError(f"stage {name!r} asks questions, and the training set has no answers: expected samples with questions")
        self.collate = replace(self.collate, mixture=mixtures[name])
        looks = mixtures[name].texts < 1
        self.visual.requires_grad_(looks)
        self.mask_token.requires_grad_(looks)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per sample what `flava_loss` takes. Rows that have no part in a term are 0 there."""
        kind, rows = batch["kind"], len(batch["kind"])
        pair, image, text = kind == PAIR, (kind == PAIR) | (kind == IMAGE), (kind == PAIR) | (kind == TEXT)
        positive, clear = pair & batch["match"], pair | (kind == QUESTION)
        real = self._real(batch["ids"])
        features = {"kind": kind, "match": batch["match"]}

        pixels = normalise(batch["pixels"], self.config.mean, self.config.std)
        clear_image = _spread(self._image_states(_of(pixels, clear)), clear)  # [B, I, D]
        clear_text = _spread(self.text(_of(batch["ids"], clear), _of(real, clear)), clear)  # [B, T, D]
        features["image"] = _spread(self._image_feature(self._normed(_of(clear_image, pair))), pair)
        features["text"] = _spread(self._text_feature(self.text.norm(_of(clear_text, pair))), pair)

        hidden_image = _spread(self._image_states(_of(pixels, image), _of(batch["patches"], image)), image)
        hidden_text = _spread(self.text(_of(batch["masked_ids"], text), _of(real, text)), text)
        fused = _spread(self.fusion(_of(hidden_image, pair), _of(hidden_text, pair), _of(real, pair)), pair)
        features["match_logits"] = self.match_head(fused[:, 0]).float()

        codes, weights = self._targets(batch, positive | (kind == IMAGE))
        words, hidden, masked = batch["labels"][..., None], batch["patches"], batch["labels"] != IGNORE_INDEX
        skip = self.visual.num_prefix_tokens
        patches, tokens = slice(1 + skip, 1 + skip + self.side**2), slice(1 + skip + self.side**2, None)
        predictions: dict[str, tuple[Any, ...]] = {
            "mim": (self.mim_head, lambda x: self._normed(x)[:, skip:], hidden_image, codes, hidden & (kind == IMAGE)[:, None], weights),
            "mlm": (self.mlm_head, self.text.norm, hidden_text, words, masked & (kind == TEXT)[:, None], None),
            "mmm_image": (self.mmm_image_head, lambda x: x[:, patches], fused, codes, hidden & positive[:, None], weights),
            "mmm_text": (self.mmm_text_head, lambda x: x[:, tokens], fused, words, masked & positive[:, None], None),
        }
        if self.collate.mixture.questions:
            asked = kind == QUESTION
            states = _spread(self.fusion(_of(clear_image, asked), _of(clear_text, asked), _of(real, asked)), asked)
            answer = batch["answer"][:, None, None]
            wanted = (answer[..., 0] != IGNORE_INDEX) & asked[:, None]
            predictions["vqa"] = (self.answer_head, lambda x: x[:, :1], states, answer, wanted, None)
        for term, (head, states_of, source, labels, wanted, weight) in predictions.items():
            if getattr(self.config.weights, term):
                nll, count = _masked_nll(head, states_of(source), labels, wanted, weight)
                features |= {f"{term}_nll": nll, f"{term}_n": count}
        assert all(len(feature) == rows for feature in features.values())
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        return flava_loss(
            features,
            self.logit_scale.exp(),
            vars(self.config.weights),
            codes=self.codebook.size,
            words=self.config.vocab_size,
            answers=len(self.config.answers),
        )

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(self.config.max_scale))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Tensor:
        """The codes of every patch: uint8 pixels `[B, 3, S, S]` -> `[B, N, K]`, row by row within a patch; K is 1 in the paper."""
        if not len(pixels):  # not every layer accepts an empty batch
            return torch.zeros(0, self.side**2, (self.codebook.side // self.side) ** 2, dtype=torch.long, device=pixels.device)
        size = self.config.codebook.network.image_size
        if size != pixels.shape[-1]:
            pixels = F.interpolate(pixels.float(), size, mode="area").round().to(torch.uint8)
        return self._by_patch(self.codebook.tokenise(pixels).view(-1, self.codebook.side, self.codebook.side))

    def _by_patch(self, grid: Tensor) -> Tensor:
        """`[B, side of the codes, side of the codes]` -> `[B, N, K]`."""
        across = self.codebook.side // self.side
        return grid.unflatten(1, (self.side, across)).unflatten(3, (self.side, across)).transpose(2, 3).flatten(3).flatten(1, 2)

    def _in_rows(self, codes: Tensor) -> Tensor:
        """Inverse of `_by_patch`."""
        across = self.codebook.side // self.side
        return codes.unflatten(1, (self.side, self.side)).unflatten(3, (across, across)).transpose(2, 3).flatten(3).flatten(1, 2)

    def _targets(self, batch: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes `[B, N, K]` of masked patches of these rows, `IGNORE_INDEX` elsewhere, and what each of them weighs, or None for 1."""
        codes = _spread(self.codes(_of(batch["pixels"], rows)) - IGNORE_INDEX, rows) + IGNORE_INDEX
        targets = torch.where(batch["patches"][..., None], codes, IGNORE_INDEX)
        if not self.config.object_weight:
            return targets, None
        inside = F.adaptive_avg_pool2d(batch["objects"].float(), self.codebook.side)[:, 0]
        return targets, self._by_patch(1 + self.config.object_weight * inside)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> L2-normalised float32 `[N, embed_dim]`."""
        return self._image_feature(self._normed(self._image_states(self._pixels(images))))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised float32 `[N, embed_dim]`."""
        ids = self._ids(texts)
        return self._text_feature(self.text.norm(self.text(ids, self._real(ids))))

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """Logit of "this text belongs to this image" by the matching head, float32 `[N]`; nothing is masked."""
        logits = self.match_head(self._fused(images, texts)).float()
        return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def _answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """The likeliest of the training set's answers."""
        return [self.config.answers[best] for best in self.answer_head(self._fused(images, questions)).argmax(dim=-1).tolist()]

    @torch.no_grad()
    def _answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Log-probability of each answer among those that the model may give, float32 `[N]`; one that it may not has -100."""
        number = {answer: place for place, answer in enumerate(self.config.answers)}
        known = torch.tensor([number.get(answer, IGNORE_INDEX) for answer in answers], device=self.logit_scale.device)
        log_p = self.answer_head(self._fused(images, questions)).float().log_softmax(dim=-1)
        return torch.where(known == IGNORE_INDEX, -100.0, log_p.gather(1, known.clamp(min=0)[:, None])[:, 0])

    @torch.no_grad()
    def words(self, images: Sequence[np.ndarray], masked_ids: Tensor) -> Tensor:
        """Logits of every word for every place of the texts `[B, T]`, from whole pictures: `[B, T, V]`."""
        ids = masked_ids.to(self.logit_scale.device)
        real = self._real(ids)
        states = self._image_states(self._pixels(images))
        return self.mmm_text_head(self.fusion(states, self.text(ids, real), real)[:, 1 + states.shape[1] :])

    @torch.no_grad()
    def unmask(self, images: Sequence[np.ndarray], texts: Sequence[str], *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each picture with patches hidden, and with the likeliest codes there, painted by the image tokenizer: uint8 `[S, S, 3]`.

        Given a text by multimodal prediction (MMM), for "" by the image encoder's own (MIM).
        """
        raw = self.collate.transform(images).to(self.logit_scale.device)
        rng = np.random.default_rng(seed)
        hidden = np.stack([block_mask(self.side, self.config.masked_patches, rng).reshape(-1) for _ in images])
        patches = torch.from_numpy(hidden).to(raw.device)
        guessed = torch.where(patches[..., None], self.guess(raw, patches, texts), self.codes(raw))
        painted = torch.from_numpy(np.stack(self.codebook.paint(self._in_rows(guessed).flatten(1)))).to(raw.device).permute(0, 3, 1, 2)
        if painted.shape[-1] != raw.shape[-1]:
            painted = F.interpolate(painted.float(), raw.shape[-1], mode="bilinear").round().to(torch.uint8)
        squares = patches_to_pixels(patches, raw.shape[-1])
        grey, filled = raw.masked_fill(squares, 127), torch.where(squares, painted, raw)
        return [tuple(each.permute(1, 2, 0).cpu().numpy() for each in pair) for pair in zip(grey, filled, strict=True)]

    @torch.no_grad()
    def guess(self, pixels: Tensor, patches: Tensor, texts: Sequence[str]) -> Tensor:
        """The likeliest codes `[B, N, K]` of uint8 pixels `[B, 3, S, S]` whose `patches` `[B, N]` are hidden; "" for no text."""
        states = self._image_states(normalise(pixels, self.config.mean, self.config.std), patches)
        skip, ids = self.visual.num_prefix_tokens, self._ids(texts)
        real = self._real(ids)
        fused = self.fusion(states, self.text(ids, real), real)[:, 1 + skip : 1 + skip + self.side**2]
        from_image = self.mim_head(self._normed(states)[:, skip:]).unflatten(-1, (-1, self.codebook.size)).argmax(dim=-1)
        from_both = self.mmm_image_head(fused).unflatten(-1, (-1, self.codebook.size)).argmax(dim=-1)
        no_text = torch.tensor([not text for text in texts], device=pixels.device)
        return torch.where(no_text[:, None, None], from_image, from_both)

    def _fused(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """The fusion's class token `[B, D]` of clear pairs; a picture that comes with many texts is looked at once."""
        pictures, rows = distinct(images)
        states = self._image_states(self._pixels(pictures))[rows]
        ids = self._ids(texts)
        real = self._real(ids)
        return self.fusion(states, self.text(ids, real), real)[:, 0]

    def _image_states(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        return image_states(self.visual, pixels, hidden, self.mask_token)

    def _normed(self, states: Tensor) -> Tensor:
        """After the image encoder's last norm, which is called `fc_norm` where there is no class token."""
        return self.visual.fc_norm(self.visual.norm(states))

    def _image_feature(self, states: Tensor) -> Tensor:
        whole = states[:, 0] if self.visual.has_class_token else states.mean(dim=1)
        return F.normalize(self.image_projection(whole).float(), dim=-1)

    def _text_feature(self, states: Tensor) -> Tensor:
        return F.normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = self.collate.transform(images).to(self.logit_scale.device)
        return normalise(pixels, self.config.mean, self.config.std)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return layout(self.tokenizer, texts, self.config.context).to(self.logit_scale.device)

    def _real(self, ids: Tensor) -> Tensor:
        return until_end(ids, self.tokenizer)


def _of(values: Tensor, rows: Tensor) -> Tensor:
    """`values` `[B, ...]` at the `rows` `[B]` that are set, where these may be none; else all, of which `_spread` keeps the same."""
    return values[rows] if device.may_decide_passes(rows) else values


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """Back to the whole batch: the `values` of `_of` at the `rows` `[B]` that are set, 0 elsewhere."""
    if not device.may_decide_passes(rows):
        return values.masked_fill(~rows.view(-1, *[1] * (values.ndim - 1)), 0)
    whole = values.new_zeros(len(rows), *values.shape[1:])
    return whole.index_put((rows.nonzero()[:, 0],), values)


def _masked_nll(head: nn.Module, states: Tensor, labels: Tensor, asked: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels of every place that is `asked` `[B, T]`, summed, and how many labels these are: `[B]` each.

    states `[B, T, D]`; labels `[B, T, K]`; weights of the same shape, all 1 unless given.
    """
    weight = torch.ones(labels.shape, device=labels.device) if weights is None else weights
    if not device.host_knows(asked):
        logits = head(states).float().unflatten(-1, (labels.shape[2], -1))  # [B, T, K, C]
        wanted = labels.masked_fill(~asked[..., None], IGNORE_INDEX)
        each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(wanted) * weight
        return each.sum(dim=(1, 2)), (weight * asked[..., None]).sum(dim=(1, 2))
    wanted, weight = labels[asked], weight[asked]  # [n, K]
    logits = head(states[asked]).float().unflatten(-1, (wanted.shape[1], -1))
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted) * weight
    place = asked.nonzero()[:, 0]
    none = torch.zeros(len(asked), device=each.device)
    return none.index_add(0, place, each.sum(dim=1)), none.index_add(0, place, weight.sum(dim=1))
