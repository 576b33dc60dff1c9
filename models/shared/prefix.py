"""Language model inputs that mix tokens and image embeddings, such as images as a prefix of the text.

A sequence is a list of token ids in which `SOFT` is a placeholder for one embedding. Workers lay out batches as ids; the model looks up
the tokens and inserts the image embeddings. Frozen, BLIP-2 and MiniGPT-4 share this and differ in how they compute the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Sample
from models.contract import IGNORE_INDEX
from models.shared import device
from models.shared.backbones import Continuation
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import ImageTransform
from models.shared.prompts import ask
from models.shared.text import LONGEST, Tokenizer
from models.shared.transformer import as_autocast
from models.shared.tree import Forest, forests

SOFT, PADDING = -1, -2


def right_padded(rows: Sequence[Sequence[int]], padding: int = PADDING) -> Tensor:
    """Pad rows on the right to int64 `[N, T]`, where T is the longest row. For training, where padding after the end has no effect."""
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], dtype=torch.long).view(len(rows), longest)


def left_padded(rows: Sequence[Sequence[int]], padding: int = PADDING) -> Tensor:
    """Pad rows on the left to int64 `[N, T]`. For generation, where all rows continue at the same position."""
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*[padding] * (longest - len(row)), *row] for row in rows], dtype=torch.long).view(len(rows), longest)


def embed(language: Any, ids: Tensor, soft: Tensor) -> Tensor:
    """Embed ids `[N, T]` that contain `SOFT` and `PADDING`. Returns `[N, T, D]`, with the soft vectors `[..., D]` inserted in order.

    Raises ValueError if the number of vectors differs from the number of placeholders.
    """
    vectors, places = soft.flatten(0, -2), ids == SOFT
    embedded = as_autocast(language.get_input_embeddings()(ids.clamp(min=0)))  # also casts the residual stream, which is faster on a CPU
    if soft.ndim == 3 and len(soft) == len(ids) and not device.host_knows(ids):  # a sequence may have fewer places than vectors
        order = (places.cumsum(dim=1) - 1).clamp(0, soft.shape[1] - 1)[..., None]  # which of its vectors each place gets
        vectors = soft.to(embedded.dtype).gather(1, order.expand(-1, -1, soft.shape[2]))
        return torch.where(places[..., None], vectors, embedded)
    if len(vectors) != int(places.sum()):
        raise ValueError(f"{len(vectors)} vectors for {int(places.sum())} places in the sequences")
    return embedded.index_put(places.nonzero(as_tuple=True), vectors.to(embedded.dtype))


def nll(language: Any, ids: Tensor, labels: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of `labels` `[N, T]` in nats, summed per row `[N]`, and the number of labels per row. Labels are
    `IGNORE_INDEX` where nothing is predicted.

    A label is predicted at the position before it; the first position has no label.
    """
    out = language(inputs_embeds=embed(language, ids, soft), attention_mask=(ids != PADDING).long(), use_cache=False)
    return label_nll(out.logits[:, :-1], labels[:, 1:])


def label_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of labels `[N, T]`, summed per row `[N]`, and their number per row. logits `[N, T, V]` must be
    aligned with the labels that they predict; labels are `IGNORE_INDEX` where nothing is predicted."""
    asked = labels != IGNORE_INDEX
    if not device.host_knows(labels):
        return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(dim=1), asked.sum(dim=1)
    each = F.cross_entropy(logits[asked].float(), labels[asked], reduction="none")
    total = torch.zeros(len(labels), device=each.device).index_add(0, asked.nonzero()[:, 0], each)
    return total, asked.sum(dim=1)


def log_likelihood(
    language: Any,
    ids: Tensor,
    labels: Tensor,
    soft: Tensor,
    pictures: Sequence[int],
    announce: Callable[[Forest], None] | None = None,
) -> Tensor:
    """Log-likelihood float32 `[N]`, the negative of `nll`'s sum, for many sequences about few images: common prefixes are computed once.
    Differentiable.

    soft `[P, places, D]` has the embeddings of P images; the i-th sequence contains only image `pictures[i]`. `announce` is called before
    each forward pass with the trees that it reads.
    """
    rows = [[token for token in row if token != PADDING][:-1] for row in ids.tolist()]  # nothing is predicted from the last token
    found = torch.zeros(len(rows), device=soft.device)
    for forest in forests(rows, pictures):
        size = forest.depths.shape[1]
        padded = right_padded([[*tokens, *[PADDING] * (size - len(tokens))] for tokens in forest.tokens]).to(soft.device)
        before = ((padded == SOFT)[:, None] & forest.sees.to(soft.device)).sum(dim=2) - 1  # index of each placeholder within its sequence
        trees, nodes = (padded == SOFT).nonzero(as_tuple=True)
        vectors = soft[torch.tensor(forest.groups, device=soft.device)[trees], before[trees, nodes]]
        embedded = embed(language, padded, vectors)
        mask = forest.bias(embedded.dtype).to(soft.device)
        following = labels[forest.sequences, 1:]
        if announce:
            announce(forest)
        out = language(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=forest.depths.to(soft.device),
            use_cache=False,
            logits_to_keep=size - forest.unasked(following),
        )
        found[forest.sequences] = forest.log_likelihoods(out.logits, following)
    return found


def write(
    language: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    soft: Tensor,
    *,
    limit: int,
    end: int | None = None,
    how: Decoding = GREEDY,
    pictures: Sequence[int] | None = None,
) -> list[str]:
    """Generate a continuation of each sequence, until the `end` token (default: the tokenizer's) or for `limit` tokens."""
    found = continued(language, tokenizer, rows, soft, limit=limit, end=end, how=how, pictures=pictures)
    return [tokenizer.decode(tokens) for tokens in found]


@torch.no_grad()
def continued(
    language: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    soft: Tensor,
    *,
    limit: int,
    end: int | None = None,
    how: Decoding = GREEDY,
    pictures: Sequence[int] | None = None,
) -> list[list[int]]:
    """As `write`, in tokens: fewer than `limit` where the end came by itself.

    With `pictures`, soft `[P, places, D]` are the vectors of P pictures, and the i-th sequence shows `pictures[i]` and no other: what the
    sequences begin with is then read once for each picture.
    """
    if not rows:
        return []
    shared: list[int] = []
    if pictures is not None and len(soft) < len(rows):
        together = zip(*(row[:-1] for row in rows), strict=False)  # of each place its tokens; the last token is left to read
        shared = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, together)]
    if pictures is not None and shared.count(SOFT) < soft.shape[1]:
        soft, shared = soft[list(pictures)], []
    if shared and pictures is not None:
        before = torch.tensor([shared] * len(soft), device=soft.device)
        after = left_padded([row[len(shared) :] for row in rows]).to(soft.device)
        decoder, _ = Continuation.begin(language, embed(language, before, soft), before != PADDING)
        decoder.select(torch.tensor(pictures, device=soft.device))
        logits = decoder.read(embed(language, after, soft[:0]), after != PADDING)
    else:
        ids = left_padded(rows).to(soft.device)
        decoder, logits = Continuation.begin(language, embed(language, ids, soft), ids != PADDING)
    stop = tokenizer.end if end is None else end
    return generate(decoder, logits, end=stop, limit=limit, never=[token for token in not_text(tokenizer) if token != stop], how=how)


@dataclass(frozen=True)
class PrefixCollate:
    """Collates images and sequences that begin with them: a caption as the target, or a question as the prompt and its answer as the
    target."""

    transform: ImageTransform
    tokenizer: Tokenizer
    prefix: int
    context: int
    questions: float
    start: bool = False  # put the tokenizer's start token between image and text, as before every text of OPT

    @property
    def begin(self) -> list[int]:
        """The tokens between the image and a text."""
        return [self.tokenizer.start] if self.start and self.tokenizer.start is not None else []

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`; "ids" `[B, T]` and "labels" `[B, T]`. Without a generator: the first caption."""
        prompts, targets = zip(*(self._text(sample, rng) for sample in samples), strict=True)
        ids, labels = self.laid_out(prompts, targets)
        return {**self.images(samples, rng), "ids": ids, "labels": labels}

    def images(self, samples: Sequence[Sample], rng: np.random.Generator | None) -> dict[str, Tensor]:
        """ "pixels" uint8 `[B, 3, S, S]`."""
        return {"pixels": self.transform([sample.image for sample in samples], rng)}

    def laid_out(self, prompts: Sequence[list[int]], targets: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and labels `[N, T]` of sequences of image, prompt and target. Only the tokens of the target are labels."""
        rows, labels = [], []
        for prompt, target in zip(prompts, targets, strict=True):
            tokens = [*self.tokens(target), self.tokenizer.end]
            read = [*[SOFT] * self.prefix, *self.begin, *prompt]
            rows.append([*read, *tokens])
            labels.append([*[IGNORE_INDEX] * len(read), *tokens])
        return right_padded(rows), right_padded(labels, IGNORE_INDEX)

    def _text(self, sample: Sample, rng: np.random.Generator | None) -> tuple[list[int], str]:
        """Prompt and target: a question and its answer, or an empty prompt and a caption."""
        if rng is not None and sample.questions and rng.random() < self.questions:
            asked = sample.questions[int(rng.integers(len(sample.questions)))]
            return self.question(asked.question), asked.answer
        return [], sample.captions[0 if rng is None else int(rng.integers(len(sample.captions)))] if sample.captions else ""

    def question(self, question: str) -> list[int]:
        """The question on a new line after the image, in the format of the training texts of `models.lm`."""
        return self.tokens("\n" + ask(question))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text[:LONGEST])[: self.context]


def token_nll(logits: Tensor, ids: Tensor, real: Tensor) -> Tensor:
    """Negative log-likelihood in nats of tokens `ids` `[B, T]`, summed over `real` tokens per row `[B]`. logits `[B, T, V]` must be
    aligned with the tokens that they predict."""
    nll = F.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")  # [B, T]
    return (nll * real).sum(dim=1)
