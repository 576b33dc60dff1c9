"""MAGIC's search against guidance by gradients, on the same weights; a row of `make bench`.

The other side is what ZeroCap does (Tewel et al., 2022, arXiv 2111.14447) with all its options turned down: for each token the keys
and values of the context are moved once, where the paper moves them five times, along the gradient that brings the next
token's probabilities towards CLIP's opinion of as many candidates as MAGIC has, where the paper asks about 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from data.loader import in_order
from data.texts import texts
from models.magic import MAGIC, MAGICConfig
from models.magic.search import Eyes, magic_search
from models.shared.backbones import cache_name
from models.shared.text import BPETokenizer
from recipes.bench.ratios import Bench, Row, interleaved, row_of

LENGTH = 12  # tokens of every caption, on both sides
STEP, FLUENCY = 0.3, 0.2  # step size and weight of the divergence, as ZeroCap's


def guidance(bench: Bench) -> list[Row]:
    """One picture at a time, as the papers measure: nothing is shared between captions."""
    split, process, repeats = bench.split, bench.process, bench.setting.repeats
    tokenizer = BPETokenizer.train(texts(split, limit=5_000), 436)
    torch.manual_seed(0)
    config = MAGICConfig.tiny()
    clip = replace(config.clip, vocab_size=tokenizer.vocab_size)
    model = MAGIC(replace(config, clip=clip, vocab_size=tokenizer.vocab_size), tokenizer).to(process.device).eval()
    samples = next(in_order(split, batch_size=1, needs=("captions",)))
    images = [sample.image for sample in samples]
    prompt = [model.start, *tokenizer.encode("a picture of")]

    def searched() -> list[list[int]]:
        eyes = Eyes(model.clip.encode_image(images), model.clip.logit_scale.exp().item(), model._features)
        return magic_search(model.language, [prompt], eyes, end=-1, limit=LENGTH, never=[], how=config.search)

    ours, theirs = f"MAGIC, k {config.search.k}", "one gradient step a token"
    contestants = {ours: searched, theirs: lambda: gradient_guided(model, images, prompt, LENGTH)}
    if any(len(run()[0]) != LENGTH for run in contestants.values()):
        raise RuntimeError(f"both sides should write {LENGTH} tokens")
    timed = interleaved(contestants, repeats)
    shapes = f"CLIP and language model of tiny, captions of {LENGTH} tokens, one at a time, fp32"
    return [row_of("guidance", ours, theirs, shapes, timed, len(images), "")]


def gradient_guided(model: MAGIC, images: Sequence[np.ndarray], prompt: Sequence[int], limit: int) -> list[list[int]]:
    """The likeliest token after each gradient step, `limit` times."""
    language, k, scale = model.language, model.config.search.k, model.clip.logit_scale.exp().item()
    seen = model.clip.encode_image(images)
    ids = torch.tensor([list(prompt)] * len(images), device=seen.device)
    for _ in range(limit):
        with torch.no_grad():
            out = language(ids, use_cache=True)
            before = out.logits[:, -1].softmax(dim=-1)
        context = [(layer.keys[:, :, :-1], layer.values[:, :, :-1]) for layer in getattr(out, cache_name(language)).layers]
        shifts = [torch.zeros_like(part, requires_grad=True) for pair in context for part in pair]
        probabilities = _after(language, context, shifts, ids[:, -1:])
        candidates = probabilities.topk(k).indices  # [N, k]
        written = [[*row[len(prompt) :], token] for row, few in zip(ids.tolist(), candidates.tolist(), strict=True) for token in few]
        fit = (model._features(written).unflatten(0, (-1, k)) @ seen[:, :, None])[..., 0]  # [N, k]
        wanted = (scale * fit).softmax(dim=-1)
        towards = -(wanted * probabilities.gather(1, candidates).log()).sum()
        loss = towards + FLUENCY * (probabilities * (probabilities / before).log()).sum()
        gradients = torch.autograd.grad(loss, shifts)
        moved = [-STEP * F.normalize(gradient.flatten(1), dim=1).view_as(gradient) for gradient in gradients]
        with torch.no_grad():
            ids = torch.cat([ids, _after(language, context, moved, ids[:, -1:]).argmax(dim=-1, keepdim=True)], dim=1)
    return [row[len(prompt) :] for row in ids.tolist()]


def _after(language: Any, context: Sequence[tuple[Tensor, Tensor]], shifts: Sequence[Tensor], last: Tensor) -> Tensor:
    """Probabilities of the next token `[N, V]` after the last one, with the keys and values of what is before it moved."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(context):
        cache.update(keys + shifts[2 * layer], values + shifts[2 * layer + 1], layer)
    return language(last, use_cache=True, **{cache_name(language): cache}).logits[:, -1].softmax(dim=-1)


BENCHES = {"guidance": guidance}
