"""Captions per second against transformers' `generate` on the same weights; rows of `make bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import GPT2LMHeadModel

from data.loader import in_order
from models.coca import CoCa, CoCaConfig
from models.coca.decoder import Writer
from models.coca.gpt2 import decoder_to_gpt2
from models.coca.objective import caption_nll
from models.shared.generate import Decoding, generate, not_text
from models.shared.text import BPETokenizer
from recipes.bench.ratios import Bench, Row, interleaved, row_of
from recipes.train.distributed import Process
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim

CONFIG = CoCaConfig.tiny()
LESSONS = 100  # steps in which the decoder learns the batch's captions by heart


def captioning(bench: Bench) -> list[Row]:
    """From image tokens to token ids: the towers, which the two sides do not share, are left out.

    The decoder is that of CoCa's `tiny`; GPT-2 with cross-attention computes the same. With random weights captions would not
    end where real ones do: the decoder first learns captions of the data set, one for each of a batch of random images. Both
    sides must then write the same.
    """
    split, batch, process, repeats = bench.split, bench.setting.draw_batch, bench.process, bench.setting.repeats
    samples = next(in_order(split, batch_size=batch, needs=("captions",)))
    captions = [sample.captions[0] for sample in samples]
    model = _model(captions).to(process.device)
    image = torch.randn(len(captions), CONFIG.queries, CONFIG.text.width, generator=torch.Generator().manual_seed(0)).to(process.device)
    _learn(model, image, captions, process)
    theirs, layers = _gpt2(model).to(process.device), CONFIG.text.depth + CONFIG.multimodal_depth
    rows = []
    for beams in (1, 4):
        how = "greedy" if beams == 1 else f"{beams} beams"
        ours, reference = f"caption, {how}", f"transformers {transformers.__version__} GPT-2 generate, {how}"
        contestants = {ours: _ours(model, image, beams), reference: _theirs(theirs, model.tokenizer, image, beams)}
        mine, other = (run() for run in contestants.values())
        if mine != other:
            raise RuntimeError(f"the same weights should write the same captions, but wrote {mine[0]} and {other[0]}")
        timed = interleaved(contestants, repeats)
        lengths = [len(ids) for ids in mine]
        written = f"captions of {sum(lengths) / len(lengths):.0f} tokens, {max(lengths)} at most"
        shapes = f"decoder {CONFIG.text.width} x {layers}, {CONFIG.queries} image tokens, {written}, batch {len(captions)}, fp32"
        rows.append(row_of("captioning", ours, reference, shapes, timed, len(captions), "fp32"))
    return rows


def _model(captions: Sequence[str]) -> CoCa:
    tokenizer = BPETokenizer.train(captions, 436)  # as in tiny: with a large vocabulary, the output layer would dominate the time
    torch.manual_seed(0)
    return CoCa(replace(CONFIG, vocab_size=tokenizer.vocab_size), tokenizer)


def _learn(model: CoCa, image: Tensor, captions: Sequence[str], process: Process) -> None:
    optimizer = optimiser(model.text, Optim(lr=1e-3), fused=process.device.type == "cuda")
    ids = model.collate.texts(captions).to(process.device)
    real = model.text.real(ids)
    for _ in range(LESSONS):
        with process.autocast("auto"):
            logits = model.text.look(model.text.read(ids)[0][:, :-1], image)
        nll, tokens = caption_nll(logits, ids, real)
        (nll.sum() / tokens.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _gpt2(model: CoCa) -> GPT2LMHeadModel:
    """Its unimodal layers do not look at the image, where they would add nothing: transformers is spared the time."""
    theirs = decoder_to_gpt2(model.text, model.config.text, start=model.tokenizer.start or 0, pad=model.tokenizer.pad)

    def blind(layer: Any) -> None:
        forward = layer.forward
        layer.forward = lambda *args, encoder_hidden_states=None, **options: forward(*args, **options)

    for layer in theirs.transformer.h[: CONFIG.text.depth]:
        blind(layer)
    return theirs


def _ours(model: CoCa, image: Tensor, beams: int) -> Callable[[], list[list[int]]]:
    start = torch.full((len(image), 1), model.tokenizer.start or 0, device=image.device)
    how = Decoding(beams=beams)

    @torch.no_grad()
    def run() -> list[list[int]]:
        writer = Writer(model.text, image, CONFIG.context)
        logits = writer.read(start)
        return generate(writer, logits, end=model.tokenizer.end, limit=CONFIG.context - 2, never=not_text(model.tokenizer), how=how)

    return run


def _theirs(theirs: GPT2LMHeadModel, tokenizer: Any, image: Tensor, beams: int) -> Callable[[], list[list[int]]]:
    start = torch.full((len(image), 1), tokenizer.start, device=image.device)
    options = {"num_beams": beams, "early_stopping": "never"} if beams > 1 else {}

    @torch.no_grad()
    def run() -> list[list[int]]:
        ids = theirs.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=F.layer_norm(image, image.shape[-1:]),
            max_new_tokens=CONFIG.context - 2,
            do_sample=False,
            suppress_tokens=not_text(tokenizer),
            renormalize_logits=True,
            **options,
        )
        rows = [[*row, tokenizer.end] for row in ids[:, 1:].tolist()]
        return [row[: row.index(tokenizer.end)] for row in rows]

    return run


BENCHES = {"captioning": captioning}
