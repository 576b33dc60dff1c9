"""Adapters from model capabilities to the interfaces that tasks require. Each result cell records its adapter.

Adapters cache results by the identity of the image array, so an array must not be modified between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from eval.adapters.boxes import LocatedBoxes
from eval.adapters.naming import NearestMeanNames, PromptedNames
from eval.adapters.parts import PartScorer
from eval.adapters.replies import GeneratedReplies
from eval.adapters.rerank import ReRanked
from eval.adapters.verdicts import LikelierVerdicts, SpokenVerdicts, ThresholdVerdicts
from eval.base.capabilities import (
    Answerer,
    Answers,
    AnswerScorer,
    Captioner,
    Captions,
    ComparesParts,
    Completer,
    Completes,
    Decider,
    Drawer,
    Draws,
    EncodesImages,
    EncodesText,
    Features,
    Images,
    Locates,
    Locator,
    Namer,
    Prompt,
    Ranker,
    Replier,
    Replies,
    Scorer,
    ScoresPairs,
    Texts,
    WeighsAnswers,
)


class Subject:
    """A model under evaluation with its adapters, which are created once so that all tasks share their caches."""

    def __init__(self, model: Any, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size

    def able(self, need: type, *, gallery: bool = False) -> list[Any]:
        """The adapters that implement `need`, in order of preference; [] if the model has none.

        If a model has both embeddings and `score`, embeddings are preferred for a gallery (comparing every image with every
        text is cheap), and `score` for given pairs.
        """
        scorers = [self.embeddings, self.pairs] if gallery else [self.pairs, self.embeddings]
        choices: dict[type, list[Any]] = {
            Features: [self.embeddings or self.features],
            Scorer: scorers,
            Ranker: [self.embeddings, self.reranked or self.pairs],
            Captioner: [self.captions],
            AnswerScorer: [self.likelihoods],
            Answerer: [self.answers],
            Decider: self.deciders,
            Drawer: [self.drawings],
            Completer: [self.completions],
            Locator: [self.boxes],
            Replier: [self.replies],
            Namer: self.namers,
        }
        return [adapter for adapter in choices[need] if adapter is not None]

    @cached_property
    def embeddings(self) -> EmbeddingScorer | None:
        both = isinstance(self.model, EncodesImages) and isinstance(self.model, EncodesText)
        return EmbeddingScorer(self.model, self.batch_size) if both else None

    @cached_property
    def features(self) -> ImageFeatures | None:
        return ImageFeatures(self.model, self.batch_size) if isinstance(self.model, EncodesImages) else None

    @cached_property
    def pairs(self) -> PairScorer | PartScorer | None:
        if isinstance(self.model, ComparesParts):
            return PartScorer(self.model, self.batch_size)
        return PairScorer(self.model.score, self.model.score_kind, self.batch_size) if isinstance(self.model, ScoresPairs) else None

    @cached_property
    def reranked(self) -> ReRanked | None:
        """None for likelihoods, which depend on a text's length and frequency and rank texts worse than embeddings."""
        if not self.embeddings or not self.pairs or self.model.score_kind == "likelihood":
            return None
        return ReRanked(self.embeddings, self.pairs)

    @cached_property
    def captions(self) -> GeneratedCaptions | None:
        return GeneratedCaptions(self.model, self.batch_size) if isinstance(self.model, Captions) else None

    @cached_property
    def likelihoods(self) -> AnswerLikelihoods | PhrasedAnswers | None:
        if isinstance(self.model, WeighsAnswers):
            return AnswerLikelihoods(self.model, self.batch_size)
        scorer = self.pairs or self.embeddings
        return PhrasedAnswers(scorer) if scorer else None

    @cached_property
    def answers(self) -> GeneratedAnswers | RankedAnswers | None:
        if isinstance(self.model, Answers):
            return GeneratedAnswers(self.model, self.batch_size)
        return RankedAnswers(self.likelihoods) if self.likelihoods else None

    @cached_property
    def deciders(self) -> list[LikelierVerdicts | SpokenVerdicts | ThresholdVerdicts]:
        found: list[LikelierVerdicts | SpokenVerdicts | ThresholdVerdicts] = []
        if isinstance(self.likelihoods, AnswerLikelihoods):
            found.append(LikelierVerdicts(self.likelihoods))
        if isinstance(self.answers, GeneratedAnswers):
            found.append(SpokenVerdicts(self.answers))
        return found + [ThresholdVerdicts(scorer) for scorer in (self.pairs, self.embeddings) if scorer]

    @cached_property
    def drawings(self) -> Drawings | None:
        return Drawings(self.model, self.batch_size) if isinstance(self.model, Draws) else None

    @cached_property
    def namers(self) -> list[PromptedNames | NearestMeanNames]:
        found: list[PromptedNames | NearestMeanNames] = [PromptedNames(self.completions)] if self.completions else []
        features = self.embeddings or self.features
        return [*found, NearestMeanNames(features)] if features else found

    @cached_property
    def boxes(self) -> LocatedBoxes | None:
        return LocatedBoxes(self.model, self.batch_size) if isinstance(self.model, Locates) else None

    @cached_property
    def replies(self) -> GeneratedReplies | None:
        return GeneratedReplies(self.model, self.batch_size) if isinstance(self.model, Replies) else None

    @cached_property
    def completions(self) -> Completions | None:
        return Completions(self.model, self.batch_size) if isinstance(self.model, Completes) else None


# ---------------------------------------------------------------------------------------------- images and texts


class ImageFeatures:
    """Image embeddings, each computed once. The feature of an image with several embeddings is their mean."""

    adapter = "image features"

    def __init__(self, model: Any, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size
        self._images: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # id -> (array, embedding): holding the array keeps its id unique

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.features(images)

    def features(self, images: Images) -> np.ndarray:
        vectors = self.vectors(images)
        return vectors if vectors.ndim == 2 else _normalised(vectors.mean(axis=1))

    def vectors(self, images: Images) -> np.ndarray:
        """float32 `[N, D]` or `[N, V, D]`, as the model encodes them."""
        missing = list({id(image): image for image in images if id(image) not in self._images}.values())
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            for image, row in zip(chunk, _numbers(self.model.encode_image(chunk), "encode_image", len(chunk)), strict=True):
                self._images[id(image)] = (image, row)
        return np.stack([self._images[id(image)][1] for image in images])


class EmbeddingScorer(ImageFeatures):
    """Cosine similarity of image and text embeddings; the maximum if an image has several embeddings.

    Products are summed in float64 and rounded to float32, so that equal embeddings tie exactly and scores depend neither on
    the batch size nor on how the matrix product is blocked.
    """

    adapter = "embedding similarity"
    queries: int | None = None

    def __init__(self, model: Any, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        scale = getattr(model, "logit_scale", None)
        self.scale = 1.0 if scale is None else math.exp(torch.as_tensor(scale).item())
        self._texts: dict[str, np.ndarray] = {}
        self._prepared: list[str] = []

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.features(images)
        if list(texts) != self._prepared:
            self._texts, self._prepared = {}, list(texts)
            if texts:
                self.text_features(texts)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        return _similarity(self.vectors(images), self.text_features(texts))

    def by_text(self, images: Images, texts: Texts) -> np.ndarray:
        return self.matrix(images, texts).T

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        vectors, own = self.vectors(images).astype(np.float64), self.text_features(texts)
        products = (vectors * (own if vectors.ndim == 2 else own[:, None])).sum(axis=-1)  # [N] or [N, V]
        return (products if products.ndim == 1 else products.max(axis=1)).astype(np.float32)

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """A class is the mean of its prompts' embeddings, normalised before and after (CLIP, section 3.1.4)."""
        centres = np.stack([_normalised(_normalised(self.text_features(texts)).mean(axis=0)) for texts in prompts])
        return np.float32(self.scale) * _similarity(self.vectors(images), centres)

    def text_features(self, texts: Texts) -> np.ndarray:
        """float32 `[T, D]`."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._texts))
        missing.sort(key=len)  # texts of similar length share a batch: half the padding
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            self._texts.update(zip(chunk, _numbers(self.model.encode_text(chunk), "encode_text", len(chunk)), strict=True))
        return np.stack([self._texts[text] for text in texts])


class PairScorer:
    """Any function that scores image-text pairs; each prepared pair is scored once."""

    queries: int | None = None

    def __init__(self, score: Callable[[Images, Texts], Any], adapter: str, batch_size: int = 256) -> None:
        self.score, self.adapter, self.batch_size = score, adapter, batch_size
        self._images: list[np.ndarray] = []
        self._rows: dict[int, int] = {}
        self._columns: dict[str, int] = {}
        self._known = np.empty((0, 0), np.float32)

    def prepare(self, images: Images, texts: Texts) -> None:
        """Known scores are kept if images and texts are the same as before, as for the control with shuffled images."""
        rows = {id(image): row for row, image in enumerate({id(image): image for image in images}.values())}
        columns = {text: column for column, text in enumerate(dict.fromkeys(texts))}
        if (rows, columns) == (self._rows, self._columns):
            return
        self._images = list({id(image): image for image in images}.values())  # held, so that their ids stay unique
        self._rows, self._columns = rows, columns
        self._known = np.empty((0, 0), np.float32)

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        if not all(id(image) in self._rows for image in images) or not all(text in self._columns for text in texts):
            self.prepare(images, texts)
        if not self._known.size:  # allocated here: pairs need no table
            self._known = np.full((len(self._rows), len(self._columns)), np.nan, np.float32)
        rows, columns = [self._rows[id(image)] for image in images], [self._columns[text] for text in texts]
        own, names = np.unique(rows), list(self._columns)  # one blank picture may replace many
        asked = np.unique(columns)
        missing = np.argwhere(np.isnan(self._known[np.ix_(own, asked)]))
        pairs = [(own[i], asked[j]) for i, j in missing]
        found = self.pairs([self._images[i] for i, _ in pairs], [names[j] for _, j in pairs])
        for place, value in zip(pairs, found, strict=True):
            self._known[place] = value
        return self._known[np.ix_(rows, columns)]

    def by_text(self, images: Images, texts: Texts) -> np.ndarray:
        return self.matrix(images, texts).T

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        """The score of each image with its text. Equal pairs are scored once, and pairs are sorted by image, so that most models encode
        each image once."""
        distinct = {(id(image), text): (image, text) for image, text in zip(images, texts, strict=True)}
        place = {id(image): row for row, image in enumerate(images)}
        found: dict[tuple[int, str], float] = {}
        for names in _chunks(sorted(distinct, key=lambda name: place[name[0]]), self.batch_size):
            pictures, words = zip(*(distinct[name] for name in names), strict=True)
            found.update(zip(names, _numbers(self.score(pictures, words), "score", len(names)).tolist(), strict=True))
        return np.array([found[id(image), text] for image, text in zip(images, texts, strict=True)], np.float32)

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """The logit of a class is the score of its first prompt: with an ensemble, every prompt would cost a forward pass."""
        return self.matrix(images, [texts[0] for texts in prompts])


# ---------------------------------------------------------------------------------------- captions, answers, drawings


class GeneratedCaptions:
    """The model's captions; an image is captioned once for all tasks."""

    adapter = "generated caption"

    def __init__(self, model: Captions, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size
        self._known: dict[int, tuple[np.ndarray, str]] = {}

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Does nothing: captions are too expensive to generate before they are needed."""

    def captions(self, images: Images) -> list[str]:
        missing = list({id(image): image for image in images if id(image) not in self._known}.values())
        for chunk in _chunks(missing, self.batch_size):
            for image, text in zip(chunk, _as_many(self.model.caption(chunk), "caption", len(chunk)), strict=True):
                self._known[id(image)] = (image, text)
        return [self._known[id(image)][1] for image in images]


class GeneratedAnswers:
    adapter = "generated answer"

    def __init__(self, model: Answers, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Nothing: see `GeneratedCaptions`."""

    def answers(self, images: Images, questions: Texts, candidates: Sequence[Texts] = ()) -> list[str]:
        """Equal questions about the same image (such as the blank one) are answered once."""
        distinct = {(id(image), question): (image, question) for image, question in zip(images, questions, strict=True)}
        found: dict[tuple[int, str], str] = {}
        for names in _chunks(list(distinct), self.batch_size):
            pictures, texts = zip(*(distinct[name] for name in names), strict=True)
            found.update(zip(names, _as_many(self.model.answer(pictures, texts), "answer", len(names)), strict=True))
        return [found[id(image), question] for image, question in zip(images, questions, strict=True)]


class AnswerLikelihoods:
    """log p(answer | image, question), computed by the model."""

    adapter = "answer likelihood"

    def __init__(self, model: WeighsAnswers, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Nothing: see `GeneratedCaptions`."""

    def likelihoods(self, images: Images, questions: Texts, answers: Texts) -> np.ndarray:
        found = np.empty(len(answers), np.float64)
        for rows in _chunks(range(len(answers)), self.batch_size):
            output = self.model.answer_likelihood([images[i] for i in rows], [questions[i] for i in rows], [answers[i] for i in rows])
            found[list(rows)] = _numbers(output, "answer_likelihood", len(rows))
        return found


class PhrasedAnswers:
    """Scores of the text "question answer", for models that score texts but were not trained on questions."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.adapter = scorer, f"question and answer by {scorer.adapter}"

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """`texts` are the strings "question answer" that will be scored."""
        self.scorer.prepare(images, texts)

    def likelihoods(self, images: Images, questions: Texts, answers: Texts) -> np.ndarray:
        texts = [f"{question} {answer}" for question, answer in zip(questions, answers, strict=True)]
        return self.scorer.pairs(images, texts).astype(np.float64)


class RankedAnswers:
    """The most likely of a question's candidates (the first wins ties)."""

    def __init__(self, scorer: AnswerScorer) -> None:
        self.scorer, self.adapter = scorer, f"ranked: {scorer.adapter}"
        cheap = isinstance(scorer, PhrasedAnswers) and isinstance(scorer.scorer, EmbeddingScorer | PartScorer)
        self.costly = not cheap  # a pass for every candidate

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        self.scorer.prepare(images, texts)

    def answers(self, images: Images, questions: Texts, candidates: Sequence[Texts]) -> list[str]:
        rows = [i for i, possible in enumerate(candidates) for _ in possible]
        flat = [answer for possible in candidates for answer in possible]
        scores = self.scorer.likelihoods([images[i] for i in rows], [questions[i] for i in rows], flat)
        found, start = [], 0
        for possible in candidates:
            found.append(possible[int(scores[start : start + len(possible)].argmax())] if possible else "")
            start += len(possible)
        return found


class Drawings:
    """The model's generated images; each text is drawn once, with seed 0."""

    adapter = "drawing"

    def __init__(self, model: Draws, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, batch_size
        self._known: dict[str, np.ndarray] = {}

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Draw all texts at once, because a sampled image depends on its position in the batch."""
        self.drawings(texts)

    def drawings(self, texts: Texts) -> list[np.ndarray]:
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        for chunk in _chunks(missing, self.batch_size):
            self._known.update(zip(chunk, _as_many(self.model.draw(chunk), "draw", len(chunk)), strict=True))
        return [self._known[text] for text in texts]


PROMPTS = 64  # at once: prompts of several pictures are long, and on a busy CPU 256 of them leave its cache


class Completions:
    adapter = "completion"

    def __init__(self, model: Completes, batch_size: int = 256) -> None:
        self.model, self.batch_size = model, min(batch_size, PROMPTS)

    def prepare(self, images: Images, texts: Texts = ()) -> None:
        """Nothing: see `GeneratedCaptions`."""

    def completions(self, prompts: Sequence[Prompt]) -> list[str]:
        found: list[str] = []
        for chunk in _chunks(prompts, self.batch_size):
            found += _as_many(self.model.complete(chunk), "complete", len(chunk))
        return found


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _as_many(output: Sequence[Any], method: str, expected: int) -> list[Any]:
    if len(output) != expected:
        raise ValueError(f"{method} returned {len(output)} results for {expected} inputs")
    return list(output)


def _similarity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    products = images.astype(np.float64) @ texts.astype(np.float64).T  # [N, T] or [N, V, T]
    return (products if products.ndim == 2 else products.max(axis=1)).astype(np.float32)


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _numbers(output: Any, method: str, expected: int) -> np.ndarray:
    """A model's output as float32 rows. NaN raises an error, because it would distort every comparison and ranking."""
    rows = torch.as_tensor(output).detach().float().cpu().numpy()
    if len(rows) != expected:
        raise ValueError(f"{method} returned {len(rows)} rows for {expected} inputs")
    if np.isnan(rows).any():
        bad = int(np.isnan(rows.reshape(len(rows), -1)).any(axis=1).sum())
        raise ValueError(f"{method} returned NaN for {bad} of {len(rows)} inputs: the weights may have diverged, look at train.jsonl")
    return rows
