"""Measure finished CM3leon runs for its claims: perplexity on images, and whether generated images match their prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import models
from data.sample import Sample
from eval.harness.source import from_shards
from eval.scenes.recogniser import looks, recogniser_of
from eval.tasks.drawing import seen_prompts
from models.cm3leon.drawing import Sampling
from models.cm3leon.sequence import Kind, Token
from models.shared.device import resolve_device
from recipes.claims.claim import Measured
from recipes.train.recipe import AnyRecipe

BATCH = 64
PICTURES = 512


def surprise_after(documents: int, *, random: bool = False) -> Measured:
    """Log-perplexity of test images in nats per image token, given their captions and documents that are retrieved by image and caption
    or, with `random`, drawn at random."""

    def rows(model: Any, samples: Sequence[Sample], generator: torch.Generator) -> tuple[list[list[Token]], Kind, list[int]]:
        texts = [sample.captions[0] for sample in samples]
        own = [model.builder.document(model.tokenizer.encode(text)) for text in texts]
        counts = [model.cells] * len(samples)
        if not documents:
            return own, Kind.DRAWN, counts
        if random:
            found = torch.randint(int(model.memory.filled), (len(samples), documents), generator=generator).to(model.memory.texts.device)
        else:
            images = model.retriever.encode_image([sample.image for sample in samples])
            found = model.memory.search(images + model.retriever.encode_text(texts), documents, skip_above=math.inf)
        return [before + row for before, row in zip(model.before(found), own, strict=True)], Kind.DRAWN, counts

    kind = f", {documents} {'random' if random else 'retrieved'} documents" if documents else ", no documents"
    return Measured(f"nats per image token, test{kind}", _nats_per_token(rows))


def surprise_in_boxes(*, infilled: bool) -> Measured:
    """Nats per image token of the span that contains the first object of a test image, infilled from the tokens on both sides or predicted
    only from those on the left."""

    def rows(model: Any, samples: Sequence[Sample], generator: torch.Generator) -> tuple[list[list[Token]], Kind, list[int]]:
        found, counts = [], []
        for sample in samples:
            text = model.tokenizer.encode(sample.captions[0])[: model.frame.text]
            first, stop = model.span_of(sample.image, sample.objects[0].box)
            spans = [(len(text) + 1 + first, len(text) + 1 + stop)] if infilled else []
            tokens = model.builder.document(text, spans, drawn=Kind.UNCONDITIONAL)
            inside = range(-stop, -first)  # cell c has the id -1 - c
            found.append([token._replace(kind=Kind.DRAWN) if token.id in inside else token for token in tokens])
            counts.append(stop - first)
        return found, Kind.DRAWN, counts

    how = "filled in" if infilled else "from the left alone"
    return Measured(f"nats per image token of an object's span, test, {how}", _nats_per_token(rows))


def drawn_right(guidance: float, samples: int = 1) -> Measured:
    """Share of single-object prompts whose generated image has the correct colour and shape according to the recogniser. With several
    samples per prompt, the retriever selects one."""

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        source = from_shards(recipe.data)
        recogniser = recogniser_of(source)
        prompts = [prompt for prompt in seen_prompts() if prompt.count(" a ") + prompt.count(" an ") == 0]
        how = Sampling(guidance, model.config.temperature, model.config.top_p)
        found: dict[str, float] = {}
        for start in range(0, len(prompts), BATCH):
            texts = prompts[start : start + BATCH]
            drawn = recogniser.recognise(model.draw(texts, seed=start, samples=samples, how=how))
            for text, (things, _) in zip(texts, drawn, strict=True):
                seen = [looks(thing) for thing in things]
                found[text] = float(len(seen) == 1 and all(seen[0][name] in text.split() for name in ("colour", "shape")))
        return found

    chosen = f", best of {samples}" if samples > 1 else ""
    return Measured(f"single-object prompts drawn with the right colour and shape, guidance {guidance:g}{chosen}", measure)


Rows = Callable[[Any, Sequence[Sample], torch.Generator], tuple[list[list[Token]], Kind, list[int]]]


def _nats_per_token(rows: Rows) -> Callable[[Path, AnyRecipe], dict[str, float]]:
    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        samples = from_shards(recipe.data).samples("test")[:PICTURES]
        generator = torch.Generator().manual_seed(0)
        found: dict[str, float] = {}
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            sequences, kind, counts = rows(model, batch, generator)
            log_p = model.log_likelihood(sequences, [sample.image for sample in batch], of=kind).tolist()
            found |= {sample.key: -value / count for sample, value, count in zip(batch, log_p, counts, strict=True)}
        return found

    return measure
