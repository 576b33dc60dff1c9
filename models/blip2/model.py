"""BLIP-2: a Q-Former connects a frozen image encoder to a frozen language model (Li et al., 2023, arXiv 2301.12597).

Stage "represent" trains the Q-Former with image-text objectives, stage "generate" trains it through the language model. Deviations:
each rank selects hard negatives among its own pairs, and identical captions are not negatives; the Q-Former starts from random weights,
has no dropout and uses the language model's tokenizer, where the paper uses BERT's weights and tokenizer; the gradient of the
contrastive loss reaches the features of all ranks, where the released code detaches them. `tiny` uses the suite's own CLIP tower and
language model, and its second stage is trained on questions as well as captions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import require
from data.sample import Sample
from models.blip2 import encoder_decoder
from models.blip2.objective import contrastive, generation, generation_nll, similarities
from models.blip2.qformer import QFormer
from models.contract import Losses, Model
from models.shared import prefix
from models.shared.backbones import LanguageConfig, fetch_language, freeze, image_tower, known, language_model
from models.shared.distributed import gather, mean_of_all
from models.shared.generate import GREEDY, Decoding
from models.shared.images import OPENAI_MEAN, OPENAI_STD, ImageTransform, distinct, normalise
from models.shared.matching import CHANCE as MATCHING_CHANCE
from models.shared.matching import hard_negatives, matching_loss
from models.shared.prefix import SOFT, PrefixCollate
from models.shared.text import Tokenizer, layout, until_end
from models.shared.transformer import TransformerConfig, as_autocast, autocast_like
from models.shared.vision import TINY_TOWER, VisionConfig, image_states, vision_transformer


@dataclass(frozen=True)
class BLIP2Config:
    vision: VisionConfig = field(
        default_factory=lambda: VisionConfig(
            width=1408, depth=39, heads=16, mlp_ratio=6144 / 1408, image_size=224, patch_size=14, norm_eps=1e-6
        )
    )
    timm_name: str = ""  # a timm transformer in the place of `vision`, whose image_size still holds; without its last block
    qformer: TransformerConfig = field(default_factory=lambda: TransformerConfig(width=768, depth=12, heads=12, norm_eps=1e-12))
    queries: int = 32  # section 3.1
    every: int = 2  # layers from one attention to the image to the next
    embed_dim: int = 256  # of the contrast
    language: LanguageConfig = field(default_factory=LanguageConfig)
    context: int = 32  # tokens of a caption, or of a question with its answer
    vocab_size: int = 30_522
    temperature: float = 0.07  # initial
    contrast: float = 1.0  # weights of the first stage's three losses; one of weight 0 is not computed
    matching: float = 1.0
    generation: float = 1.0
    questions: float = 0.0  # share of the second stage's samples with a question to answer instead of a caption
    start: bool = False  # in the second stage, put a start token between image and text, as in the released code for OPT
    prompt: str = ""  # of the released weights, with {} for the question; "": as this suite's language models learn it
    random_crop: float = 1.0  # smallest share of a picture's side that training keeps
    flip: bool = False  # half of the training pictures are mirrored; not where texts say "left" and "right"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        require(self.queries >= 1, "--model.queries", self.queries, "1 or more")

    @classmethod
    def tiny(cls) -> BLIP2Config:
        qformer = TransformerConfig(width=160, depth=4, heads=5, activation="relu")
        return cls(vision=TINY_TOWER, qformer=qformer, queries=16, embed_dim=128, context=40, questions=0.5)

    @classmethod
    def small(cls) -> BLIP2Config:
        """For one GPU: CLIP's ViT-B/16, OPT-125M, and half of BERT-base as Q-Former."""
        return cls(
            timm_name="vit_base_patch16_clip_224.openai",
            qformer=TransformerConfig(width=768, depth=6, heads=12, norm_eps=1e-12),
            language=LanguageConfig(source="facebook/opt-125m"),
            start=True,
            questions=0.5,
        )

    @classmethod
    def paper(cls) -> BLIP2Config:
        """EVA ViT-g/14 without its last layer, BERT-base as Q-Former: 188 M of it are trained in the first stage. Crops keep half of a
        picture's area or more, as the released code's."""
        return cls(
            timm_name="eva_giant_patch14_clip_224.laion400m",
            language=LanguageConfig(source="facebook/opt-2.7b"),
            start=True,
            random_crop=0.7,
            flip=True,
        )


@dataclass(frozen=True)
class RepresentCollate:
    """Stage 1: pictures and captions `start tokens end`, padded."""

    transform: ImageTransform
    tokenizer: Tokenizer
    context: int

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        captions = [sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] for sample in samples]
        return {"pixels": self.transform([sample.image for sample in samples], rng), "ids": self.texts(captions)}

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Ids `[B, T]`; if the tokenizer has no start token, the padding token is used, as T5's decoder does."""
        if self.tokenizer.start is not None:
            return layout(self.tokenizer, texts, self.context)
        return F.pad(layout(self.tokenizer, texts, self.context - 1), (1, 0), value=self.tokenizer.pad)

    def real(self, ids: Tensor) -> Tensor:
        """Mask of ids `[B, T]` that are text, including the start token or its substitute."""
        if self.tokenizer.start is not None:
            return until_end(ids, self.tokenizer)
        return F.pad(until_end(ids[:, 1:], self.tokenizer), (1, 0), value=True)


class WordHead(nn.Module):
    """BERT's: a transformation, then the word embeddings once more."""

    def __init__(self, config: TransformerConfig, rows: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, x: Tensor, words: nn.Embedding) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(x))), words.weight, self.bias)


class BLIP2(Model):
    paradigm = "pretrained backbones"
    Config = BLIP2Config
    # The first stage learns to compare (section 3.1), the second to write (section 3.2), and no loss keeps the embeddings in place then.
    asked_after: ClassVar = {"represent": ("zeroshot", "retrieval", "foils", "winoground")}
    score_kind = "matching head"

    def __init__(self, config: BLIP2Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = replace(config, language=known(config.language))
        self.config, self.tokenizer = config, tokenizer
        self.transform = ImageTransform(config.vision.image_size, config.random_crop, config.flip)
        self.visual: Any = freeze(image_tower(config.timm_name) if config.timm_name else vision_transformer(config.vision))
        language: Any = language_model(replace(config.language, vocab_size=config.vocab_size))
        self.language = freeze(language)
        width, image_width = config.qformer.width, self.visual.num_features
        self.norm_image = nn.LayerNorm(image_width, eps=config.vision.norm_eps)
        self.decode = config.vocab_size  # [DEC], the first token of a text to generate: one more row
        self.qformer = QFormer(
            config.qformer,
            queries=config.queries,
            every=config.every,
            image_width=image_width,
            rows=config.vocab_size + 1,
            context=config.context,
        )
        self.image_projection, self.text_projection = nn.Linear(width, config.embed_dim), nn.Linear(width, config.embed_dim)
        self.match_head = nn.Linear(width, 2)
        self.word_head = WordHead(config.qformer, config.vocab_size + 1)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.language_width: int = language.get_input_embeddings().embedding_dim
        self.to_language = nn.Linear(width, self.language_width)
        self.stage = "represent"
        self.pairs = RepresentCollate(self.transform, tokenizer, config.context)
        collate = encoder_decoder.SplitCollate if language.config.is_encoder_decoder else PrefixCollate
        self.sequences = collate(self.transform, tokenizer, config.queries, config.context, config.questions, config.start)
        self.collate: RepresentCollate | PrefixCollate = self.pairs

    def adopt(self, modules: Mapping[str, Any]) -> None:
        """ "vision": a trained model with an image tower `visual` of this shape; "language_model": a trained `LM`."""
        self.visual.load_state_dict(modules["vision"].visual.state_dict())
        self.language.load_state_dict(modules["language_model"].language.state_dict())

    def fetch(self) -> dict[str, str]:
        """Load the weights of the backbones that the configuration names. Returns module -> where they came from."""
        tower = self.config.timm_name
        if tower:
            self.visual.load_state_dict(image_tower(tower, weights=True).state_dict())
        sources = {"visual": tower} if tower else super().fetch()
        return sources | fetch_language(self.language, self.config.language.source, self.tokenizer)

    def enter_stage(self, name: str) -> None:
        """Train the Q-Former and its heads in "represent"; its query side and the projection to the language model in "generate"."""
        if name not in ("represent", "generate"):
            raise ValueError(f"stage {name!r}: expected represent or generate")
        self.stage = name
        generating = name == "generate"
        self.collate = self.sequences if generating else self.pairs
        text_only = (self.image_projection, self.text_projection, self.match_head, self.word_head, self.qformer.tokens)
        for module in (*text_only, *(layer.text_mlp for layer in self.qformer.layers)):
            module.requires_grad_(not generating)
        self.qformer.positions.requires_grad_(not generating)
        self.temperature.requires_grad_(not generating)
        self.to_language.requires_grad_(generating)

    @property
    def decoding(self) -> Any:
        """The module with `nll`, `log_likelihood` and `write` for this kind of language model: encoder-decoder (T5) or decoder-only."""
        return encoder_decoder if self.language.config.is_encoder_decoder else prefix

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stage 1: image states `[B, S, M]`, L2-normalised queries `[B, Q, D]` and texts `[B, D]`, and each caption's "nll" and "tokens".
        Stage 2: "nll" and "tokens" of each target."""
        image = self._see(batch["pixels"])
        if "labels" in batch:
            total, count = self.decoding.nll(self.language, batch["ids"], batch["labels"], self.to_language(self.qformer.look(image)))
            return {"nll": total, "tokens": count}
        config, ids = self.config, batch["ids"]
        real = self.pairs.real(ids)
        features = {
            "states": as_autocast(image),
            "ids": ids,
            "real": real,
            "queries": self._queries(image),
            "text": self._text_feature(ids, real),
        }
        if config.generation:
            generated = torch.cat([torch.full_like(ids[:, :1], self.decode), ids[:, 1:]], dim=1)  # [DEC] in the place of the start
            logits = self.word_head(self.qformer.tell(image, generated, real), self.qformer.tokens)
            features["nll"], features["tokens"] = generation_nll(logits, generated, real)
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        if "states" not in features:
            loss = mean_of_all(features["nll"], features["tokens"])
            return Losses(loss, {"text": loss}, {"text": math.log(self.config.vocab_size)})
        config, scale = self.config, 1 / self.temperature
        terms: dict[str, Tensor] = {}
        if config.contrast:
            terms["itc"] = contrastive(features["queries"], features["text"], scale)
        if config.matching:
            with autocast_like(features["states"]):
                terms["itm"] = self._matching(features, scale)
        if config.generation:
            terms["itg"] = generation(features["nll"], features["tokens"])
        weights = {"itc": config.contrast, "itm": config.matching, "itg": config.generation}
        chance = {"itc": math.log(max(2, len(gather(features["text"])))), "itm": MATCHING_CHANCE, "itg": math.log(config.vocab_size + 1)}
        return Losses.weighted(terms, weights, chance)

    def _matching(self, features: dict[str, Tensor], scale: Tensor) -> Tensor:
        image, ids, real = features["states"], features["ids"], features["real"]
        hard_text, hard_image = hard_negatives(scale * similarities(features["queries"], features["text"]), ids)
        own = torch.arange(len(ids), device=ids.device)
        texts, images = torch.cat([own, hard_text, own]), torch.cat([own, own, hard_image])
        return matching_loss(self._match(image, ids[texts], real[texts], images), positives=len(ids))

    def _match(self, image: Tensor, ids: Tensor, real: Tensor, rows: Tensor | None = None) -> Tensor:
        """Matching logits `[B, 2]`, averaged over queries."""
        return self.match_head(self.qformer.match(image, ids, real, rows)).mean(dim=1)

    def after_step(self) -> None:
        with torch.no_grad():
            self.temperature.clamp_(0.001, 0.5)

    def _see(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> the Q-Former's image input `[B, S, M]`: the frozen tower's states after a trained norm."""
        pixels = normalise(pixels, self.config.mean, self.config.std)
        with torch.no_grad():
            states = self.visual.forward_features(pixels) if self.config.timm_name else image_states(self.visual, pixels)
        return self.norm_image(states)

    def _queries(self, image: Tensor) -> Tensor:
        return F.normalize(self.image_projection(self.qformer.look(image)).float(), dim=-1)

    def _text_feature(self, ids: Tensor, real: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.qformer.read(ids, real)[:, 0]).float(), dim=-1)

    # -------------------------------------------------------------------------------------------- capabilities

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """Logit of "this text belongs to this image" by the matching head, float32 `[N]`. A picture among many pairs is looked at once."""
        ids = self.pairs.texts(texts).to(self.temperature.device)
        states, rows = self._look(images)
        logits = self._match(states, ids, self.pairs.real(ids), rows).float()
        return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        """L2-normalised queries, float32 `[N, Q, D]`: the one most similar to a text counts."""
        states, rows = self._look(images)
        return self._queries(states)[rows]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised embeddings, float32 `[N, D]`."""
        ids = self.pairs.texts(texts).to(self.temperature.device)
        return self._text_feature(ids, self.pairs.real(ids))

    @property
    def logit_scale(self) -> Tensor:
        """Natural logarithm of the contrast's scale."""
        return -self.temperature.log()

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, how: Decoding = GREEDY) -> list[str]:
        return self._write(images, [self._prompt(None)] * len(images), how)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        return self._write(images, [self._prompt(question) for question in questions])

    @torch.no_grad()
    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """log p(answer | image, question) in nats, float32 `[N]`, its end included."""
        pictures, places = distinct(images)
        soft = self._prefixes(pictures)
        ids, labels = self.sequences.laid_out([self._prompt(question) for question in questions], answers)
        return self.decoding.log_likelihood(self.language, ids.to(soft.device), labels.to(soft.device), soft, places)

    def _prompt(self, question: str | None) -> list[int]:
        """What the language model reads after the image: a question, or None for a caption."""
        if not self.config.prompt:
            return [] if question is None else self.sequences.question(question)
        asked = [] if question is None else self.sequences.tokens(self.config.prompt.replace("{}", question))
        return [*asked, self.tokenizer.end] if self.language.config.is_encoder_decoder else asked  # the released T5's encoder reads it

    def _write(self, images: Sequence[np.ndarray], prompts: Sequence[list[int]], how: Decoding = GREEDY) -> list[str]:
        if not len(images):
            return []
        rows = [[*[SOFT] * self.config.queries, *self.sequences.begin, *prompt] for prompt in prompts]
        pictures, places = distinct(images)
        soft, limit = self._prefixes(pictures), self.config.context
        return self.decoding.write(self.language, self.tokenizer, rows, soft, limit=limit, how=how, pictures=places)

    def _prefixes(self, images: Sequence[np.ndarray]) -> Tensor:
        """The language model's input for each image, `[N, Q, D]`."""
        states, rows = self._look(images)
        return self.to_language(self.qformer.look(states))[rows]

    def _look(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """States `[I, S, M]` of the distinct pictures, and which of them each image is, `[N]`."""
        pictures, rows = distinct(images)
        states = self._see(self.transform(pictures).to(self.temperature.device))
        return states, torch.tensor(rows, device=states.device)
